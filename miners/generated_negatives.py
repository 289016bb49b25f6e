"""Negatives that were made: captions with one fact changed, pictures drawn again, whatever a file holds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from miners.base import Draw, Make, NegativeSource, TrainingTable
from miners.caption_edits import CaptionEdit
from miners.draws import RowGenerator, generator_for
from miners.ragged import Ragged, pairs_in

log = logging.getLogger(__name__)


class GeneratedNegatives(NegativeSource):
    """Draw from a list of made negatives per row, of any length, each with a kind.

    What is made has an id beyond those of the true things; the data module makes and numbers it, and leaves out what
    equals the row's positive. For the other modality take a second source: image negatives of a caption are the
    candidates of the direction caption to image. They are in-batch candidates of every row unless the chain says
    ``InBatch(drawn="own")``; alone, as published, with ``InBatch(drawn="own", others=False)``.

    Args:
        negatives: a table (jsonl, csv, tsv, parquet) whose `pair` names the row's picture, with `caption` or `file`
            and, if you like, `kind`; or ready lists of ids, one per row. None: what ``edits`` make, and without edits
            what the data set brings along.
        edits: of captions; see `miners.caption_edits`.
        space: modality of the negatives, "caption" or "image"; "document" for ready lists of a set of texts.
        num_negatives: drawn per row and epoch, without replacement; fewer where a list is shorter.
        strategy: "uniform" over the list, anew each epoch, or "first", the same ones always: what comes later in a list
            is then never seen.
        per_kind: at most so many of one kind in a draw; None = no cap.
        at_least: fewest negatives of a row's list; fewer are an error that names the row. With 0 such rows are counted.
        shuffled: the control: each row is handed the list of another row.
        seed: of shuffling.

    Raises:
        FileNotFoundError: no such table.
        ValueError: numbers out of range, edits of pictures, edits and a table at once.

    Source:
        MMCLIP, arXiv 2505.20152, sections 2 and 3; Sahin et al., arXiv 2311.03964. Differs: "uniform", where the
        published code always takes the first.
    """

    def __init__(
        self,
        negatives: str | Path | Ragged | None = None,
        edits: Sequence[CaptionEdit] = (),
        space: Literal["caption", "image", "document"] = "caption",
        num_negatives: int = 4,
        strategy: Literal["uniform", "first"] = "uniform",
        per_kind: int | None = None,
        at_least: int = 0,
        shuffled: bool = False,
        seed: int = 0,
    ) -> None:
        if num_negatives < 1 or at_least < 0 or (per_kind is not None and per_kind < 1):
            raise ValueError(
                f"GeneratedNegatives(num_negatives={num_negatives}, per_kind={per_kind}, at_least={at_least}): wants "
                "at least 1, 1 and 0."
            )
        if strategy not in ("uniform", "first"):
            raise ValueError(f"GeneratedNegatives(strategy='{strategy}'): wants 'uniform' or 'first'.")
        if edits and (negatives is not None or space == "image"):
            raise ValueError(
                "GeneratedNegatives(edits=...) change captions: no table beside them, and space 'caption'."
            )
        self.negatives = negatives
        self.edits = tuple(edits)
        self.space = space
        self.num_negatives = num_negatives
        self.strategy = strategy
        self.per_kind = per_kind
        self.at_least = at_least
        self.shuffled = shuffled
        self.seed = seed
        self.counts: Counter[str] = Counter()  # drawn so far, by kind
        self._names: tuple[str, ...] = ("",)
        self._lists: Ragged | None = None
        self._kinds: Ragged | None = None
        if isinstance(negatives, Ragged):
            self.use(negatives, torch.zeros_like(negatives.values), ("given",))

    def take_made(self, make: Make) -> None:
        if not isinstance(self.negatives, Ragged):
            self.use(*make(self.space, self.negatives, self.made_from if self.edits else None))

    def made_from(self, captions: Sequence[str]) -> list[tuple[int, str, str]]:
        """(row, caption, kind) of all edits of all captions.

        Raises:
            ValueError: an edit that finds nothing to change in any of them.
        """
        found = []
        for edit in self.edits:
            made = [(row, text, edit.kind) for row, caption in enumerate(captions) for text in edit(caption)]
            if not made:
                raise ValueError(
                    f"{type(edit).__name__} finds nothing to change in any of {len(captions)} captions, such as "
                    f"'{captions[0]}': it wants {edit.wants}. Leave it out, or give it other options."
                )
            found += made
        return found

    def use(self, lists: Ragged, kinds: Tensor, names: Sequence[str]) -> None:
        """Take ready lists of ids, in their order, the kind (V,) of each id on them, and the kinds' names."""
        if self.shuffled:
            rows = torch.randperm(len(lists), generator=generator_for(self.seed))
            kinds = Ragged(lists.offsets, kinds).select(rows).values
            lists = lists.select(rows)
        self._lists, self._kinds, self._names = lists, Ragged(lists.offsets, kinds), tuple(names)

    def attach(self, table: TrainingTable) -> None:
        lists, kinds = self._ready()
        if len(lists) != len(table):
            raise ValueError(f"GeneratedNegatives has {len(lists)} lists for {len(table)} training rows.")
        row, value = lists.row_of_value, lists.values
        own = (
            table.positives
            if self.space != "image"
            else Ragged.from_pairs(torch.arange(len(table)), table.anchors, len(table))
        )
        kept = ~pairs_in(row, value, own)
        self._lists = Ragged.from_pairs(row[kept], value[kept], len(table))
        self._kinds = Ragged.from_pairs(row[kept], kinds.values[kept], len(table))
        lengths = self._lists.lengths
        log.info(
            "GeneratedNegatives: %d negatives for %d rows (%d to %d), %d rows have none; kinds: %s",
            int(lengths.sum()),
            len(lengths),
            int(lengths.min()),
            int(lengths.max()),
            int((lengths == 0).sum()),
            ", ".join(f"{name} {int((self._kinds.values == number).sum())}" for number, name in enumerate(self._names)),
        )
        if int(lengths.min()) < self.at_least:
            first = int((lengths < self.at_least).nonzero()[0])
            raise ValueError(
                f"GeneratedNegatives(at_least={self.at_least}): row {first} has {int(lengths[first])} negatives. Give "
                "it more, or set at_least lower."
            )

    def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
        lists, kinds = self._ready()
        ids, kind = lists.select(rows).padded(), kinds.select(rows).padded()  # (B, longest)
        missing = self.num_negatives - ids.shape[1]
        if missing > 0:
            ids, kind = (torch.cat([part, part.new_full((len(part), missing), -1)], dim=1) for part in (ids, kind))
        lottery = torch.arange(ids.shape[1]).expand_as(ids).double()
        if self.strategy == "uniform":
            lottery = generator.uniform(rows, ids.shape[1])
        order = lottery.argsort(dim=1, stable=True)
        ids, kind = ids.gather(1, order), kind.gather(1, order)
        usable = ids >= 0
        if self.per_kind is not None:  # (B, longest, kinds): how many of its kind stand before each
            before = torch.nn.functional.one_hot(kind.clamp_min(0), len(self._names)) * usable[..., None]
            within = before.cumsum(1).gather(2, kind.clamp_min(0)[..., None])[..., 0]
            usable &= within <= self.per_kind
        first = (~usable).long().argsort(dim=1, stable=True)[:, : self.num_negatives]
        ids, kind, usable = ids.gather(1, first), kind.gather(1, first), usable.gather(1, first)
        for number, many in enumerate(torch.bincount(kind[usable], minlength=len(self._names)).tolist()):
            self.counts[self._names[number]] += many
        return Draw(torch.where(usable, ids, -1), usable, "generated")

    def _ready(self) -> tuple[Ragged, Ragged]:
        if self._lists is None or self._kinds is None:
            raise RuntimeError(
                "GeneratedNegatives has no negatives yet: they are made by a data module of pictures and captions "
                "(datamodules.CaptionsData). For other data hand over lists of ids."
            )
        return self._lists, self._kinds
