"""CLAN: corrupted copies of the rows themselves as negatives, a stand-in for what nobody has seen yet."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from miners.base import Corrupted, Draw, NegativeSource, TrainingTable
from miners.draws import RowGenerator

log = logging.getLogger(__name__)

TRIED = 4096  # rows by which a corruption is told how often it has to force a change


class Corruption(ABC):
    """Makes of each row something that is no longer of its class. What leaves the class alone makes false negatives.

    A copy that equals its row is no negative: `AugmentedNegatives` leaves it out.
    """

    def attach(self, table: TrainingTable) -> None:  # noqa: B027  (a corruption may need nothing)
        """Learn the rows of the training set."""

    @abstractmethod
    def __call__(self, inputs: Tensor, rows: Tensor, generator: RowGenerator, copy: int) -> Tensor:
        """A corrupted copy of ``inputs`` (B, ...), as a function of (seed, epoch, row, ``copy``)."""


class Resample(Corruption):
    """Draw a share of each row's features anew, independently of the others.

    Each feature's own distribution stays nearly as it was; what a row breaks is how its features hang together.

    Args:
        share: probability that a feature is drawn anew, in (0, 1]. At least one becomes another, in every row: an
            unchanged copy would push a row away from its own class. A large share makes negatives that are easily told
            apart, a small one such that nobody can tell. What is the same in all training rows stays: it would tell a
            copy at once.
        law: what a number becomes. "uniform": between -spread and spread, for standardised features; "marginal": its
            value in another training row; "zero": 0. A category becomes that of another training row, or none ("zero").
            Where every feature is drawn as it was, one that varies takes a value of a training row that has another;
            "zero" makes no copy of a row whose features are 0 already.
        spread: of the uniform law; 1.7, nearly the square root of 3, keeps a variance of 1.

    Attributes:
        forced: share of the training rows in which nothing would have changed by ``share`` alone.
        unchanged: share of them of which there is no copy.

    Shapes:
        (B, F) -> (B, F).

    Raises:
        ValueError: numbers out of range; no row that can be changed.

    Source:
        CLAN, arXiv 2509.06550, and its code (share 0.1). Differs: at least one feature becomes another; categories
        whole; constants stay.
    """

    def __init__(
        self, share: float = 0.1, law: Literal["uniform", "marginal", "zero"] = "uniform", spread: float = 1.7
    ) -> None:
        if not 0 < share <= 1 or not spread > 0:
            raise ValueError(f"Resample(share={share}, spread={spread}): a share in (0, 1], a spread above 0.")
        if law not in ("uniform", "marginal", "zero"):
            raise ValueError(f"Resample(law='{law}'): wants 'uniform', 'marginal' or 'zero'.")
        self.share, self.law, self.spread = share, law, spread
        self._rows: Tensor | None = None  # (N, F) of the training set
        self._feature: Tensor | None = None  # (F,) of each column
        self._wide: Tensor | None = None  # columns whose values are those of other rows
        self._constant: Tensor | None = None  # (F,) columns that are alike in all rows
        self._differs: Tensor | None = None  # (features,) of each, a row that has another value than the first row
        self.forced, self.unchanged = 0.0, 0.0

    def attach(self, table: TrainingTable) -> None:
        if table.inputs is None or table.inputs.ndim != 2:
            raise ValueError("Resample corrupts rows of numbers (N, F). For other inputs, write a Corruption.")
        columns = table.inputs.shape[1]
        self._rows = table.inputs
        self._feature = torch.arange(columns) if table.features is None else table.features
        first = table.inputs == table.inputs[:1]
        self._constant = first.all(0)
        number = int(self._feature.max()) + 1
        # of the columns of a feature, the highest row in which one differs from the first
        self._differs = torch.zeros(number, dtype=torch.long)
        self._differs.scatter_reduce_(0, self._feature, (~first).byte().argmax(0), "amax")
        width = torch.bincount(self._feature)
        taken = width if self.law == "marginal" else width.where(width > 1, 0)
        self._wide = (taken[self._feature] > 0).nonzero()[:, 0]
        tried = torch.linspace(0, len(table) - 1, min(TRIED, len(table))).long()
        made, forced = self._made(table.inputs[tried], tried, RowGenerator(0, 0), 0)
        self.forced = float(forced.double().mean())
        self.unchanged = float((made == table.inputs[tried]).all(1).double().mean())
        if self.unchanged == 1:
            raise ValueError(
                f"Resample(law='{self.law}') can change no row: what varies between them is 0 already, or nothing "
                "varies. Take law: uniform, or give rows that differ."
            )
        if self.forced > 0.01:
            log.warning(
                "Resample(share=%g, law='%s'): of %d features that vary, none becomes another in %.0f %% of the rows; "
                "there one is forced, and in %.0f %% nothing can change, so that they have no copy. A larger share "
                "changes more rows by more than that.",
                self.share,
                self.law,
                len(self._feature[~self._constant].unique()),
                100 * self.forced,
                100 * self.unchanged,
            )

    def __call__(self, inputs: Tensor, rows: Tensor, generator: RowGenerator, copy: int) -> Tensor:
        return self._made(inputs, rows, generator, copy)[0]

    def _made(self, inputs: Tensor, rows: Tensor, generator: RowGenerator, copy: int) -> tuple[Tensor, Tensor]:
        """Copies (B, F), and whether nothing would have changed in each by ``share`` alone, (B,)."""
        if self._rows is None or self._feature is None or self._wide is None or self._constant is None:
            raise RuntimeError("Resample knows no rows yet: call attach(TrainingTable(...)), as data modules do.")
        assert self._differs is not None
        number = int(self._feature.max()) + 1
        start = 2 * number * copy
        tickets, values = generator.uniform(rows, start + 2 * number)[:, start:].split(number, 1)  # (B, number) each
        if self.law == "uniform":
            drawn = ((2 * values - 1) * self.spread).to(inputs.dtype)[:, self._feature]  # (B, F)
        else:
            drawn = torch.zeros_like(inputs)
        if self.law != "zero" and len(self._wide):
            others = (values * len(self._rows)).long()[:, self._feature[self._wide]]  # (B, wide)
            drawn[:, self._wide] = self._rows[others, self._wide].to(inputs.dtype)
        drawn = torch.where(self._constant, inputs, drawn)
        other = self._of_features(drawn != inputs, number)
        if self.law != "zero" and bool((stuck := ~other.any(1)).any()):
            # each feature as in the first row, or, where it is so already, as in a row that differs from that
            there, first = inputs[stuck], self._rows[:1].to(inputs.dtype)
            second = self._rows[self._differs[self._feature], torch.arange(len(self._feature))].to(inputs.dtype)
            as_first = ~self._of_features(there != first, number)[:, self._feature]
            drawn[stuck] = torch.where(self._constant, there, torch.where(as_first, second, first))
            other[stuck] = self._of_features(drawn[stuck] != there, number)
            by_share = (tickets < self.share) & other & ~stuck[:, None]
        else:
            by_share = (tickets < self.share) & other
        # the lowest ticket always, of the features that become another: a category may be drawn as what it was
        eligible = tickets.where(other, 2.0)
        changed = by_share | ((eligible == eligible.amin(1, keepdim=True)) & other)
        return torch.where(changed[:, self._feature], drawn, inputs), ~by_share.any(1)

    def _of_features(self, columns: Tensor, number: int) -> Tensor:
        """(B, number) bool: is it so in one of the columns (B, F) of each feature?"""
        assert self._feature is not None
        return torch.zeros(len(columns), number).index_add_(1, self._feature, columns.float()) > 0


class AugmentedNegatives(NegativeSource):
    """Corrupt each row's own inputs, and let the copies be its negatives.

    For data of one class alone, whose rows are positives of each other (`hardneg.modules.TabularModule`): copies that
    have left the class stand for the attacks, faults and frauds that nobody could show in training. `InBatch` pushes
    every row away from all copies of the batch, as published, or with ``drawn: own`` from those of its own alone.

    Copies have no id, since no data set holds them. They are made in the worker, as a function of (seed, epoch, row).
    A copy that equals its row is left out.

    Args:
        corruption: None = `Resample()`.
        per_anchor: copies of each row.

    Raises:
        ValueError: fewer than one copy; a training set that the corruption cannot use.

    Source:
        CLAN, Wilkie et al., arXiv 2509.06550.
    """

    def __init__(self, corruption: Corruption | None = None, per_anchor: int = 1) -> None:
        if per_anchor < 1:
            raise ValueError(f"AugmentedNegatives(per_anchor={per_anchor}): wants at least 1.")
        self.corruption = Resample() if corruption is None else corruption
        self.per_anchor = per_anchor

    def attach(self, table: TrainingTable) -> None:
        if table.inputs is None:
            raise ValueError(
                "AugmentedNegatives corrupts what a row is made of, and this data module does not hand that over. Use "
                "datamodules.TabularData, or take AugmentedNegatives out of data.init_args.sources."
            )
        self.corruption.attach(table)

    def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
        nobody = rows.new_empty(len(rows), 0)
        return Draw(nobody, nobody.bool(), "augmented")

    def corrupt(self, inputs: Tensor, rows: Tensor, generator: RowGenerator) -> Corrupted:
        copies = torch.stack([self.corruption(inputs, rows, generator, copy) for copy in range(self.per_anchor)])
        copy, row = (copies != inputs).flatten(2).any(2).nonzero(as_tuple=True)
        return Corrupted(copies[copy, row], row)
