"""Losses over pairs as loops, and the quirk of NGAME's published hinge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

from miners import Block, NegativePool


def softplus(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def usable_pairs(pool: NegativePool) -> Iterator[tuple[int, int, float, float, float, int, int]]:
    """(anchor, positive, s_p, s_n, weight, rank_p, rank_n) of every usable pair, similarities over the temperature."""
    tau = float(pool.temperature)
    own, allowed = pool.scores(pool.positives).detach(), pool.usable_of(pool.positives)
    for i in range(len(pool)):
        for p in range(own.shape[1]):
            for block in pool.negatives:
                scores, usable = pool.scores(block).detach(), pool.usable_of(block)
                for j in range(scores.shape[1]):
                    if allowed[i, p] and usable[i, j]:
                        weight = (
                            0.0
                            if block.log_weight is None
                            else float(block.log_weight.detach().expand_as(scores)[i, j])
                        )
                        ranks = _rank(pool.positives, i, p), _rank(block, i, j)
                        yield i, p, float(own[i, p]) / tau, float(scores[i, j]) / tau, math.exp(weight), *ranks


def _rank(block: Block, i: int, j: int) -> int:
    return 0 if block.rank is None else int(block.rank[i, j])


def live_ranks(pool: NegativePool, i: int) -> list[list[int]]:
    """Places of one anchor's usable positives and negatives in the list of their scores; 0 where not usable."""
    blocks = (pool.positives, *pool.negatives)
    listed = [
        (-float(pool.scores(block)[i, j]), number, j)
        for number, block in enumerate(blocks)
        for j in range(pool.scores(block).shape[1])
        if pool.usable_of(block)[i, j]
    ]
    places = {(number, j): place for place, (_, number, j) in enumerate(sorted(listed), start=1)}
    return [[places.get((n, j), 0) for j in range(pool.scores(block).shape[1])] for n, block in enumerate(blocks)]


def pairwise_logistic(pool: NegativePool) -> float:
    terms = [weight * softplus(n - p) for _, _, p, n, weight, _, _ in usable_pairs(pool)]
    return sum(terms) / len(terms)


def lambda_rank(pool: NegativePool, cutoff: int | None) -> float:
    """Mean over the pairs of each positive, over the positives of each anchor, over anchors."""
    by_positive: dict[tuple[int, int], list[float]] = {}
    for i, p, s_p, s_n, weight, rank_p, rank_n in usable_pairs(pool):
        discounts = [0.0 if cutoff is not None and rank > cutoff else 1 / rank for rank in (rank_p, rank_n)]
        by_positive.setdefault((i, p), []).append(weight * abs(discounts[0] - discounts[1]) * softplus(s_n - s_p))
    # an anchor that has a positive counts, also where it has no pair
    by_anchor: dict[int, list[float]] = {int(i): [] for i in pool.usable_of(pool.positives).any(1).nonzero()}
    for (i, _), terms in by_positive.items():
        by_anchor.setdefault(i, []).append(sum(terms) / len(terms))
    return sum(sum(terms) / max(len(terms), 1) for terms in by_anchor.values()) / len(by_anchor)


def triplet(pool: NegativePool, margin: float, k: int) -> tuple[float, int]:
    total, count = 0.0, 0
    grouped: dict[tuple[int, int], list[float]] = {}
    for i, p, s_p, s_n, *_ in usable_pairs(pool):
        grouped.setdefault((i, p), []).append(s_n - s_p)
    for gaps in grouped.values():
        hardest = sorted(gaps, reverse=True)[:k]
        total += sum(max(0.0, gap + margin) for gap in hardest)
        count += len(hardest)
    return total, count


def ngame_as_published(
    scores: Sequence[Sequence[float]], labels: Sequence[Sequence[int]], margin: float, k: int
) -> set[float]:
    """`TripletMarginLossOHNM` without its softmax; all values it can have. Source: Extreme-classification/ngame.

    The quirk: positives are masked with -100 for the choice of the k hardest, and their real similarity is gathered
    afterwards. Where fewer than k negatives are left, positives come back as negatives; which ones, the order of ties
    decides.
    """
    totals = {0.0}
    for i, (row, relevant) in enumerate(zip(scores, labels, strict=True)):
        negatives = sorted((s for s, y in zip(row, relevant, strict=True) if not y), reverse=True)[:k]
        positives = [s for s, y in zip(row, relevant, strict=True) if y]
        rows = {
            sum(max(0.0, s - row[i] + margin) for s in (*negatives, *leaked))
            for leaked in combinations(positives, k - len(negatives))
        }
        totals = {total + more for total in totals for more in rows}
    return {round(total / (len(scores) * k), 9) for total in totals}
