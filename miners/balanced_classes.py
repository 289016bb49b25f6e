"""Batches of a few rows of each of many classes."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from miners.base import BatchMiner, TrainingTable

log = logging.getLogger(__name__)


class BalancedClasses(BatchMiner):
    """A batch holds ``classes`` = batch_size / per_class classes with ``per_class`` rows each ("P x K", "m per class").

    An epoch hands out every row once. The rows of a class are put into groups of ``per_class`` at random, and groups of
    one class into different batches wherever there are enough of these. What a class has left over (one row, where that
    is all it has) travels in groups with the left-overs of other classes.

    Args:
        per_class: rows of a class in a batch; it divides batch_size.
        batch_size, drop_last, seed: as in `BatchMiner`.

    Raises:
        ValueError: a batch_size that per_class does not divide, or a training set without classes.

    Source:
        Hermans et al., arXiv 1703.07737, section 2; pytorch-metric-learning's `MPerClassSampler`. Differs: rows are
        never handed out twice in an epoch, and none is left out.
    """

    def __init__(self, per_class: int = 4, batch_size: int = 32, drop_last: bool = False, seed: int = 0) -> None:
        super().__init__(batch_size, drop_last, seed)
        if per_class < 1:
            raise ValueError(f"BalancedClasses(per_class={per_class}): wants at least 1.")
        self.per_class = per_class

    @property
    def classes(self) -> int:
        """Classes of one process' batch."""
        return self.batch_size // self.per_class

    def attach(self, table: TrainingTable) -> None:
        super().attach(table)
        if self.batch_size % self.per_class:
            raise ValueError(
                f"BalancedClasses(per_class={self.per_class}) does not divide batch_size={self.batch_size}. Set "
                "data.init_args.batch_size to classes x per_class."
            )
        if table.labels is None:
            raise ValueError("BalancedClasses needs the class of each row, and this training set has none (labels).")
        there = len(table.labels[table.labels >= 0].unique())
        if there < self._groups():
            log.warning(
                "BalancedClasses: the training set has %d classes and a batch wants %d, so that some come twice.",
                there,
                self._groups(),
            )

    def arrange(self, rows: Tensor, epoch: int) -> Tensor:
        labels = self._attached().labels
        assert labels is not None
        generator, size = self.generator(epoch), self.per_class
        rows = rows[torch.randperm(len(rows), generator=generator)]
        rows = rows[labels[rows].argsort(stable=True)]  # class by class, shuffled inside
        of = labels[rows]
        _, code, number = of.unique_consecutive(return_inverse=True, return_counts=True)
        within = torch.arange(len(rows)) - (number.cumsum(0) - number)[code]
        whole = (of >= 0) & (within < (number // size * size)[code])
        loose = rows[~whole]
        loose = loose[torch.randperm(len(loose), generator=generator)]
        mixed = loose[: len(loose) // size * size].view(-1, size)
        groups = torch.cat([rows[whole].view(-1, size), mixed])
        owner = torch.cat([of[whole].view(-1, size)[:, 0], -1 - torch.arange(len(mixed))])  # mixed ones: each its own
        return torch.cat([groups[spread(owner, self._groups(), generator)].flatten(), loose[mixed.numel() :]])

    def _groups(self) -> int:
        """Groups of a batch of all processes."""
        return self._global_batch_size() // self.per_class


def spread(owner: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Order groups (T,) so that batches of ``size`` groups have different owners wherever that is possible.

    Groups are laid out owner by owner, row after row, in a table with a column for each batch; every row is then
    shuffled, those that go on with the owner of the row before into other columns than it has there. The groups that
    fill no batch come last.
    """
    total = len(owner)
    batches = total // size
    code = owner.unique(return_inverse=True)[1]
    shuffled = torch.randperm(int(code.max()) + 1 if total else 0, generator=generator)[code].argsort(stable=True)
    if not batches:
        return shuffled
    late = torch.zeros(total, dtype=torch.bool)
    rest = total - batches * size
    late[torch.arange(rest) * total // max(rest, 1)] = True  # evenly spaced, so of different owners
    table = shuffled[~late].view(size, batches)
    out = torch.empty_like(table)
    taken = table[0, :0]  # columns of the last owner of the row before
    for row, place in enumerate(table):
        columns = torch.randperm(batches, generator=generator)
        going_on = int((owner[place] == owner[table[row - 1, -1]]).sum()) if row else 0
        if going_on:
            first = columns[~torch.isin(columns, taken)][:going_on]
            columns = torch.cat([first, columns[~torch.isin(columns, first)]])
        out[row, columns] = place
        taken = columns[owner[place] == owner[place[-1]]]
    return torch.cat([out.T.flatten(), shuffled[late]])
