"""Perpendicular negatives: push away from what a negative does not share with the positive."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from miners.base import PoolMiner
from miners.pool import Block, Items, NegativePool


class PerpendicularNegatives(PoolMiner):
    """Take out of each negative's logit what the negative shares with the positive.

    For unit vectors the part of n that is perpendicular to p has ``q.n - (n.p)(q.p)`` with the anchor. So a hidden
    positive (n near p) is disarmed, and what has nothing to do with p is left as it was. What is subtracted is
    ``strength * max(n.p, 0) * q.p``; n.p is a constant, the gradient goes through q.p.

    It makes negatives softer: true hard negatives lie near the positive as well. Right where most near things are
    positives that nobody labelled; wrong where one thing must be told apart from its neighbours (instances, faces,
    places); `benchmarks/perpendicular` measures both. Not together with `GIST`, which does the same job with a harder
    cut.

    Args:
        strength: share of the common part that is taken out, in (0, 1].
        above: cosine of negative and positive in [-1, 1) above which this is done; None = wherever it is positive.

    Shapes:
        B anchors, N candidates. ``log_weight`` (B, N) changes; with several positives the one that scores lowest
        decides. Synthetic blocks, ready scores, and blocks that do not compare the anchors are left as they are.

    Raises:
        ValueError: similarities that are dot products.

    Source:
        Perp-Neg, arXiv 2304.04968, which guides diffusion; in the softmax: ours.
    """

    needs = frozenset({"embeddings", "own_positive"})

    def __init__(self, strength: float = 0.5, above: float | None = None) -> None:
        super().__init__()
        if not 0 < strength <= 1:
            raise ValueError(f"PerpendicularNegatives(strength={strength}): a share, so 0 < strength <= 1.")
        if above is not None and not -1 <= above < 1:
            raise ValueError(f"PerpendicularNegatives(above={above}): a cosine, so -1 <= above < 1, or null.")
        self.strength = strength
        self.above = above

    def forward(self, pool: NegativePool) -> NegativePool:
        if pool.similarity != "cosine":
            raise ValueError(
                f"PerpendicularNegatives projects unit vectors, and this pool compares by '{pool.similarity}'. Set "
                "model.init_args.similarity: cosine, or take the miner out."
            )
        near, positive = self._positive(pool)  # (B, 1, d), (B, 1)

        def shared(scores: Tensor, block: Block) -> Tensor | None:
            if block.given is not None or block.left is not None:
                return None
            along = pool.scores(replace(block, left=near)).detach()  # (B, N) n.p
            least = 0.0 if self.above is None else max(self.above, 0.0)
            return -self.strength * along.where(along > least, 0) * positive / pool.temperature

        return pool.weight(shared)

    def _positive(self, pool: NegativePool) -> tuple[Items, Tensor]:
        """Each anchor's lowest usable positive (B, 1, ...), and its cosine with the anchor (B, 1), with gradient."""
        own = replace(pool.positives, given=None)  # a margin is no part of the geometry
        scores = pool.scores(own)
        if scores.shape[1] == 1:
            return own.items, scores
        highest = torch.finfo(scores.dtype).max
        at = scores.detach().where(pool.usable_of(pool.positives), highest).argmin(1)  # (B,)
        rows = torch.arange(len(at), device=at.device)
        return own.items.map(lambda part: part[rows, at][:, None]), scores.gather(1, at[:, None])
