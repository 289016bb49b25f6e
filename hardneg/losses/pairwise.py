"""Losses over (positive, negative) pairs: STAR's, ADORE's, CET's, and the plain triplet hinge."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hardneg.losses.base import PoolLoss
from hardneg.losses.info_nce import per_anchor, positive_logits
from miners.pool import Block, NegativePool


class PairwiseLogistic(PoolLoss):
    """``softplus(s_n - s_p)`` over all usable pairs, one mean over all of them (RankNet, STAR).

    A negative's ``log_weight`` multiplies its pairs (CET).

    Args:
        temperature: divides similarities; STAR uses raw dot products, so 1.
        learn_temperature: train it.

    Shapes:
        count = usable pairs.

    Source:
        STAR, arXiv 2104.08051, section 4.1; CET weights, equation 9 of its paper.
    """

    def __init__(self, temperature: float = 1.0, learn_temperature: bool = False) -> None:
        super().__init__(temperature, learn_temperature)

    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        rows, positive = positive_logits(pool)
        total = 0 * positive.sum()  # a batch without any negative has a gradient too: zeros, which DDP waits for
        count = rows.new_zeros(())
        for block in map(pool.whole, pool.negatives):
            gap = pool.scores(block)[rows] / pool.temperature - positive[:, None]  # (V, N)
            usable = pool.usable_of(block)[rows]
            total = total + (_pair_weight(block, rows) * F.softplus(gap)).where(usable, 0).sum()
            count = count + usable.sum()
        return total, count


class TripletMargin(PoolLoss):
    """``relu(s_n - s_p + margin)`` of each positive against its anchor's hardest negatives.

    A negative's ``log_weight`` multiplies its pairs; which are the hardest, similarities decide.

    Args:
        margin: in similarity units (cosine: [0, 2]).
        num_negatives: hardest negatives per anchor.

    Shapes:
        count = pairs (fewer where an anchor has fewer usable negatives).

    Source:
        FaceNet, arXiv 1503.03832, equation 3, on similarities.
    """

    def __init__(self, margin: float = 0.2, num_negatives: int = 1) -> None:
        super().__init__(temperature=1.0)
        self.margin = margin
        self.num_negatives = num_negatives

    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        rows, positive = positive_logits(pool)
        scores, valid, where = pool.hardest(self.num_negatives)
        hinge = F.relu(scores[rows] - positive[:, None] * pool.temperature + self.margin)
        hinge = weight_at(pool, where)[rows] * hinge
        return hinge.where(valid[rows], 0).sum(), valid[rows].sum()


class LambdaRank(PoolLoss):
    """Pairs weighted by what swapping them would change in the reciprocal rank (ADORE).

    ``|a_p - a_n| softplus(s_n - s_p)``, a_r = 1/r up to ``cutoff`` and 0 beyond, mean over each anchor's pairs, then
    over anchors. Ranks are those of the retrieved list where every block knows them (ADORE); otherwise the places
    that the current scores give positives and negatives of the pool among themselves.

    Args:
        cutoff: ranks beyond it discount to 0; None = none do.
        temperature: divides similarities.

    Shapes:
        B anchors; count = anchors with a positive. Live ranks sort (B, P + all N).

    Source:
        ADORE, arXiv 2104.08051, section 5.2; live ranks: LambdaRank, Burges et al., NIPS 2006. Differs: cutoff None
        means no cut, where the published code's loss is 0.
    """

    def __init__(self, cutoff: int | None = None, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if cutoff is not None and cutoff < 1:
            raise ValueError(f"LambdaRank(cutoff={cutoff}): wants at least 1, or None for no cut.")
        self.cutoff = cutoff

    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        pool = replace(pool, negatives=tuple(map(pool.whole, pool.negatives)))
        rows, positive = positive_logits(pool)
        ranks = _ranks(pool)
        discount = self._discount(ranks[0], positive.dtype)[
            pool.usable_of(pool.positives)
        ]  # (V,), in order of ``rows``
        total, pairs = torch.zeros_like(positive), torch.zeros_like(positive)
        for block, rank in zip(pool.negatives, ranks[1:], strict=True):
            gap = pool.scores(block)[rows] / pool.temperature - positive[:, None]  # (V, N)
            weight = (discount[:, None] - self._discount(rank, positive.dtype)[rows]).abs() * _pair_weight(block, rows)
            allowed = pool.usable_of(block)[rows]
            total = total + (weight * F.softplus(gap)).where(allowed, 0).sum(1)
            pairs = pairs + allowed.sum(1)
        # an anchor whose list holds positives only has no pair to swap: it counts, and costs nothing
        return per_anchor(total / pairs.clamp_min(1), rows, len(pool))

    def _discount(self, rank: Tensor, dtype: torch.dtype) -> Tensor:
        discount = 1.0 / rank.clamp_min(1).to(dtype)
        return discount if self.cutoff is None else discount.where(rank <= self.cutoff, 0)


def _ranks(pool: NegativePool) -> list[Tensor]:
    """(B, P) and (B, N) per block: places in each anchor's list, 1 = best; unusable columns stand at the end."""
    blocks = (pool.positives, *pool.negatives)
    known = [block.rank for block in blocks if block.rank is not None]
    if len(known) == len(blocks):
        return known
    scores = [pool.scores(block).detach() for block in blocks]
    lowest = torch.finfo(scores[0].dtype).min
    listed = torch.cat([s.where(pool.usable_of(b), lowest) for s, b in zip(scores, blocks, strict=True)], dim=1)
    order = listed.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(1, listed.shape[1] + 1, device=listed.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return list(rank.split([s.shape[1] for s in scores], dim=1))


def weight_at(pool: NegativePool, where: Tensor) -> Tensor:
    """(B, k) weights of the candidates that ``hardest`` found at ``where`` (B, k, 2): block and column."""
    log_weight = torch.zeros(where.shape[:2], device=where.device)
    for number, block in enumerate(map(pool.whole, pool.negatives)):
        if block.log_weight is not None:
            columns = pool.usable_of(block).shape[1]
            here = where[:, :, 0] == number
            own = block.log_weight.expand(-1, columns).gather(1, where[:, :, 1].where(here, 0))
            log_weight = own.where(here, log_weight)
    return log_weight.exp()


def _pair_weight(block: Block, rows: Tensor) -> Tensor | float:
    return 1.0 if block.log_weight is None else block.log_weight.exp()[rows]
