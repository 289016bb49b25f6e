"""InfoNCE: the softmax of each positive against the mass of all negatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hardneg.losses.base import PoolLoss
from miners.pool import NegativePool


class InfoNCE(PoolLoss):
    """``log(exp(z_p) + mass) - z_p``, mean over each anchor's positives, then over anchors that have one.

    Several positives are contrasted one at a time: the others of the same anchor stand in no denominator. Weighted and
    masked negatives, several blocks, queues and mixes are all in the pool's mass.

    Args:
        temperature: divides similarities.
        learn_temperature: train it.
        label_smoothing: share of the target spread evenly over the positive and the usable negatives, in [0, 1).
        null_positive: what stands for the positive of an anchor that has none (a query without an answer, a face that
            nobody knows), as a similarity: nothing may score above it. The threshold of verification is a good value.
            None: such anchors teach nothing. It is not learned: with these anchors alone it would rise for ever.

    Shapes:
        B anchors; (sum, count) 0-dim, count = anchors with a positive, all anchors with ``null_positive``. Temporary
        memory: a few B x N, by block.

    Source:
        van den Oord et al., arXiv 1807.03748, equation 4; several positives: SupCon, arXiv 2004.11362, equation 2
        (L_out), differs in the denominator: other positives are left out. The null positive: the virtual reward of
        NGRPO (Nan et al., 2025) as a logit.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        label_smoothing: float = 0.0,
        null_positive: float | None = None,
    ) -> None:
        super().__init__(temperature, learn_temperature)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"InfoNCE(label_smoothing={label_smoothing}): a share, so 0 <= label_smoothing < 1.")
        if null_positive is not None and not math.isfinite(null_positive):
            raise ValueError(f"InfoNCE(null_positive={null_positive}): a similarity, so a finite number, or null.")
        self.label_smoothing = label_smoothing
        self.null_positive = null_positive

    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        rows, positive = positive_logits(pool)  # (V,), (V,)
        if self.null_positive is not None:
            none = (torch.bincount(rows, minlength=len(pool)) == 0).nonzero()[:, 0]
            null = self.null_positive / pool.temperature * positive.new_ones(len(none))
            rows, positive = torch.cat([rows, none]), torch.cat([positive, null])
        mass = pool.mass()[rows]
        log_z = torch.logaddexp(positive, mass)
        terms = log_z - positive
        if self.label_smoothing:
            columns = pool.count(real=False)[rows] + 1
            even = log_z - (positive + pool.total()[rows]) / columns
            terms = (1 - self.label_smoothing) * terms + self.label_smoothing * even
        return per_anchor(terms, rows, len(pool))


def positive_logits(pool: NegativePool) -> tuple[Tensor, Tensor]:
    """Usable (anchor, positive) pairs as rows (V,) and logits (V,): V numbers, not B x P, enter the graph."""
    block = pool.positives
    scores = pool.scores(block)
    if block.usable is None and scores.shape[1] == 1:
        logits = scores[:, 0] / pool.temperature
        rows = torch.arange(len(scores), device=scores.device)
        return rows, logits if block.log_weight is None else logits + block.log_weight[:, 0]
    rows, columns = pool.usable_of(block).nonzero(as_tuple=True)
    logits = scores[rows, columns] / pool.temperature
    if block.log_weight is not None:
        logits = logits + block.log_weight.expand_as(scores)[rows, columns]
    return rows, logits


def per_anchor(terms: Tensor, rows: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
    """Mean of ``terms`` (V,) within each anchor, summed over anchors; and the number of anchors that have any."""
    number = torch.bincount(rows, minlength=anchors)
    return (terms / number[rows]).sum(), (number > 0).sum()
