"""MoCHi: harder negatives than there are, mixed from the hardest that there are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from miners.base import PoolMiner
from miners.pool import Block, Items, NegativePool

log = logging.getLogger(__name__)

STREAM = 0x0C41  # of the step's random numbers: no other miner draws the same
SMALLEST = 1e-12  # length of a mix of exact opposites
CHUNK = 1 << 20  # numbers of the mixes whose lengths are taken at a time


class Draws(NamedTuple):
    """What is mixed for B anchors: places among each one's hardest negatives, and shares in [0, 1).

    Args:
        first, second, share: (B, s) two different negatives, and the first one's share.
        single, anchor_share: (B, s') a negative that is mixed with the anchor, and the anchor's share.
    """

    first: Tensor
    second: Tensor
    share: Tensor
    single: Tensor
    anchor_share: Tensor


class MoCHi(PoolMiner):
    """Mix each anchor's hardest negatives with each other and with the anchor, and add the mixes as negatives.

    A mix is ``normalize(share * a + (1 - share) * b)``: of two of the hardest, share ~ U(0, 1), or of the anchor and
    one of them, share ~ U(0, max_anchor_share). Mixes are constants: gradient reaches the anchor that is compared with
    them, never what they were mixed from. They are not made: their similarity follows from similarities that are known
    already, ``(share * q.a + (1 - share) * q.b) / |mix|``.

    What is masked is never mixed, so put miners that mask before this one and miners that weigh behind it. Mixes carry
    no id, and are neither counted nor mixed again.

    Args:
        num_hard: N, how many of the hardest negatives of an anchor may be mixed.
        num_pairs: s, mixes of two of them; 0 makes none.
        num_with_anchor: s', mixes of the anchor and one of them; 0 makes none. They want anchors and candidates from
            one encoder.
        warmup_epochs: epochs without mixes; 10 is the paper's for ImageNet-100, 15 for ImageNet-1K.
        max_anchor_share: the anchor's share of a mix is below it, in (0, 0.5]: the negative dominates.
        min_hard: mixing waits until there are so many candidates; None = ``num_hard``. A chain whose queue is smaller
            than ``num_hard`` needs it.
        origins: of the blocks that are mixed from; None = all with real candidates and vectors. ("queue",) is MoCo's.

    Shapes:
        Adds one block of (B, num_pairs + num_with_anchor); those of an anchor with too few negatives are masked.

    Raises:
        ValueError: numbers out of range; a pool of dot products, whose vectors are no unit vectors.

    Source:
        Kalantidis et al., arXiv 2010.01028, section 3. Differs: draws do not depend on the number of processes; two
        mixed negatives are never the same one.
    """

    needs = frozenset({"embeddings", "one_space"})

    def __init__(
        self,
        num_hard: int = 1024,
        num_pairs: int = 256,
        num_with_anchor: int = 128,
        warmup_epochs: int = 10,
        max_anchor_share: float = 0.5,
        min_hard: int | None = None,
        origins: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_hard", num_hard, 1),
            ("num_pairs", num_pairs, 0),
            ("num_with_anchor", num_with_anchor, 0),
            ("warmup_epochs", warmup_epochs, 0),
            ("min_hard", num_hard if min_hard is None else min_hard, 1),
        ):
            if value < least:
                raise ValueError(f"MoCHi({name}={value}): wants at least {least}.")
        if not 0 < max_anchor_share <= 0.5:
            raise ValueError(
                f"MoCHi(max_anchor_share={max_anchor_share}): wants 0 < max_anchor_share <= 0.5, so that a mix is a "
                "negative more than it is the anchor."
            )
        self.num_hard = num_hard
        self.num_pairs = num_pairs
        self.num_with_anchor = num_with_anchor
        self.warmup_epochs = warmup_epochs
        self.max_anchor_share = max_anchor_share
        self.min_hard = num_hard if min_hard is None else min_hard
        self.origins = None if origins is None else tuple(origins)
        if not num_with_anchor:
            self.needs = frozenset({"embeddings"})
        self._told = False

    def forward(self, pool: NegativePool) -> NegativePool:
        if pool.similarity != "cosine":
            raise ValueError(
                "MoCHi mixes unit vectors, and this pool compares by dot product. Set model.init_args.similarity to "
                "cosine."
            )
        sources = self._sources(pool)
        if not self._mixes(pool, sources):
            return pool
        scores, valid, where = replace(pool, negatives=tuple(sources)).hardest(self.num_hard)  # (B, K)
        number = valid.sum(1, keepdim=True)  # (B, 1)
        draws = self.draw(pool, number)
        given, usable = [], []
        if self.num_pairs:
            bank, places = _bank(sources, where)
            length = _lengths(bank, places.gather(1, draws.first), places.gather(1, draws.second), draws.share)
            mixed = torch.lerp(scores.gather(1, draws.second), scores.gather(1, draws.first), draws.share)
            given.append(mixed / length)
            usable.append((number >= 2).expand(-1, self.num_pairs))
        if self.num_with_anchor:
            given.append(_with_anchor(pool.anchors.unit, scores.gather(1, draws.single), draws.anchor_share))
            usable.append((number >= 1).expand(-1, self.num_with_anchor))
        block = Block(Items(), "mixed", given=torch.cat(given, 1), usable=torch.cat(usable, 1), real=False)
        return pool.add(block)

    def commit(self, pool: NegativePool) -> None:
        """Say once that mixing waits, or a queue that is too small for it would go unnoticed."""
        context, found = pool.context, sum(len(block.items) for block in self._sources(pool))
        if not self._told and context.training and context.epoch >= self.warmup_epochs and found < self.min_hard:
            self._told = True
            log.warning(
                "MoCHi waits: there are %d candidates to mix, and it wants %d. If the queue never holds as many, set a "
                "smaller num_hard or min_hard.",
                found,
                self.min_hard,
            )

    @torch.no_grad()
    def statistics(
        self, pool: NegativePool, combine: Callable[[Tensor], Tensor] = lambda sums: sums
    ) -> dict[str, Tensor]:
        """accuracy: share of anchors whose positive is above all real negatives; and above their mixes as well.

        With mixes it falls, which is no sign of a worse encoder.
        """
        positive = pool.lowest_positive()[:, 0]
        right = torch.ones_like(positive, dtype=torch.bool)
        shares = {}
        for name, real in (("accuracy", True), ("accuracy_with_mixes", False)):
            for block in pool.negatives:
                if block.real == real:
                    score, there, _ = replace(pool, negatives=(block,)).hardest(1)
                    right = right & ~((score >= positive[:, None]) & there).any(1)
            shares[name] = right.sum()
        *sums, anchors = combine(torch.stack([*shares.values(), right.new_tensor(len(right), dtype=torch.long)]))
        return {name: total / anchors.clamp_min(1) for name, total in zip(shares, sums, strict=True)}

    def draw(self, pool: NegativePool, number: Tensor) -> Draws:
        """What is mixed, for anchors with ``number`` (B, 1) negatives to choose from."""
        s, singles = self.num_pairs, self.num_with_anchor
        drawn = pool.context.draw(lambda rows, dice: torch.rand(rows, 3 * s + 2 * singles, generator=dice), len(pool))
        dice, like = drawn.to(number.device), pool.anchors.unit
        one, two, share, single, anchor_share = dice.split([s, s, s, singles, singles], dim=1)
        first = (one * number).long()
        second = (two * (number - 1).clamp_min(0)).long()
        second = second + (second >= first)  # another one than the first, all others alike
        return Draws(
            first,
            torch.minimum(second, (number - 1).clamp_min(0)),  # there is no other: its mixes are masked
            share.to(like.dtype),
            (single * number).long(),
            (self.max_anchor_share * anchor_share).to(like.dtype),
        )

    def _sources(self, pool: NegativePool) -> list[Block]:
        """Blocks of real candidates that are compared with the anchor, without the candidates' gradient."""
        found = []
        for block in pool.negatives:
            vectors = block.items.embeddings
            if not block.real or block.left is not None or block.given is not None or vectors is None:
                continue
            if self.origins is None or block.origin in self.origins:
                # a queue has no gradient, and its similarities are shared with the loss
                found.append(replace(block, items=block.items.detach()) if vectors.requires_grad else block)
        return found

    def _mixes(self, pool: NegativePool, sources: Sequence[Block]) -> bool:
        """Whether the warm-up is over, and there is enough to mix."""
        wanted = self.num_pairs + self.num_with_anchor > 0 and pool.context.epoch >= self.warmup_epochs
        return wanted and sum(len(block.items) for block in sources) >= self.min_hard


def _with_anchor(anchors: Tensor, scores: Tensor, share: Tensor) -> Tensor:
    """(B, s') similarity of unit ``anchors`` (B, d) with mixes of themselves and negatives of ``scores`` (B, s').

    The anchor inside the mix and the mix's length are constants: no gradient through them.
    """
    rest = 1 - share
    own = (anchors * anchors.detach()).sum(1, keepdim=True)  # 1, with the gradient of one of the two
    squared = share**2 + rest**2 + 2 * share * rest * scores.detach()
    return (share * own + rest * scores) / squared.clamp_min(SMALLEST**2).sqrt()


@torch.no_grad()
def _bank(sources: Sequence[Block], where: Tensor) -> tuple[Tensor, Tensor]:
    """(R, d) unit vectors of all sources end to end, and the row (B, K) of each of the hardest among them."""
    vectors = [block.items.unit for block in sources]
    bank = torch.cat([part.flatten(0, -2) for part in vectors]) if len(vectors) > 1 else vectors[0].flatten(0, -2)
    ends = torch.tensor([part.shape[:-1].numel() for part in vectors]).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]]).to(where.device)
    strides = torch.tensor([part.shape[1] if part.ndim == 3 else 0 for part in vectors], device=where.device)
    number, column = where.unbind(-1)  # (B, K)
    rows = torch.arange(len(where), device=where.device)[:, None]
    return bank.detach(), starts[number] + strides[number] * rows + column


@torch.no_grad()
def _lengths(bank: Tensor, first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """(B, s) length of ``share * bank[first] + (1 - share) * bank[second]``, some rows at a time."""
    at_once = max(1, CHUNK // max(first.shape[1] * bank.shape[1], 1))
    pairs, shares = torch.stack([first, second], -1), torch.stack([share, 1 - share], -1)  # (B, s, 2)
    lengths = [
        F.embedding_bag(pair.flatten(0, 1), bank, mode="sum", per_sample_weights=weight.flatten(0, 1)).norm(dim=1)
        for pair, weight in zip(pairs.split(at_once), shares.split(at_once), strict=True)
    ]
    return torch.cat(lengths).view_as(first).clamp_min(SMALLEST)
