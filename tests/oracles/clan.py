"""CLAN's loss and score (arXiv 2509.06550) as its code computes them, faults included.

Source: jackwilkie/CLAN @ 680ab61.

The faults: pairs whose distance is below an epsilon are left out of the positives' count, so that a collapsed batch
divides round-off by round-off; and each class's AUROC is folded to max(a, 1 - a) before the mean is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-6


def distance(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) ``(1 - cosine) / 2``."""
    return (1 - F.normalize(a, dim=1) @ F.normalize(b, dim=1).T) / 2


def released(clean: Tensor, corrupted: Tensor, margin: float, share: float = 0.5, squared: bool = False) -> Tensor:
    """The loss, with the count of pairs above epsilon (and epsilon in its place where there is none)."""
    together, hinge = distance(clean, clean), F.relu(margin - distance(clean, corrupted))
    if squared:
        together, hinge = together.square(), hinge.square()

    def mean(values: Tensor) -> Tensor:
        return values.sum() / (values > EPSILON).sum().clamp_min(EPSILON)

    return share * mean(together) + (1 - share) * mean(hinge)


def folded(areas: Sequence[float]) -> float:
    """The mean AUROC of the published tables."""
    return sum(max(area, 1 - area) for area in areas) / len(areas)
