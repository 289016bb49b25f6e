"""The cross-modal loss of Choi et al. (arXiv 2309.01262) as its code computes it, with two faults, and without.

Source: hyeong96/Multimodal-Contrastive-Learning-HAR-with-HNS @ bf2d088.

The faults: N is 2B - 2 although an anchor has B - 1 negatives, in the correction and in the bound (not in the
importance); and positives are (2B, 1) where the weighted negatives are (2B,), so that each of the 2B x 2B terms pairs
one anchor's positive with another's negatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _both_ways(similarity: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Exponentials of the positives (2B,) and of the negatives (2B, B - 1): rows, then columns."""
    size = len(similarity)
    others = ~torch.eye(size, dtype=torch.bool)
    scores = torch.cat([similarity, similarity.T]) / temperature
    negatives = scores[torch.cat([others, others])].view(2 * size, size - 1).exp()
    return (torch.cat([similarity.diagonal()] * 2) / temperature).exp(), negatives


def released(
    similarity: Tensor, temperature: float, tau_plus: float, beta: float, *, easy: bool = False, broadcast: bool = True
) -> Tensor:
    """The published value for (B, B) similarities; ``broadcast=False`` takes the second fault out, not the first."""
    positive, negatives = _both_ways(similarity, temperature)
    if broadcast:
        positive = positive[:, None]  # (2B, 1) meets (2B,)
    if easy:
        return -(positive / (positive + negatives.sum(1))).log().mean()
    number = 2 * len(similarity) - 2
    importance = (beta * negatives.log()).exp()
    raw = (importance * negatives).sum(1) / importance.mean(1)
    corrected = (raw - tau_plus * number * positive) / (1 - tau_plus)
    total = corrected.clamp_min(number * math.exp(-1 / temperature))
    return -(positive / (positive + total)).log().mean()


def corrected(positive: float, negatives: Sequence[float], temperature: float, tau_plus: float, beta: float) -> float:
    """One anchor's loss from its similarities, number by number (section 2.1 of the method's specification)."""
    if not negatives:
        return 0.0
    p = math.exp(positive / temperature)
    e = [math.exp(score / temperature) for score in negatives]
    w = [one**beta for one in e]
    raw = len(e) * sum(a * b for a, b in zip(w, e, strict=True)) / sum(w)
    total = max((raw - tau_plus * len(e) * p) / (1 - tau_plus), len(e) * math.exp(-1 / temperature))
    return -math.log(p / (p + total))
