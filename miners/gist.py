"""GIST: a frozen guide decides which candidates may serve as negatives."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from miners.base import PoolMiner
from miners.pool import Block, NegativePool


class GIST(PoolMiner):
    """Mask candidates that the guide finds closer than the anchor's own positive.

    With t_i the guide's similarity of anchor i and its positive, a candidate is dropped where
    ``guide score > t_i - margin`` ("absolute") or ``> t_i - |t_i| * margin`` ("relative"): strictly, row by row, with
    the same t_i in every block. Chain it behind `InBatch` and `SelfBlocks` for the published four blocks. Identities
    (exact duplicates, known positives, diagonals) are the pool's business and masked before the guide is asked.

    Args:
        margin: how far below t_i a candidate must be; 0 keeps everything up to t_i, as published.
        margin_strategy: "absolute" in guide cosine, or "relative" as a share of |t_i|.
        hard_only: also drop candidates that the student itself scores below its positive (official mode "hard").

    Shapes:
        B anchors, N candidates. Only ``usable`` (B, N) changes.

    Source:
        GISTEmbed, arXiv 2402.16829, section 3; margins as in sentence-transformers' GISTEmbedLoss. Differs: explicit
        duplicate and diagonal masks, where the published code relies on the guide scoring them above t_i.
    """

    needs = frozenset({"guide"})

    def __init__(
        self,
        margin: float = 0.0,
        margin_strategy: Literal["absolute", "relative"] = "absolute",
        hard_only: bool = False,
    ) -> None:
        super().__init__()
        if margin_strategy not in ("absolute", "relative"):
            raise ValueError(f"GIST(margin_strategy='{margin_strategy}'): wants 'absolute' or 'relative'.")
        self.margin = margin
        self.margin_strategy = margin_strategy
        self.hard_only = hard_only

    def forward(self, pool: NegativePool) -> NegativePool:
        positive = pool.lowest_positive(guide=True)  # (B, 1)
        scale = positive.abs() if self.margin_strategy == "relative" else 1.0
        threshold = positive - self.margin * scale
        own = pool.lowest_positive() if self.hard_only else None

        def judged_positive(scores: Tensor, block: Block) -> Tensor:
            drop = pool.guide_scores(block) > threshold
            return drop if own is None else drop | (scores < own)

        return pool.mask(judged_positive, reason="gist")
