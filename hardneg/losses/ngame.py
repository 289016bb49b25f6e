"""NGAME's M1 loss: a hinge on the hardest in-batch negatives, softly weighted."""

from __future__ import annotations

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


def _softmax_of(logits: Tensor, valid: Tensor) -> Tensor:
    """Softmax over valid entries; 0 elsewhere, also where none is valid."""
    weight = (logits - logits.detach().amax(1, keepdim=True)).exp().where(valid, 0)
    return weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
