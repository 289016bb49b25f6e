"""What a table says of its making: shown and compared; used only where it is a plain value of a known option."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

SHORT = 80  # characters of a table's word that are shown
_COMPONENT = (
    r"(?:Flat|LSH|L2norm|RFlat|(?:OPQ|PCAR?|ITQ|RR)\d{1,4}(?:_\d{1,4})?|IVF\d{1,6}(?:\(HNSW\d{1,3}\))?|(?:HNSW|NSG)\d{1,3}"
    r"|SQ(?:4|6|8|fp16|bf16)|PQ\d{1,4}(?:x\d{1,2})?(?:fsr?)?)"
)


class Plain(NamedTuple):
    """A plain value that a table may give to an option.

    Attributes:
        kind: int, float, bool or str.
        low, high: of a number, both included.
        choices: of a word; none = any.
        pattern: of a word, which must match it whole.
        optional: None is a value too.
    """

    kind: type
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    pattern: str = r"(?s:.{0,4096})"
    optional: bool = False

    def fits(self, value: object) -> bool:
        """Whether a value is one of these."""
        if value is None:
            return self.optional
        if self.kind in (int, float):
            kinds = (int, float) if self.kind is float else (int,)
            number = isinstance(value, kinds) and not isinstance(value, bool)
            return number and math.isfinite(value) and self.low <= value <= self.high  # type: ignore[arg-type,operator]
        if not isinstance(value, self.kind):
            return False
        if isinstance(value, str):
            return value in self.choices if self.choices else re.fullmatch(self.pattern, value) is not None
        return True

    def __str__(self) -> str:
        none = " or null" if self.optional else ""
        if self.choices:
            return f"one of {', '.join(self.choices)}{none}"
        if self.kind in (int, float):
            name, ends = ("whole number" if self.kind is int else "number"), (self.low, self.high)
            return f"a {name}{'' if ends == (-math.inf, math.inf) else f' from {self.low:g} to {self.high:g}'}{none}"
        return {bool: "true or false", str: "a text of a known form"}[self.kind] + none


COUNT, SCORE = Plain(int, 1, 1_000_000), Plain(float, -1e6, 1e6, optional=True)

PLAIN: Mapping[str, Plain] = {
    "absolute_margin": SCORE,
    "batch_size": Plain(int, 1, 65_536),
    "bm25": Plain(int, 0, 1_000_000),
    "dot": Plain(bool),
    "document_prompt": Plain(str, optional=True),
    "first_rank": COUNT,
    "guide_margin": Plain(float, -1e6, 1e6),
    "index": Plain(str, pattern=rf"auto|torch|{_COMPONENT}(?:,{_COMPONENT}){{0,3}}"),
    "last_rank": COUNT._replace(optional=True),
    "max_score": SCORE,
    "min_score": SCORE,
    "near_duplicate": SCORE,
    "num_negatives": COUNT,
    "positive": Plain(str, choices=("lowest", "highest", "mean")),
    "query_prompt": Plain(str, optional=True),
    "ranks": Plain(str, choices=("raw", "survivors")),
    "relative_margin": SCORE,
    "sampling": Plain(str, choices=("top", "random", "softmax")),
    "search_depth": COUNT._replace(optional=True),
    "seed": Plain(int, -(2**63), 2**63 - 1),
    "temperature": Plain(float, 1e-6, 1e6),
    "too_few": Plain(str, choices=("short", "drop", "pad", "relax")),
}
"""Options of `hardneg mine` that a table may set when it is mined again, and their values."""

NAMED: Mapping[str, str] = {
    "model": "--model",
    "encoder": "--encoder",
    "encoder_args": "--encoder-args",
    "guide": "--mined-guide",
    "cross_encoder": "--mined-cross-encoder",
}
"""Options that load a model or a class, and who names it for the audit: the user. A table's word is only shown."""

UNUSED = ("split", "chunk")
"""Options that a table records and the audit has no use for."""


class Making(NamedTuple):
    """How a table says that it was made.

    Attributes:
        options: plain values of `PLAIN`, checked; None where the table does not say how it was mined, or says it
            wrongly.
        problem: why ``options`` is None; "" where it is not.
        named: what it says of `NAMED`, where it says something: only for showing.
        weights: hashes of the weights that it says encoded (queries, documents); "" where it does not.
    """

    options: dict[str, Any] | None
    problem: str
    named: dict[str, str]
    weights: tuple[str, str]

    def as_dict(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values for JSON; ``changed`` holds the options that differ from the defaults of `hardneg mine`."""
        changed = {name: value for name, value in (self.options or {}).items() if value != defaults.get(name)}
        return {
            "options": self.options,
            "problem": self.problem,
            "changed": changed,
            "named": self.named,
            "weights": dict(zip(("query", "document"), self.weights, strict=True)),
        }


def read_making(metadata: Mapping[str, Any], table: Path) -> Making:
    """Read a table's metadata as words of a stranger.

    Args:
        metadata: of `MinedNegatives`, whose values may be anything that JSON holds.
        table: for the sentence that says what is wrong.
    """
    model = _mapping(_mapping(metadata.get("inputs")).get("model"))
    hashes = [model.get(f"{side}_weights") for side in ("query", "document")]
    query, document = (one if isinstance(one, str) and re.fullmatch(r"[0-9a-f]{1,128}", one) else "" for one in hashes)
    given = model.get("arguments")
    if given is None:
        return Making(None, f"{table} was not mined by `hardneg mine`", {}, (query, document))
    named = {name: shown(value) for name in NAMED if (value := _mapping(given).get(name))}
    depth = {"search_depth": _mapping(metadata.get("settings")).get("search_depth")}
    try:
        options = check_options(given, f"{table}: its metadata") | check_options(depth, f"{table}: its metadata")
    except ValueError as error:
        return Making(None, str(error), named, (query, document))
    return Making(options, "", named, (query, document))


def check_options(given: object, where: str) -> dict[str, Any]:
    """Take the plain values of `PLAIN`; those of `NAMED` are left out.

    Args:
        given: options of `hardneg mine` by name.
        where: begins the errors.

    Raises:
        ValueError: an unknown option, or a value out of its range.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: options of `hardneg mine` must be a mapping, got {shown(given)}")
    known = {*PLAIN, *NAMED, *UNUSED}
    if unknown := sorted(map(str, given.keys() - known)):
        raise ValueError(
            f"{where}: `hardneg mine` has no option {shown(unknown[0])}; they are {', '.join(sorted(known))}"
        )
    for name, value in given.items():
        if name in PLAIN and not PLAIN[name].fits(value):
            raise ValueError(f"{where}: {name} must be {PLAIN[name]}, got {shown(value)}")
    return {name: value for name, value in given.items() if name in PLAIN}


def shown(value: object) -> str:
    """A stranger's word for a terminal: quoted, short, and without control characters."""
    text = repr(value)
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"


def as_line(made: Mapping[str, Any]) -> str:
    """What a table says of its making, in one line; ``made`` as `Making.as_dict` gives it."""
    if made["options"] is None:
        return f"how it was mined: not known, {made['problem']}"
    words = [f"{name} {value}" for name, value in made["named"].items()]
    if hashes := dict.fromkeys(one[:12] for one in made["weights"].values() if one):
        words.append(f"weights {' and '.join(hashes)}")
    words += [f"{name} {shown(value)}" for name, value in made["changed"].items()]
    return f"how it was mined, as the table says: {', '.join(words)}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
