"""In-batch negatives: the other rows' positives, and what sources drew for the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from miners.base import PoolMiner
from miners.pool import SIDES, Block, Items, NegativePool


class InBatch(PoolMiner):
    """Add the batch itself as negatives: the default head of every chain.

    Each anchor is pushed away from the positives of all other anchors (over all processes), from drawn negatives, and,
    in families with classes, from the other classes' centres.

    Args:
        drawn: drawn negatives serve every anchor of the batch ("shared", as in STAR), only the row that drew them
            ("own"), or nobody ("none").
        others: add the positives of the other anchors too. False leaves drawn negatives alone, as MMCLIP's loss does
            (arXiv 2505.20152, section 3), whose own table has in-batch ones ahead.

    Shapes:
        Adds one block of (B, G) per side, and of (B, number drawn).

    Source:
        Henderson et al., arXiv 1705.00652, section 4; shared drawn negatives: STAR, arXiv 2104.08051.
    """

    needs = frozenset({"sides"})

    def __init__(self, drawn: Literal["shared", "own", "none"] = "shared", others: bool = True) -> None:
        super().__init__()
        if drawn not in ("shared", "own", "none"):
            raise ValueError(f"InBatch(drawn='{drawn}'): wants 'shared', 'own' or 'none'.")
        if drawn == "none" and not others:
            raise ValueError("InBatch(drawn='none', others=False) would add nothing. Leave it out of the chain.")
        self.drawn = drawn
        self.others = others

    def forward(self, pool: NegativePool) -> NegativePool:
        present = [(side, pool.sides[side]) for side in SIDES if side in pool.sides]
        if not present:
            raise ValueError(f"InBatch found no candidates: the pool's sides are {sorted(pool.sides)}.")
        for side, candidates in present:
            block = candidates if isinstance(candidates, Block) else Block(candidates, SIDES[side])
            if side == "drawn" and (self.drawn == "none" or not len(block.items)):
                continue
            if side != "drawn" and not self.others:
                continue
            if side == "drawn" and self.drawn == "own" and block.given is None:
                block = replace(block, usable=_own_rows(pool, block.items))
            pool = pool.add(block)
        return pool


def _own_rows(pool: NegativePool, items: Items) -> Tensor:
    """(B, N) True where the anchor's own row brought the candidate along."""
    if items.rows is None:
        raise ValueError("InBatch(drawn='own') needs Items.rows on the drawn side: which row drew what.")
    anchors = torch.arange(len(pool), device=items.rows.device) + pool.context.offset
    return items.rows[None, :] == anchors[:, None]
