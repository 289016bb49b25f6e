"""Negatives drawn evenly from all documents: what mined ones have to beat, and what a fresh ranker begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from miners.base import Draw, NegativeSource, TrainingTable
from miners.draws import RowGenerator
from miners.ragged import Ragged

BEYOND = 1 << 40  # behind every document


class RandomNegatives(NegativeSource):
    """Draw documents evenly and without replacement; the row's known positives are left out.

    In-batch negatives are other rows' positives, so a document that answers many queries comes often and most of the
    corpus never. Re-rankers have no others in their batch; from hard negatives alone a fresh head learns late or not at
    all (see ``benchmarks/cet``).

    Args:
        num_negatives: per row and epoch; a row that has fewer documents besides its positives draws them all.

    Shapes:
        Per draw: memory of B rows x (``num_negatives`` + the longest list of positives).

    Raises:
        ValueError: fewer than one negative, a training set that does not say how many documents it has, or a positive
            that is none of them.

    Source:
        Bentley and Floyd, CACM 1987, for the draw without replacement.
    """

    def __init__(self, num_negatives: int = 1) -> None:
        if num_negatives < 1:
            raise ValueError(f"RandomNegatives(num_negatives={num_negatives}): wants at least 1.")
        self.num_negatives = num_negatives
        self._before: Ragged | None = None  # by row and known positive, how many free documents have a lower id
        self._documents = 0

    def attach(self, table: TrainingTable) -> None:
        if table.num_documents is None:
            raise ValueError(
                "RandomNegatives does not know how many documents there are: this training set has neither their names "
                "nor their content. Fill in TrainingTable(document_names=...) or document_content."
            )
        own, self._documents = table.positives, table.num_documents
        if (wrong := (own.values < 0) | (own.values >= self._documents)).any():
            row, document = int(own.row_of_value[wrong][0]), int(own.values[wrong][0])
            raise ValueError(
                f"RandomNegatives: row {row} has the positive {document}, and there are {self._documents} documents. "
                "Give the training set the names or contents of all of them."
            )
        pair = (own.row_of_value * self._documents + own.values).unique()  # sorted, each once
        known = Ragged.from_pairs(pair // self._documents, pair % self._documents, len(own))
        place = torch.arange(len(pair)) - known.offsets[known.row_of_value]
        self._before = Ragged(known.offsets, known.values - place)

    def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
        if self._before is None:
            raise RuntimeError(
                "RandomNegatives knows no rows yet: call attach(TrainingTable(...)), as data modules do."
            )
        known, wanted = self._before.select(rows), self.num_negatives
        free = self._documents - known.lengths  # (B,)
        drawn = free.clamp_max(wanted)  # (B,)
        dice = generator.uniform(rows, wanted)
        chosen = torch.full((len(rows), wanted), -1)  # places among the row's free documents
        for at in range(wanted):  # each step lets in one more place; one that was taken gives way to the newest
            newest = free - drawn + at  # (B,)
            place = (dice[:, at] * (newest + 1)).long()
            place = torch.where((chosen == place[:, None]).any(1), newest, place)
            chosen[:, at] = torch.where(at < drawn, place, -1)
        usable = chosen >= 0
        ids = chosen + torch.searchsorted(known.padded(BEYOND), chosen, right=True)  # steps over the positives
        return Draw(torch.where(usable, ids, -1), usable, "random")
