"""Training triplets that nobody wrote: captions, a similarity of pictures, and a template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.cir_files import Triplet
from datamodules.readers import Place, expand, read_records, text_field
from miners.draws import generator_for
from miners.store import Store
from miners.transaction import write_file

TEMPLATES = ("{target} instead of {ref}", "Unlike {ref}, I want {target}", "{target}")
"""As published; FashionIQ takes the last, CIRR the first two."""
BLOCK_SCORES = 1 << 22  # similarities that exist at one time


@dataclass
class Generated:
    """How `CIRData` makes further training triplets from its captions.

    Args:
        features: a folder of vectors with names, as `hardneg predict` writes it.
        first_rank, last_rank: the window of ranks that a target is drawn from, both ends included; a picture itself has
            rank 0. Published: 10000 to 19999 (FashionIQ), 10000 to 14999 (CIRR), of some 17,000 pictures and more.
        templates: with {ref} and {target}; a training step draws one.
        only_references: only for pictures that are a reference in the training file.
        limit: keep so many, drawn at random; null keeps all.
        seed: of the draws; 42 as published.
        tokenizer: model whose tokenizer counts: a text of more than ``max_tokens`` becomes the target's caption, as
            published for CLIP's 77; null lets every text stand.
        max_tokens: see ``tokenizer``.

    Raises:
        ValueError: numbers out of range, templates that cannot be filled in.
    """

    features: str
    first_rank: int
    last_rank: int
    templates: Sequence[str] = TEMPLATES[:2]
    only_references: bool = False
    limit: int | None = None
    seed: int = 42
    tokenizer: str | None = None
    max_tokens: int = 77

    def __post_init__(self) -> None:
        _check(self.first_rank, self.last_rank, self.templates, self.limit)

    def make(self, captions: str, column: str, references: Sequence[str]) -> list[Triplet]:
        """All triplets; ``references`` are the training file's, of which ``only_references`` takes its own."""
        return make_triplets(
            read_captions(captions, column),
            Store.load(expand(self.features)),
            self.first_rank,
            self.last_rank,
            self.templates,
            references if self.only_references else None,
            self.limit,
            self.seed,
            Place(expand(captions), 0),
            fits_in(self.tokenizer, self.max_tokens),
        )


def make_triplets(
    captions: Mapping[str, str],
    features: Store,
    first_rank: int,
    last_rank: int,
    templates: Sequence[str] = TEMPLATES[:2],
    references: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 42,
    place: Place | None = None,
    fits: Callable[[str], bool] | None = None,
) -> list[Triplet]:
    """One triplet for each picture: a target from a window of the ranking by cosine, and texts by templates.

    Args:
        captions: by name of the picture.
        features: vectors with names; all pictures that may be a reference or a target.
        first_rank, last_rank: of the target, both ends included; a picture itself has rank 0.
        templates: with {ref} and {target}; each gives one wording.
        references: names that may be references; None = all.
        limit: keep so many, drawn at random; None keeps all.
        seed: of the draws.
        place: what messages about the result name.
        fits: whether a text is short enough for the model; one that is not becomes the target's caption.

    Raises:
        ValueError: numbers out of range, a window that the pictures do not fill, vectors without names, templates that
            cannot be filled in or say nothing of the target, a picture without a caption.

    Source:
        SPN4CIR, arXiv 2404.11317, section 3.3, and its code.
    """
    if features.names is None:
        raise ValueError(
            "make_triplets wants vectors with names, to find their captions; `hardneg predict` writes such."
        )
    _check(first_rank, last_rank, templates, limit)
    if last_rank >= len(features):
        raise ValueError(
            f"make_triplets(last_rank={last_rank}): wants a last_rank below the {len(features)} pictures there are; "
            "rank 0 is the picture itself."
        )
    if missing := [name for name in features.names if not captions.get(name, "").strip()]:
        raise ValueError(f"make_triplets: '{missing[0]}' has no caption ({len(missing)} of {len(features)} have none).")
    generator = generator_for(seed)
    targets = draw_from_window(features.vectors, first_rank, last_rank, generator)
    wanted = None if references is None else set(references)
    rows = [row for row, name in enumerate(features.names) if wanted is None or name in wanted]
    if limit is not None and limit < len(rows):
        rows = [rows[at] for at in torch.randperm(len(rows), generator=generator)[:limit].sort().values.tolist()]
    found = []
    for row in rows:
        reference, target = features.names[row], features.names[int(targets[row])]
        words = {"ref": captions[reference].strip(), "target": captions[target].strip()}
        texts = [template.format(**words) for template in templates]
        texts = [text if fits is None or fits(text) else words["target"] for text in texts]
        where = place or Place(Path("make_triplets"), row)
        found.append(Triplet(where, f"made-{row}", reference, target, texts[0], tuple(dict.fromkeys(texts)), (target,)))
    return found


