"""Positive-aware masking: what scores almost like the positive is probably one too."""

from __future__ import annotations

from miners.base import PoolMiner
from miners.pool import NegativePool


class PositiveAware(PoolMiner):
    """Mask candidates that score too close to the anchor's own positive.

    Dropped where ``score > positive - relative_margin * |positive| - absolute_margin``; with several positives the
    lowest of them decides.

    Args:
        relative_margin: share of the positive's score, in [0, 1); 0.05 keeps what is 5 % below it.
        absolute_margin: distance to keep from the positive in score units (cosine: [0, 2]).

    Shapes:
        B anchors, N candidates. Only ``usable`` (B, N) changes.

    Source:
        NV-Retriever, arXiv 2407.15831 (TopK-PercPos, TopK-MarginPos). Differs: ``|positive|``, so that negative
        cosines keep sense.
    """

    def __init__(self, relative_margin: float = 0.05, absolute_margin: float = 0.0) -> None:
        super().__init__()
        if not 0 <= relative_margin < 1:
            raise ValueError(f"PositiveAware(relative_margin={relative_margin}): a share, so 0 <= relative_margin < 1.")
        if absolute_margin < 0:
            raise ValueError(f"PositiveAware(absolute_margin={absolute_margin}): a distance, so at least 0.")
        self.relative_margin = relative_margin
        self.absolute_margin = absolute_margin

    def forward(self, pool: NegativePool) -> NegativePool:
        positive = pool.lowest_positive()  # (B, 1)
        # without a positive the ceiling is nan, and drops nothing
        ceiling = positive - self.relative_margin * positive.abs() - self.absolute_margin
        return pool.mask(lambda scores, block: scores > ceiling, reason="positive_aware")
