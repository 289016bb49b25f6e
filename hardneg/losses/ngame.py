"""NGAME's losses: a hinge on the hardest negatives, softly weighted; for encoders (M1) and for classifiers (M4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hardneg.losses.base import PoolLoss
from hardneg.losses.info_nce import positive_logits
from hardneg.losses.pairwise import weight_at
from miners.pool import NegativePool


class NGAMEHinge(PoolLoss):
    """``a_n relu(s_n - s_p + margin)`` over the k hardest negatives, a = softmax of violating similarities.

    Entries that do not violate keep a logit of 0 in the softmax, as published; missing entries (fewer than k usable
    negatives) get weight 0, where the published code leaks masked positives in. A negative's ``log_weight`` multiplies
    its terms.

    Args:
        margin: in cosine.
        num_negatives: k.
        temperature: of the softmax over the k; None weighs them alike.

    Shapes:
        B anchors; count = (anchor, positive) pairs x k, which is B x k with one positive each.

    Source:
        NGAME's code, `TripletMarginLossOHNM`; paper arXiv 2207.04452, equation 1.
    """

    def __init__(self, margin: float = 0.3, num_negatives: int = 10, temperature: float | None = 0.1) -> None:
        super().__init__(temperature=1.0)
        self.margin = margin
        self.num_negatives = num_negatives
        self.softmax_temperature = temperature

    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        rows, positive = positive_logits(pool)  # this loss has a temperature of 1: scores
        scores, valid, where = pool.hardest(self.num_negatives)
        scores, valid, given = scores[rows], valid[rows], weight_at(pool, where)[rows]  # (V, k)
        violation = F.relu(scores - positive[:, None] * pool.temperature + self.margin).where(valid, 0)
        if self.softmax_temperature is not None:
            logits = (scores / self.softmax_temperature).where(violation > 0, 0)
            weight = logits.softmax(1) if bool(valid.all()) else _softmax_of(logits, valid)
            violation = weight * violation
        return (given * violation).sum(), rows.new_tensor(len(rows) * self.num_negatives)


class NGAMEClassifierHinge(PoolLoss):
    """``a_pn relu(s_n - s_p + margin)`` over an anchor's lowest positives p and its hardest negatives n.

    a = softmax over n of the violations themselves, those of 0 left out. For anchors with many positives: one-vs-all
    classifiers. Fewer positives or negatives than asked for cost nothing and stay in the count, as published. A
    negative's ``log_weight`` multiplies its terms.

    Args:
        margin: in cosine.
        num_positives: P, the lowest of each anchor.
        num_negatives: K, the hardest of each anchor.

    Shapes:
        B anchors; count = anchors with a positive x P x K.

    Source:
        NGAME's code, the multi-label branch of `TripletMarginLossOHNM`. Differs: a batch whose labels happen to be as
        many as its anchors is no other case, where the published code then takes the diagonal for the positives.
    """

    def __init__(self, margin: float = 0.2, num_positives: int = 3, num_negatives: int = 5) -> None:
        super().__init__(temperature=1.0)
        if num_positives < 1 or num_negatives < 1:
            raise ValueError(
                f"NGAMEClassifierHinge(num_positives={num_positives}, num_negatives={num_negatives}): at least 1 each."
            )
        self.margin = margin
        self.num_positives = num_positives
        self.num_negatives = num_negatives

    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        usable = pool.usable_of(pool.positives)  # (B, P')
        scores = pool.scores(pool.positives).masked_fill(~usable, torch.inf)
        lowest = scores.topk(min(self.num_positives, scores.shape[1]), dim=1, largest=False).values  # (B, P)
        right = lowest < torch.inf
        hardest, valid, where = pool.hardest(self.num_negatives)  # (B, K)
        gap = hardest[:, None] - lowest.masked_fill(~right, 0)[:, :, None] + self.margin  # (B, P, K)
        violation = F.relu(gap).where(right[:, :, None] & valid[:, None], 0)
        share = violation.masked_fill(violation == 0, -100.0).softmax(2)
        total = (weight_at(pool, where)[:, None] * share * violation).sum()
        anchors = usable.any(1).sum()
        return total, anchors * self.num_positives * self.num_negatives


def _softmax_of(logits: Tensor, valid: Tensor) -> Tensor:
    """Softmax over valid entries; 0 elsewhere, also where none is valid."""
    weight = (logits - logits.detach().amax(1, keepdim=True)).exp().where(valid, 0)
    return weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
