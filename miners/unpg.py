"""UNPG: the pairs of different identities inside a batch, as one more column of every anchor's softmax."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from miners.base import PoolMiner
from miners.pool import NOBODY, Block, Items, NegativePool

LOOK_EVERY = 50  # steps between two looks at what is kept: each filters once more


class UNPG(PoolMiner):
    """Push every positive above all pairs of different identities in the batch, not only above its anchor's own.

    Class centres stop being hard once they have settled; pairs of the batch are hard, and few. All of them, over all
    processes, cleaned of outliers by their quartiles, enter the denominator of every anchor: as the logsumexp of their
    logits, one column that all anchors share, which is the same loss as a column for each pair.

    Args:
        whisker: pairs further than this many interquartile ranges outside the quartiles are left out, at both ends:
            very similar ones may be one identity under two names. 1.5 as published for large sets, 1.0 for K-FACE.

    Shapes:
        G anchors of all processes, M pairs <= G (G - 1) / 2. Adds one block (B, 1), not counted and not mined again.
        Memory: one (G, G) product.

    Attributes:
        kept_share: share of the pairs that the filter keeps, at the last of every 50 steps; None before.
        hardest_kept: the highest similarity among them.

    Source:
        UNPG, arXiv 2203.11593, and its code. Differs: pairs of all processes; fewer than 4 pairs are not filtered; no
        pair at all is the plain loss.
    """

    needs = frozenset({"sides", "embeddings"})

    def __init__(self, whisker: float = 1.5) -> None:
        super().__init__()
        if not whisker >= 0:
            raise ValueError(f"UNPG(whisker={whisker}): interquartile ranges, so at least 0.")
        self.whisker = whisker
        self.kept_share: Tensor | None = None
        self.hardest_kept: Tensor | None = None

    def forward(self, pool: NegativePool) -> NegativePool:
        kept, _ = self._pairs(pool)
        if not len(kept):
            return pool
        alone = NegativePool(Items(), _positive(kept, 1), pool.temperature)
        mass = alone.add(Block(Items(), "pairs", given=kept[None])).mass() * pool.temperature  # (1,)
        return pool.add(Block(Items(), "pairs", given=mass.expand(len(pool), 1), real=False))

    @torch.no_grad()
    def commit(self, pool: NegativePool) -> None:
        """Look at what the filter keeps."""
        if pool.context.step % LOOK_EVERY == 0:
            kept, number = self._pairs(pool)
            self.kept_share = kept.new_tensor(len(kept) / max(number, 1))
            self.hardest_kept = kept.amax() if len(kept) else None

    def statistics(
        self, pool: NegativePool, combine: Callable[[Tensor], Tensor] = lambda sums: sums
    ) -> dict[str, Tensor]:
        """What the last look saw; the pairs are those of all processes, so it is alike on each."""
        seen = {"kept_share": self.kept_share, "hardest_kept": self.hardest_kept}
        return {name: value for name, value in seen.items() if value is not None}

    def _pairs(self, pool: NegativePool) -> tuple[Tensor, int]:
        """(M',) similarities that pass, with gradient, and M."""
        faces = pool.sides["anchors"]
        if not isinstance(faces, Items):
            raise ValueError("UNPG compares vectors; the pool's side 'anchors' has only scores.")
        # the pool knows who is the same: each face against all, as if it were an anchor
        every = NegativePool(faces, _positive(faces.unit, len(faces)), similarity=pool.similarity, memo=pool.memo)
        every = every.add(Block(faces, "pairs"))
        usable = every.usable.triu(1)
        if faces.labels is not None:  # a face without a name is nobody's negative
            named = faces.labels != NOBODY
            usable = usable & named & named[:, None]
        similarity = every.scores(every.negatives[0])[usable]  # (M,)
        return similarity[within_whiskers(similarity.detach(), self.whisker)], len(similarity)


def within_whiskers(values: Tensor, whisker: float) -> Tensor:
    """(M,) bool: at most ``whisker`` interquartile ranges outside the quartiles, ends included; all where M < 4.

    Quartiles are members of the list, the ones at floor(0.25 M) and floor(0.75 M) counted from 0: the published code
    does not interpolate.
    """
    number = len(values)
    if number < 4:
        return torch.ones_like(values, dtype=torch.bool)
    low, high = (values.kthvalue(int(share * number) + 1).values for share in (0.25, 0.75))
    reach = whisker * (high - low)
    return (values >= low - reach) & (values <= high + reach)


def _positive(like: Tensor, rows: int) -> Block:
    """A block that stands where a pool wants positives."""
    return Block(Items(), "positive", given=like.new_zeros(rows, 1))
