"""Debiased negatives: take out of the denominator the share that is of the anchor's own class."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from miners.base import PoolMiner, process_count
from miners.pool import NegativePool

log = logging.getLogger(__name__)

LOOK_EVERY = 50  # steps between two looks at the bound: each is one more pass over the logits


class Debiased(PoolMiner):
    """Subtract the positives that must be expected among unlabelled negatives.

    With R the summed exponentials of N negatives and p the positive's (the mean over several), the sum becomes
    ``max((R - tau_plus * N * p) / (1 - tau_plus), N * exp(min_similarity / temperature))``. The second term is the
    least that N true negatives can sum to; where it takes over, the anchor's negatives get no gradient, which is common
    late in training. Behind `HardnessConcentration`, R is the weighted sum, as in HCL.

    Args:
        tau_plus: probability that a random candidate has the anchor's class, in [0, 1): 1 / number of classes, or the
            sum of squared class shares. Above the true one the loss over-corrects: 0.1, the usual value, is three times
            what 27 activities need. Leave the miner out where labels or a guide mask false negatives already.
        min_similarity: the lowest similarity there can be: -1 for cosine; for dot products, minus the squared length.

    Shapes:
        B anchors. ``log_weight`` gains (B, 1), with gradient; synthetic blocks are left as they are.

    Attributes:
        clamp_rate: share of anchors at the lower bound, a 0-dim tensor, at the last of every 50 steps; None before.

    Source:
        DCL, Chuang et al., arXiv 2007.00224, equation 8; HCL, arXiv 2010.04592, equation 5. Differs: in logarithms, so
        that small temperatures do not overflow; N counts each anchor's own usable negatives.
    """

    def __init__(self, tau_plus: float = 0.1, min_similarity: float = -1.0) -> None:
        super().__init__()
        if not 0 <= tau_plus < 1:
            raise ValueError(f"Debiased(tau_plus={tau_plus}): a probability, so 0 <= tau_plus < 1.")
        self.tau_plus = tau_plus
        self.min_similarity = min_similarity
        self.clamp_rate: Tensor | None = None
        self._warned = False

    def forward(self, pool: NegativePool) -> NegativePool:
        raw = pool.mass(real=True)  # (B,) log R
        own = replace(pool, negatives=(pool.positives,))  # positives, summed as negatives are
        log_count, least = self._bound(pool, raw)
        log_positive = own.mass() - own.count().clamp_min(1).to(raw.dtype).log()
        log_prior = torch.tensor(self.tau_plus, dtype=torch.float64).log().item()
        # clamped, because the bound takes over above 0 and an infinite exponential has no gradient to mask
        expected = (log_prior + log_count + log_positive - raw).clamp_max(0)  # log share of R that are positives
        rest = -torch.expm1(expected)
        corrected = raw + rest.where(rest > 0, 1).log() - math.log1p(-self.tau_plus)
        wanted = corrected.where((rest > 0) & (corrected > least), least)
        shift = (wanted - raw).where(pool.count() > 0, 0)[:, None]
        return pool.weight(lambda scores, block: shift)

    @torch.no_grad()
    def commit(self, pool: NegativePool) -> None:
        """Count the anchors at the bound, and say so once where it is most of them."""
        if pool.context.step % LOOK_EVERY:
            return
        mass = pool.mass(real=True)
        filled = pool.count() > 0
        clamped = filled & (mass <= self._bound(pool, mass)[1] + 1e-5)
        self.clamp_rate = clamped.sum() / filled.sum().clamp_min(1)
        if not self._warned and bool(self.clamp_rate > 0.5):
            self._warned = True
            log.warning(
                "Debiased(tau_plus=%g), step %d: %.0f %% of the anchors are at the lower bound, where negatives teach "
                "nothing. Lower tau_plus towards the share of each class.",
                self.tau_plus,
                pool.context.step,
                100 * float(self.clamp_rate),
            )

    def statistics(
        self, pool: NegativePool, combine: Callable[[Tensor], Tensor] = lambda sums: sums
    ) -> dict[str, Tensor]:
        """The clamp rate of the last look, the mean over processes."""
        return {} if self.clamp_rate is None else {"clamp_rate": combine(self.clamp_rate.float()) / process_count()}

    def _bound(self, pool: NegativePool, like: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) log N, and the log of the least that N negatives sum to."""
        log_count = pool.count().clamp_min(1).to(like.dtype).log()
        return log_count, log_count + self.min_similarity / pool.temperature
