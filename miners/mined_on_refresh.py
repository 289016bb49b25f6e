"""Negatives mined by the model that is trained, when it is refreshed: no table on disk, and the cost in the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from miners.base import Draw, NegativeSource, TrainingTable
from miners.draws import RowGenerator
from miners.ragged import Ragged, pairs_in
from miners.static_negatives import StaticNegatives

if TYPE_CHECKING:
    from miners.store import Store


class MinedOnRefresh(NegativeSource):
    """Search the refreshed corpus with the refreshed queries, and draw from each row's list as `StaticNegatives` does.

    Until the first refresh nothing is drawn. With a refresh before training alone it is STAR's static mining, with one
    before every epoch it is ANCE's.

    Args:
        num_negatives: per row and epoch.
        search_depth: documents retrieved for a query, known positives included.
        first_rank: leave out so many of the best documents that are no known positive.
        index: how the corpus is searched, as in `miners.build_index`.
        device: where.

    Raises:
        ValueError: a number out of range.

    Source:
        STAR, arXiv 2104.08051, section 4.1; ANCE, arXiv 2007.00808.
    """

    def __init__(
        self,
        num_negatives: int = 1,
        search_depth: int = 100,
        first_rank: int = 0,
        index: str = "auto",
        device: str = "auto",
    ) -> None:
        if not 0 <= first_rank < search_depth:
            raise ValueError(
                f"MinedOnRefresh(search_depth={search_depth}, first_rank={first_rank}): wants 0 <= first_rank < "
                "search_depth."
            )
        StaticNegatives(Ragged.empty(0), num_negatives)  # checks the number
        self.num_negatives = num_negatives
        self.search_depth = search_depth
        self.first_rank = first_rank
        self.index = index
        self.device = device
        self._table: TrainingTable | None = None
        self._lists: StaticNegatives | None = None

    def attach(self, table: TrainingTable) -> None:
        self._table = table

    def refresh(self, stores: Mapping[str, Store]) -> None:
        if self._table is None or not {"query", "document"} <= set(stores):
            return
        corpus = stores["document"]
        queries = stores["query"].rows(self._table.anchors)  # (N, d)
        from miners.index import build_index  # here: `import miners` stays as light as torch

        _, found = build_index(self.index, corpus, self.device).search(queries, min(self.search_depth, len(corpus)))
        found = found.cpu()
        there = found >= 0  # approximate indices leave slots empty
        lists = Ragged.from_pairs(there.nonzero()[:, 0], found[there], len(found))
        known = _without(lists, self._table.positives)
        self._lists = StaticNegatives(known, self.num_negatives, self.first_rank)
        self._lists.attach(self._table)

    def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
        if self._lists is None:
            nobody = torch.full((len(rows), self.num_negatives), -1)
            return Draw(nobody, nobody >= 0, "mined")
        return self._lists.draw(rows, positives, epoch, generator)


def _without(lists: Ragged, known: Ragged) -> Ragged:
    """The lists without what is known, so that ranks count what is left."""
    kept = ~pairs_in(lists.row_of_value, lists.values, known)
    return Ragged.from_pairs(lists.row_of_value[kept], lists.values[kept], len(lists))
