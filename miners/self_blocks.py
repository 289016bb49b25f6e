"""Anchors against anchors, positives against positives: two more blocks of a contrastive denominator."""

from __future__ import annotations

from miners.base import PoolMiner
from miners.pool import Block, Items, NegativePool


class SelfBlocks(PoolMiner):
    """Add the q-q and p-p similarities of the batch as negatives.

    Row i of the p-p block compares the positive of anchor i with all positives: it adds repulsion between documents to
    the same softmax. The two diagonals, and everything that is known to belong to the anchor, are masked by the pool.

    Args:
        anchors: add anchors against anchors.
        positives: add positives against positives; best left out where many anchors share an answer.

    Shapes:
        Adds up to two blocks of (B, G).

    Source:
        GISTEmbed, arXiv 2402.16829, equation 3 (blocks QQ and PP).
    """

    needs = frozenset({"sides", "embeddings", "own_positive"})

    def __init__(self, anchors: bool = True, positives: bool = True) -> None:
        super().__init__()
        if not (anchors or positives):
            raise ValueError("SelfBlocks(anchors=False, positives=False) adds nothing: leave it out of the chain.")
        self.anchors = anchors
        self.positives = positives

    def forward(self, pool: NegativePool) -> NegativePool:
        if self.anchors:
            pool = pool.add(Block(_items(pool, "anchors"), "queries"))
        if self.positives:
            left = _one_each(pool.positives.items)
            pool = pool.add(Block(_items(pool, "positives"), "documents", left=left))
        return pool


def _items(pool: NegativePool, name: str) -> Items:
    if name not in pool.sides:
        raise ValueError(f"SelfBlocks({name}=True): the pool's sides are {sorted(pool.sides)}. Set {name}: false.")
    side = pool.sides[name]
    if isinstance(side, Block):
        raise ValueError(f"SelfBlocks compares vectors; the pool's side '{name}' has only scores.")
    return side


def _one_each(items: Items) -> Items:
    """The positives (B, 1, ...) as left sides (B, ...)."""
    if items.embeddings is None or items.embeddings.ndim != 3 or items.embeddings.shape[1] != 1:
        shape = None if items.embeddings is None else tuple(items.embeddings.shape)
        raise ValueError(
            f"SelfBlocks(positives=True) compares one positive per anchor, (B, 1, d); the pool's positives are "
            f"{shape}. Set positives: false."
        )
    return items.map(lambda part: part[:, 0])
