"""InfoNCE: the softmax of each positive against the mass of all negatives."""

from __future__ import annotations

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

    Shapes:
        B anchors; (sum, count) 0-dim, count = anchors with a positive. Temporary memory: a few B x N, by block.

    Source:
        van den Oord et al., arXiv 1807.03748, equation 4; several positives: SupCon, arXiv 2004.11362, equation 2
        (L_out), differs in the denominator: other positives are left out.
    """

    def __init__(
        self, temperature: float = 0.05, learn_temperature: bool = False, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(temperature, learn_temperature)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"InfoNCE(label_smoothing={label_smoothing}): a share, so 0 <= label_smoothing < 1.")
        self.label_smoothing = label_smoothing

    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        rows, positive = positive_logits(pool)  # (V,), (V,)
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
