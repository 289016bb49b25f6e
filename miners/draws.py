"""Random numbers that do not depend on batches, workers or processes: counters, scrambled (splitmix64, Steele 2014)."""

from __future__ import annotations

import torch
from torch import Tensor


class RowGenerator:
    """Random numbers that are a function of (seed, epoch, row).

    A resumed or re-ordered run draws the same numbers for the same row, on any number of processes.

    Args:
        seed: run seed.
        epoch: epoch number, from 0.
        stream: a number that keeps two consumers of one seed apart.

    Example:
        >>> rows = torch.tensor([3, 5])
        >>> bool((RowGenerator(0, 1).uniform(rows, 4)[1] == RowGenerator(0, 1).uniform(rows.flip(0), 4)[0]).all())
        True
    """

    def __init__(self, seed: int, epoch: int, stream: int = 0) -> None:
        self.seed, self.epoch, self.stream = seed, epoch, stream

    def uniform(self, rows: Tensor, n: int) -> Tensor:
        """(len(rows), n) float64 in [0, 1): ``n`` numbers for each row of ``rows`` (B,) int64."""
        counter = rows.long()[:, None] * 1_000_003 + torch.arange(n)  # (B, n)
        state = _state(self.seed, self.epoch, self.stream)
        return _shift_right(splitmix64(splitmix64(counter) + state), 11).double() * 2.0**-53


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by all ``numbers`` (seed, epoch or step, stream), alike on all processes."""
    return torch.Generator().manual_seed(int(_state(*numbers)) & 0x7FFF_FFFF_FFFF_FFFF)


def _state(*numbers: int) -> Tensor:
    """One int64 scrambled from several numbers."""
    state = torch.tensor(0)
    for number in numbers:
        state = splitmix64(state + number)
    return state


def _shift_right(x: Tensor, n: int) -> Tensor:
    """Logical shift of int64: torch's own ``>>`` copies the sign bit."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """Scramble int64 counters; products wrap modulo 2**64, as they must."""
    x = x - 7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
    x = (x ^ _shift_right(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift_right(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift_right(x, 31)
