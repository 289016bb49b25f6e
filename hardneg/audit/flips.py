"""Two checkpoints side by side: what the new one breaks that the old one got right."""

from __future__ import annotations

import argparse
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hardneg.audit.measure import interval
from hardneg.audit.page import EXAMPLES, STYLE, shortened
from hardneg.encoders.base import Encoder
from hardneg.encoders.images import ImageEncoder, load_images
from hardneg.metrics.flips import NegativeFlipRate, first_relevant
from hardneg.mining import EmbeddingCache
from hardneg.mining.cli import place, text_encoder
from hardneg.mining.inputs import Inputs, read_beir
from miners.transaction import write_text

DEPTH = 100


class Compared(NamedTuple):
    """Plain values for JSON, and the worst flips for people."""

    report: dict[str, Any]
    examples: list[dict[str, Any]]


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what does not go with ``--against``.

    Raises:
        ValueError: the text stands alone.
    """
    if args.against is None:
        if args.table is None:
            raise ValueError("Give a table of negatives, or two models: --checkpoint NEW --against OLD --folder DATA.")
        if args.max_negative_flip_rate is not None or args.far is not None:
            raise ValueError("--max-negative-flip-rate and --far compare two models: give --against.")
        return
    if args.table is not None:
        raise ValueError(f"--against compares two models, not a table; leave {args.table} out.")
    if not args.checkpoint or not args.folder:
        raise ValueError("--against OLD wants --checkpoint NEW and --folder: the data on which they are compared.")
    about_tables = (
        "guide",
        "model",
        "encoder",
        "mined_guide",
        "mined_cross_encoder",
        "mined_with",
        "max_false_negative_rate",
    )
    if given := [name for name in about_tables if getattr(args, name) is not None]:
        raise ValueError(f"--{given[0].replace('_', '-')} is about a table of negatives; leave it out with --against.")
    if not args.cutoffs or min(args.cutoffs) < 1:
        raise ValueError(f"--cutoffs {args.cutoffs}: ranks, so at least 1.")


def run_flips(args: argparse.Namespace, cache: EmbeddingCache) -> tuple[dict[str, Any], str, str]:
    """Compare, and give the report, its text and its page."""
    if args.far is not None:
        pictures = [load_images(folder).to(place(args.device)) for folder in (args.against, args.checkpoint)]
        found = of_pictures(pictures[0], pictures[1], args.folder, args.pairs, args.size, args.far)
    else:
        old, new = (text_encoder(folder, args.device) for folder in (args.against, args.checkpoint))
        if old.fingerprint("query") == new.fingerprint("query"):
            raise ValueError(f"--against {args.against} has the weights of --checkpoint: nothing can flip.")
        found = of_texts(old, new, read_beir(args.folder, args.split), cache, args.cutoffs, place(args.device))
    report = {"old": args.against, "new": args.checkpoint, "folder": args.folder, "split": args.split} | found.report
    return report, as_text(report), as_html(report, found.examples)


def of_texts(
    old: Encoder, new: Encoder, inputs: Inputs, cache: EmbeddingCache, cutoffs: Sequence[int], device: str
) -> Compared:
    """Retrieval: queries whose relevant document was among the first k and is not any more.

    Args:
        old, new: text encoders.
        inputs: queries with known positives, and a corpus.
        cutoffs: the k.

    Returns:
        ``flips`` by "found@k"; ``cross`` = share found with new queries in the old index, None where the vectors have
        two lengths.
    """
    sides = [
        [cache.encode(each, inputs.queries, "query"), cache.encode(each, inputs.corpus, "document")]
        for each in (old, new)
    ]
    depth = max(DEPTH, *cutoffs)
    (before, _), (after, now) = (
        first_relevant(queries.vectors, corpus, inputs.known, depth, device) for queries, corpus in sides
    )
    flips = {f"found@{k}": NegativeFlipRate.of_ranks(before, after, k) for k in cutoffs}
    cross = None
    if old.dim == new.dim:
        ranks, _ = first_relevant(sides[1][0].vectors, sides[0][1], inputs.known, depth, device)
        cross = {f"found@{k}": float((ranks <= k).double().mean()) for k in cutoffs}
    report = {"things": len(before), "kind": "queries", "flips": _plain(flips), "cross": cross}
    return Compared(report, _examples(inputs, before, after, now, flips[f"found@{min(cutoffs)}"].broken, depth))


def of_pictures(
    old: ImageEncoder, new: ImageEncoder, folder: str, pairs: str | None, size: int, far: float
) -> Compared:
    """Verification: pairs of pictures, each model at its own threshold for the same false accept rate.

    Args:
        old, new: picture encoders.
        folder, pairs, size: as in `datamodules.FacesData`; pairs None draws some.
        far: false accept rate.
    """
    from datamodules.faces import FacesData, FaceTest

    data = FacesData(folder, test=FaceTest(pairs=pairs), size=size, channels=new.channels)
    data.setup("test")
    wanted = data.split("test")
    similarities = []
    for encoder in (old, new):
        vectors = torch.nn.functional.normalize(encoder.embed(data.view(wanted.ids), "image"), dim=1)
        first, second = (vectors[torch.searchsorted(wanted.ids, side)] for side in wanted.pairs.T.contiguous())
        similarities.append((first.double() * second.double()).sum(1))
    flips = NegativeFlipRate.of_pairs(similarities[0], similarities[1], wanted.same, far)
    named = {f"{kind} pairs, FAR {far:g}": found for kind, found in flips.items()}
    report = {"things": len(wanted.pairs), "kind": "pairs", "flips": _plain(named), "cross": None}
    return Compared(report, _pairs(data.names("image"), wanted.pairs, wanted.same, similarities, flips))


def _plain(flips: Mapping[str, NegativeFlipRate]) -> dict[str, dict[str, Any]]:
    """Numbers of each measure, with the exact 95 % interval of the rate."""
    out = {}
    for name, found in flips.items():
        low, high = interval(int(found.broken.sum()), len(found.broken))
        out[name] = found.as_dict() | {"low": low, "high": high}
    return out


def _examples(
    inputs: Inputs, before: Tensor, after: Tensor, now: Tensor, broken: Tensor, depth: int
) -> list[dict[str, Any]]:
    """The broken queries whose document fell furthest."""
    rows = broken.nonzero()[:, 0]
    rows = rows[after[rows].argsort(descending=True, stable=True)][:EXAMPLES]
    wanted = inputs.known.select(rows).to_lists()
    return [
        {
            "asked": inputs.queries[row],
            "wanted": inputs.corpus[own[0]],
            "instead": inputs.corpus[int(now[row])],
            "change": f"rank {int(before[row])} -> {int(after[row]) if after[row] <= depth else f'beyond {depth}'}",
        }
        for row, own in zip(rows.tolist(), wanted, strict=True)
    ]


def _pairs(
    names: Sequence[str],
    pairs: Tensor,
    same: Tensor,
    similarities: Sequence[Tensor],
    flips: Mapping[str, NegativeFlipRate],
) -> list[dict[str, Any]]:
    """The broken pairs by name, those whose similarity moved most first."""
    broken = torch.zeros(len(pairs), dtype=torch.bool)
    broken[same], broken[~same] = flips["genuine"].broken, flips["impostor"].broken
    rows = broken.nonzero()[:, 0]
    moved = (similarities[1] - similarities[0])[rows].abs()
    rows = rows[moved.argsort(descending=True, stable=True)][:EXAMPLES]
    return [
        {
            "asked": names[int(pairs[row, 0])],
            "wanted": names[int(pairs[row, 1])],
            "instead": "one identity, not accepted any more" if same[row] else "two identities, accepted now",
            "change": f"similarity {float(similarities[0][row]):.3f} -> {float(similarities[1][row]):.3f}",
        }
        for row in rows.tolist()
    ]


def as_text(report: Mapping[str, Any]) -> str:
    """The comparison in a few lines."""
    lines = [f"{report['old']} -> {report['new']}: {report['things']:,} {report['kind']} of {report['folder']}"]
    for name, found in report["flips"].items():
        like = "" if found["relative"] is None else f"; {found['relative']:.2f} x what independent models would break"
        lines.append(
            f"  {name}: right {found['old']:.1%} -> {found['new']:.1%}; negative flips {found['rate']:.1%} (95 %: "
            f"{found['low']:.1%} to {found['high']:.1%}), mended {found['mended']:.1%}{like}"
        )
    if report["cross"]:
        found = ", ".join(f"{name} {share:.1%}" for name, share in report["cross"].items())
        lines.append(f"  new queries against the old index: {found}")
    return "\n".join(lines)


def as_html(report: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as a page; everything that comes from the data is escaped."""

    def said(example: Mapping[str, Any], part: str) -> str:
        return html.escape(shortened(str(example[part])))

    cards = "".join(
        f"<div class=card><b>{said(one, 'asked')}</b> <small class=w>{said(one, 'change')}</small>"
        f"<div class=p>{said(one, 'wanted')}</div><div class=m>{said(one, 'instead')}</div></div>"
        for one in examples
    )
    return f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">
<title>Negative flips</title><style>{STYLE}</style>
<h1>What the new model breaks</h1><pre>{html.escape(as_text(report))}</pre>
<h2>Broken</h2><p>What was asked, what is right (orange), what stands there now (blue); the worst first.</p>{cards}
</html>
"""


def failures(report: Mapping[str, Any], limit: float | None) -> list[str]:
    """Which measures flip more than allowed."""
    if limit is None:
        return []
    return [
        f"the negative flip rate of {name} {found['rate']:.3f} is above {limit}"
        for name, found in report["flips"].items()
        if found["rate"] > limit
    ]


def write_page(path: Path, page: str) -> None:
    """Write the page, and say so."""
    write_text(path, page)
    print(f"written: {path}")
