"""Which survivors become negatives: the best, any, or by lot weighted with their score.

A draw depends on the seed, the query and the document alone, not on chunks, threads or the order of queries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from miners.offline.candidates import Candidates

MASK = (1 << 64) - 1


class Sampling(ABC):
    """A way to choose ``num_negatives`` of the survivors, without replacement."""

    @abstractmethod
    def keys(self, candidates: Candidates, seed: int) -> Tensor:
        """Give each candidate (Q, K) a key; the largest keys are taken, the earlier one of equals."""

    def choose(self, candidates: Candidates, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Choose: columns (Q, count) in list order and which of them are real (Q, count)."""
        keys = self.keys(candidates, seed).masked_fill(~candidates.usable, float("-inf"))
        order = keys.sort(dim=1, descending=True, stable=True).indices[:, :count]
        chosen = candidates.usable.gather(1, order)
        order = order.masked_fill(~chosen, keys.shape[1]).sort(dim=1).values  # back into list order, empty ones last
        chosen = order < keys.shape[1]
        return order.masked_fill(~chosen, 0), chosen

    def settings(self) -> dict[str, Any]:
        """Constructor arguments, for the table's metadata."""
        return dict(vars(self))


class Top(Sampling):
    """Take the best survivors, in the order of their source (or of the model that rescored them)."""

    def keys(self, candidates: Candidates, seed: int) -> Tensor:
        return -torch.arange(candidates.rows.shape[1], dtype=torch.float64).expand(candidates.rows.shape)


class Random(Sampling):
    """Take survivors with equal chances."""

    def keys(self, candidates: Candidates, seed: int) -> Tensor:
        return lots(seed, candidates)


class Softmax(Sampling):
    """Take survivors with chances that follow ``exp(score / temperature)``, one after the other.

    Args:
        temperature: in score units, > 0; small = nearly top, large = nearly random.
    """

    def __init__(self, temperature: float = 0.05) -> None:
        if temperature <= 0:
            raise ValueError(f"Softmax(temperature={temperature}): must be > 0.")
        self.temperature = temperature

    def keys(self, candidates: Candidates, seed: int) -> Tensor:
        # adding Gumbel noise and taking the largest draws from the softmax without replacement (Gumbel-top-k)
        gumbel = -torch.log(-torch.log(lots(seed, candidates)))
        return candidates.scores.double() / self.temperature + gumbel


def lots(seed: int, candidates: Candidates) -> Tensor:
    """Uniform numbers (Q, K) in (0, 1), a function of (seed, query id, document id)."""
    query = mix(candidates.query_rows + mix(torch.tensor(seed)))
    return ((mix(query[:, None] ^ mix(candidates.rows)) >> 11) & ((1 << 53) - 1)).double().add(0.5) / 2**53


def mix(values: Tensor) -> Tensor:
    """Scramble int64 values so that every bit depends on every bit (the finaliser of SplitMix64)."""
    values = values + signed(0x9E3779B97F4A7C15)
    values = (values ^ shift(values, 30)) * signed(0xBF58476D1CE4E5B9)
    values = (values ^ shift(values, 27)) * signed(0x94D049BB133111EB)
    return values ^ shift(values, 31)


def shift(values: Tensor, bits: int) -> Tensor:
    """Shift right without dragging the sign along."""
    return (values >> bits) & (MASK >> bits)


def signed(value: int) -> int:
    """The same 64 bits as torch's signed integers read them."""
    return value - (1 << 64) if value >= 1 << 63 else value