def _check(first_rank: int, last_rank: int, templates: Sequence[str], limit: int | None) -> None:
    """Refuse what no captions and vectors could make triplets of."""
    if not 0 < first_rank <= last_rank:
        raise ValueError(
            f"generated triplets (first_rank={first_rank}, last_rank={last_rank}): wants 1 <= first_rank <= last_rank; "
            "rank 0 is the picture itself."
        )
    if limit is not None and limit < 1:
        raise ValueError(f"generated triplets (limit={limit}): wants at least 1, or null for all.")
    if not templates:
        raise ValueError("generated triplets (templates=[]): wants one at least, such as '{target} instead of {ref}'.")
    for template in templates:
        try:
            fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
        except ValueError as error:
            raise ValueError(f"generated triplets: the template '{template}' is none ({error}).") from None
        if "target" not in fields:
            raise ValueError(f"generated triplets: the template '{template}' says nothing of {{target}}.")
        if unknown := sorted(fields - {"ref", "target"}):
            raise ValueError(
                f"generated triplets: the template '{template}' wants {{{unknown[0]}}}; there are {{ref}} and "
                "{target}."
            )


def fits_in(tokenizer: str | None, most: int) -> Callable[[str], bool] | None:
    """Whether a text has at most so many tokens, by the tokenizer of a model; None = nobody counts."""
    if tokenizer is None:
        return None
    from transformers import AutoTokenizer

    count = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    return lambda text: len(count(text)["input_ids"]) <= most


def draw_from_window(vectors: Tensor, first_rank: int, last_rank: int, generator: torch.Generator) -> Tensor:
    """(N,) for each of N vectors a row whose rank by cosine lies in the window; itself has rank 0.

    Shapes:
        vectors (N, d); scores are made for as many rows at a time as `BLOCK_SCORES` allows.
    """
    unit = F.normalize(vectors.float(), dim=1)
    number = len(unit)
    ranks = torch.randint(first_rank, last_rank + 1, (number,), generator=generator)
    found = []
    for rows in torch.arange(number).split(max(1, BLOCK_SCORES // number)):
        scores = unit[rows] @ unit.T  # (b, N)
        scores[torch.arange(len(rows)), rows] = 2.0  # before its twins
        order = scores.topk(last_rank + 1, dim=1).indices
        found.append(order.gather(1, ranks[rows, None])[:, 0])
    return torch.cat(found)


def read_captions(path: str | Path, column: str = "caption") -> dict[str, str]:
    """Captions by file from a table with the columns "file" and ``column``.

    Raises:
        ValueError: a column that is missing; file and line are named.
    """
    return {
        text_field(place, fields, "file"): text_field(place, fields, column) for place, fields in read_records(path)
    }


def write_triplets(triplets: Sequence[Triplet], path: Path) -> None:
    """Write lines that `read_triplets` reads."""
    with write_file(path, "w") as file:
        for each in triplets:
            record = {"id": each.name, "reference": each.reference, "target": each.target, "text": list(each.texts)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
