"""Batches in which minimal pairs meet: members of a family, each true, each the others' hard negative."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from miners.base import BatchMiner, TrainingTable

log = logging.getLogger(__name__)


class FamilyBatches(BatchMiner):
    """A batch holds families with ``members`` rows each, and ``ordinary`` other rows for each family.

    Nothing in the loss changes: siblings that meet in a batch are each other's hard negatives, in both directions. The
    ordinary rows keep the encoder from forgetting everything else.

    A family is a class of the training table (`TrainingTable.labels`); rows without one (-1), and classes of fewer than
    ``members`` rows, are ordinary. An epoch hands out each family once, with members drawn anew; a family never comes
    twice in a batch and stays on one process. A last batch of fewer families than processes is left out. Ordinary rows
    go round without replacement, over as many epochs as that takes; where there are too few of them, an epoch has fewer
    families.

    Args:
        members: of a family in a batch; 1 makes a family of every row.
        ordinary: rows without family that travel with each family. batch_size is a multiple of members + ordinary.
        weights: how good each training row is (N,), such as an image-text match; members are drawn with a chance of
            ``w - lowest of the family + 0.5``. None = alike.
        batch_size, drop_last, seed: as in `BatchMiner`.

    Raises:
        ValueError: numbers that do not fit each other, no ordinary rows where some are wanted, no classes at all.

    Source:
        Sahin et al., arXiv 2311.03964 (members 2, ordinary 8, batches of 200). Differs: batches keep their size, as a
        family that is too small is made of ordinary rows.
    """

    def __init__(
        self,
        members: int = 2,
        ordinary: int = 0,
        weights: Sequence[float] | None = None,
        batch_size: int = 32,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, drop_last, seed)
        if members < 1 or ordinary < 0:
            raise ValueError(f"FamilyBatches(members={members}, ordinary={ordinary}): at least 1 member, 0 ordinary.")
        self.members = members
        self.ordinary = ordinary
        self.weights = weights
        self._family = torch.empty(0, dtype=torch.long)  # (N,) family of each row, -1 = ordinary
        self._chance = torch.empty(0)  # (N,)
        self._groups = 0  # families of an epoch

    def attach(self, table: TrainingTable) -> None:
        super().attach(table)
        if self.batch_size % (self.members + self.ordinary):
            raise ValueError(
                f"FamilyBatches(members={self.members}, ordinary={self.ordinary}): batch_size={self.batch_size} is no "
                f"multiple of {self.members + self.ordinary}. Set data.init_args.batch_size to one."
            )
        if table.labels is None:
            raise ValueError("FamilyBatches needs the family of each row, and this training set has none (labels).")
        if self.weights is not None and len(self.weights) != len(table):
            raise ValueError(f"FamilyBatches has {len(self.weights)} weights for {len(table)} training rows.")
        if self.members == 1:
            self._family = torch.where(table.labels >= 0, torch.arange(len(table)), -1)
        else:
            self._family = _large_enough(table.labels, self.members)
        families = int(self._family[self._family >= 0].unique().numel())
        ordinary = int((self._family < 0).sum())
        if families and ordinary < self.ordinary:
            raise ValueError(
                f"FamilyBatches wants {self.ordinary} ordinary rows for each family, and the training set has "
                f"{ordinary} in all. Set ordinary lower, or 0."
            )
        self._chance = torch.ones(len(table), dtype=torch.float64)
        if self.weights is not None:
            self._chance = chances(torch.tensor(self.weights, dtype=torch.float64), self._family)
        self._groups = min(families, ordinary // self.ordinary) if self.ordinary else families
        if not self._groups:
            log.warning("FamilyBatches: no family has %d rows, so that batches are ordinary rows alone.", self.members)
        else:
            log.info(
                "FamilyBatches: %d families and %d ordinary rows; %d families in an epoch, %d in a batch",
                families,
                ordinary,
                self._groups,
                self._global_batch_size() // (self.members + self.ordinary),
            )

    @property
    def together(self) -> int:
        return self.members + self.ordinary if self._groups else 1

    @property
    def num_rows(self) -> int:
        rows = len(self._attached())
        return self._groups * (self.members + self.ordinary) if self._groups else rows

    def arrange(self, rows: Tensor, epoch: int) -> Tensor:
        generator = self.generator(epoch)
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        if not self._groups:
            return shuffled
        family = self._family[shuffled]
        lottery = torch.rand(len(shuffled), generator=generator, dtype=torch.float64).log() / self._chance[shuffled]
        if self.members == 1:
            lottery = torch.zeros_like(lottery)  # nobody is left out
        order = lottery.argsort(descending=True, stable=True)
        order = order[family[order].argsort(stable=True)]  # family by family, the drawn ones first
        _, code, number = family[order].unique_consecutive(return_inverse=True, return_counts=True)
        within = torch.arange(len(order)) - (number.cumsum(0) - number)[code]
        taken = order[(family[order] >= 0) & (within < self.members)].view(-1, self.members)
        taken = taken[taken.amin(1).argsort()]  # families in the order in which shuffling met them
        families = shuffled[taken]  # (F, members)
        others = self._others(shuffled[family < 0], epoch, len(families))
        return torch.cat([families[: len(others)], others], dim=1).flatten()

    def _others(self, rows: Tensor, epoch: int, families: int) -> Tensor:
        """(groups, ordinary) rows without family: those whose turn it is in this epoch, each once."""
        groups = min(families, len(rows) // self.ordinary) if self.ordinary else families
        wanted = groups * self.ordinary
        if not wanted:
            return rows[:0].view(groups, 0)
        turns = len(rows) // wanted  # epochs until all have been seen
        order = rows.sort().values
        order = order[torch.randperm(len(order), generator=self.generator(epoch // turns, stream=1))]
        return order[epoch % turns * wanted :][:wanted].view(groups, self.ordinary)


def chances(weights: Tensor, family: Tensor) -> Tensor:
    """(N,) weight of each row less the lowest of its family, plus 0.5; draws are in proportion to it.

    Source:
        Generative-Negative-Mining's code.
    """
    code = family.unique(return_inverse=True)[1]
    lowest = weights.new_full((int(code.max()) + 1,), float(weights.max()))
    lowest.scatter_reduce_(0, code, weights, "amin")
    return weights - lowest[code] + 0.5


def _large_enough(labels: Tensor, members: int) -> Tensor:
    """(N,) the labels of classes with so many rows, -1 for all others."""
    _, code, number = labels.unique(return_inverse=True, return_counts=True)
    return torch.where((labels >= 0) & (number[code] >= members), labels, -1)
