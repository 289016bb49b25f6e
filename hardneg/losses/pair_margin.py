"""The contrastive loss on pairs: positives together, negatives a margin apart, each with a mean of its own."""

from __future__ import annotations

from typing import Literal

import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from hardneg.losses.base import PoolLoss
from hardneg.losses.info_nce import positive_logits
from miners.base import process_count
from miners.pool import NegativePool

LEAST = 1e-6  # violations below it are round-off, in fp32


class PairMargin(PoolLoss):
    """``positive_share x mean D(a, p) + (1 - positive_share) x mean max(0, margin - D(a, n))``, D = (1 - cosine) / 2.

    A negative's ``log_weight`` multiplies its term. With mean "active" the size of the gradient stays while ever fewer
    negatives violate the margin: a falling loss is then no sign of progress, their number is
    (``train/negatives_per_anchor`` counts all).

    Args:
        margin: in D, (0, 1]; 0.5 is orthogonal, beyond which nothing is pushed.
        positive_share: of the loss, in [0, 1].
        mean: of the negatives: over those that violate the margin ("active", as published) or over all.
        squared: square D and violations first.

    Shapes:
        B anchors with P positives and N negatives; count = usable (anchor, positive) pairs.

    Raises:
        ValueError: a pool of dot products.

    Source:
        CLAN, arXiv 2509.06550, and its code; Hadsell et al., CVPR 2006. Differs: positives are all pairs of two things;
        the code leaves out those whose distance is below 1e-6, and then divides round-off by round-off.
    """

    def __init__(
        self,
        margin: float = 0.5,
        positive_share: float = 0.5,
        mean: Literal["active", "all"] = "active",
        squared: bool = False,
    ) -> None:
        super().__init__(temperature=1.0)
        if not 0 < margin <= 1 or not 0 <= positive_share <= 1:
            raise ValueError(
                f"PairMargin(margin={margin}, positive_share={positive_share}): a margin in (0, 1], a share in [0, 1]."
            )
        if mean not in ("active", "all"):
            raise ValueError(f"PairMargin(mean='{mean}'): wants 'active' or 'all'.")
        self.margin, self.positive_share, self.mean, self.squared = margin, positive_share, mean, squared

    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        if pool.similarity != "cosine":
            raise ValueError("PairMargin compares by cosine. Set model.init_args.similarity to cosine.")
        rows, positive = positive_logits(pool)  # this loss has a temperature of 1: scores
        distance = self._power((1 - positive) / 2)
        total, active = 0 * positive.sum(), rows.new_zeros(())
        for whole in pool.negatives:
            for block in pool.pieces(whole):
                usable = pool.usable_of(block)
                violation = F.relu(self.margin - (1 - pool.scores(block)) / 2).where(usable, 0)
                counted = usable if self.mean == "all" else violation.detach() > LEAST
                weight = 1.0 if block.log_weight is None else block.log_weight.exp()
                total = total + (weight * self._power(violation)).where(counted, 0).sum()
                active = active + counted.sum()
        pairs = rows.new_tensor(len(rows))
        both = pairs.new_tensor([len(rows), int(active)])
        if process_count() > 1:  # two means, whose counts are those of all processes
            dist.all_reduce(both)
        ratio = both[0] / both[1].clamp_min(1)
        return self.positive_share * distance.sum() + (1 - self.positive_share) * ratio * total, pairs

    def _power(self, values: Tensor) -> Tensor:
        return values.square() if self.squared else values
