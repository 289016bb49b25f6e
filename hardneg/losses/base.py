"""What every loss of a pool is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from miners.pool import NegativePool


class PoolLoss(nn.Module, ABC):
    """A loss that reads a finished pool and returns (sum, count) terms.

    Sums and counts, not means: the mean over processes or chunks is then exact, however uneven they are. Losses read
    scores, logits, mass, hardest and rank; never embeddings.

    Args:
        temperature: divides similarities. Cosine: 0.01 to 0.1 is usual for text, 0.1 to 0.5 for pictures and signals.
        learn_temperature: train it, as log(1 / temperature), which is kept below log(100).

    Attributes:
        needs: what the loss asks of the family or of the miners, in the words of `miners.pool.ABILITIES`.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, temperature: float = 0.05, learn_temperature: bool = False) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"{type(self).__name__}(temperature={temperature}): wants a positive number.")
        self.learn_temperature = learn_temperature
        start = torch.tensor(math.log(1 / temperature))
        if learn_temperature:
            self.logit_scale = nn.Parameter(start)
        else:
            self.register_buffer("logit_scale", start, persistent=False)
        self._fixed = temperature

    @property
    def temperature(self) -> Tensor | float:
        """What pools divide their similarities by."""
        if not self.learn_temperature:
            return self._fixed
        return (-self.logit_scale.clamp(max=math.log(100.0))).exp()

    @abstractmethod
    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        """Sum of the loss over this process' terms, and how many terms that were; both 0-dim."""
