"""Lists of different lengths as two tensors: the known positives of each anchor, the mined negatives of each query."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """B lists of int64 ids in compressed rows: list ``i`` is ``values[offsets[i] : offsets[i + 1]]``.

    Args:
        offsets: (B + 1,) int64, starts with 0, never falls, ends with ``len(values)``.
        values: (V,) int64 ids.

    Raises:
        ValueError: the two tensors do not describe B lists.

    Example:
        >>> Ragged.from_lists([[7, 9], [], [1]]).to_lists()
        [[7, 9], [], [1]]
    """

    offsets: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        if self.offsets.ndim != 1 or self.values.ndim != 1 or len(self.offsets) < 1:
            raise ValueError(
                f"Ragged wants 1-D offsets (B + 1,) and values (V,); got shapes {tuple(self.offsets.shape)} and "
                f"{tuple(self.values.shape)}."
            )

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int]]) -> Ragged:
        """Build from Python lists; the order inside each list is kept."""
        rows = [list(row) for row in lists]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return cls(offsets, torch.tensor([value for row in rows for value in row], dtype=torch.long))

    @classmethod
    def from_pairs(cls, rows: Tensor, values: Tensor, num_rows: int) -> Ragged:
        """Build from (row, value) pairs, (V,) each; pairs of one row keep their order."""
        order = torch.argsort(rows, stable=True)
        counts = torch.bincount(rows, minlength=num_rows)
        return cls(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), values[order])

    @classmethod
    def empty(cls, num_rows: int, device: torch.device | str = "cpu") -> Ragged:
        """``num_rows`` empty lists."""
        return cls(
            torch.zeros(num_rows + 1, dtype=torch.long, device=device), torch.empty(0, dtype=torch.long, device=device)
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """(B,) number of ids of each list."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def row_of_value(self) -> Tensor:
        """(V,) the list that each value belongs to."""
        return torch.repeat_interleave(
            torch.arange(len(self), device=self.offsets.device), self.lengths, output_size=len(self.values)
        )

    def select(self, rows: Tensor) -> Ragged:
        """The lists of ``rows`` (n,), in that order; a row may be asked for more than once."""
        lengths = self.lengths[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        within = torch.arange(int(offsets[-1]), device=rows.device) - torch.repeat_interleave(offsets[:-1], lengths)
        return Ragged(offsets, self.values[torch.repeat_interleave(self.offsets[rows], lengths) + within])

    def joined(self, other: Ragged) -> Ragged:
        """Both lists of each row, the other's behind."""
        rows = torch.cat([self.row_of_value, other.row_of_value])
        return Ragged.from_pairs(rows, torch.cat([self.values, other.values]), len(self))

    def padded(self, fill: int = -1) -> Tensor:
        """(B, longest) the lists as a rectangle, ``fill`` behind the end of the shorter ones."""
        width = int(self.lengths.max()) if len(self) else 0
        out = self.values.new_full((len(self), width), fill)
        rows = self.row_of_value
        out[rows, torch.arange(len(self.values), device=rows.device) - self.offsets[rows]] = self.values
        return out

    def to(self, *args: Any, **kwargs: Any) -> Ragged:
        """The same lists on another device."""
        return Ragged(self.offsets.to(*args, **kwargs), self.values.to(*args, **kwargs))

    def to_lists(self) -> list[list[int]]:
        """Python lists, for people and tests."""
        values, offsets = self.values.tolist(), self.offsets.tolist()
        return [values[start:end] for start, end in itertools.pairwise(offsets)]


def pairs_in(rows: Tensor, values: Tensor, lists: Ragged) -> Tensor:
    """Whether each value stands on the list of its row: bool of the shape of ``values``.

    Args:
        rows: of each value, in the same shape or broadcast to it.
        values: (...) ids, at least 0.

    Example:
        >>> lists = Ragged.from_lists([[7, 9], [1]])
        >>> pairs_in(torch.tensor([[0], [1]]), torch.tensor([[7, 1], [7, 1]]), lists).tolist()
        [[True, False], [False, True]]
    """
    base = 1 + max((int(part.max()) for part in (values, lists.values) if part.numel()), default=0)
    return torch.isin(rows * base + values, lists.row_of_value * base + lists.values)
