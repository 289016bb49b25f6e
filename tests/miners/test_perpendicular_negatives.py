"""A negative is pushed away only by what it does not share with the positive."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from miners import Block, InBatch, Items, NegativePool, PerpendicularNegatives, PoolMiner, SelfBlocks
from miners.testing import PoolMinerContract, cost, random_pool
from tests.oracles.other_negatives import perpendicular


class TestPerpendicularNegatives(PoolMinerContract):
    def make(self) -> PoolMiner:
        return PerpendicularNegatives()


class TestPerpendicularNegativesAbove(PoolMinerContract):
    def make(self) -> PoolMiner:
        return PerpendicularNegatives(strength=1.0, above=0.2)


def pool_of(q: Tensor, p: Tensor, n: Tensor, temperature: float = 1.0) -> NegativePool:
    """Anchors (B, d), their positives (B, P, d), shared negatives (N, d)."""
    pool = NegativePool(Items(q, space="query"), Block(Items(p), "positive"), temperature)
    return pool.add(Block(Items(n), "in_batch"))


def unit(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=-1)


@pytest.mark.parametrize(("near", "score", "expected"), [(0.95, 0.88, 0.025), (0.1, 0.5, 0.41), (0.6, 0.7, 0.16)])
def test_hidden_positives_are_disarmed_and_hard_ones_as_well(near: float, score: float, expected: float) -> None:
    """q.p = .9 throughout; vectors in three dimensions that have these cosines."""
    q, p = (1.0, 0.0, 0.0), (0.9, math.sqrt(1 - 0.81), 0.0)
    second = (near - score * p[0]) / p[1]
    n = (score, second, math.sqrt(1 - score**2 - second**2))
    pool = pool_of(*(torch.tensor(part, dtype=torch.float64) for part in ([q], [[p]], [n])))
    mined = PerpendicularNegatives(strength=1.0)(pool)
    assert float(mined.logits(mined.negatives[0])) == pytest.approx(expected, abs=1e-9)
    assert sum(a * b for a, b in zip(q, perpendicular(n, p), strict=True)) == pytest.approx(expected, abs=1e-9)


def test_strength_and_threshold() -> None:
    q, p, n = unit(3, 4, seed=1), unit(3, 1, 4, seed=2), unit(5, 4, seed=3)
    along, own = torch.einsum("bd,nd->bn", p[:, 0], n), (q * p[:, 0]).sum(1, keepdim=True)
    for strength, above in ((0.5, None), (1.0, 0.4), (0.3, -0.5)):
        pool = PerpendicularNegatives(strength, above)(pool_of(q, p, n, 0.2))
        least = 0.0 if above is None else max(above, 0)
        expected = (q @ n.T - strength * along * (along > least) * own) / 0.2
        torch.testing.assert_close(pool.logits(pool.negatives[0]), expected)
        torch.testing.assert_close(pool.scores(pool.negatives[0]), q @ n.T)  # the similarity itself stays


def test_the_lowest_of_several_positives_decides_and_masked_ones_do_not() -> None:
    q, p, n = unit(1, 4, seed=1), unit(1, 3, 4, seed=5), unit(6, 4, seed=3)
    order = (q[:, None] * p).sum(-1)[0].argsort()
    usable = torch.ones(1, 3, dtype=torch.bool)
    for lowest in order[:2]:
        pool = pool_of(q, p, n)
        pool = replace(pool, positives=replace(pool.positives, usable=usable.clone()))
        alone = PerpendicularNegatives()(pool_of(q, p[:, lowest : lowest + 1], n))
        torch.testing.assert_close(PerpendicularNegatives()(pool).mass(), alone.mass())
        usable[0, lowest] = False


def test_the_gradient_goes_through_the_positive_and_not_through_the_common_part() -> None:
    q, p, n = (part.requires_grad_() for part in (unit(2, 4, seed=1), unit(2, 1, 4, seed=2), unit(5, 4, seed=3)))

    def ours(*parts: Tensor) -> Tensor:
        return PerpendicularNegatives(1.0)(pool_of(*parts)).mass().sum()

    def constant(*parts: Tensor) -> Tensor:
        a, b, c = (F.normalize(part, dim=-1) for part in parts)
        common = (b[:, 0] @ c.T).clamp_min(0).detach()
        return (a @ c.T - common * (a * b[:, 0]).sum(1, keepdim=True)).logsumexp(1).sum()

    for one, other in zip(
        torch.autograd.grad(ours(q, p, n), (q, p, n)), torch.autograd.grad(constant(q, p, n), (q, p, n)), strict=True
    ):
        torch.testing.assert_close(one, other)
    fixed = p.detach(), n.detach()  # with these constant, so is the common part: finite differences hold
    assert torch.autograd.gradcheck(lambda anchors: ours(anchors, *fixed), (q,))


def test_blocks_that_compare_no_anchors_are_left_alone() -> None:
    pool = SelfBlocks()(InBatch()(random_pool(2, "symmetric", dtype=torch.float64)))
    pool = pool.add(Block(Items(), "mined", given=torch.zeros(6, 2, dtype=torch.float64)))
    pool = pool.add(Block(Items(), "mixed", given=torch.zeros(6, 2, dtype=torch.float64), real=False))
    mined = PerpendicularNegatives()(pool)
    weighted = {block.origin: block.log_weight is not None for block in mined.negatives}
    assert weighted == {"in_batch": True, "queries": True, "documents": False, "mined": False, "mixed": False}


@given(st.integers(0, 10**6), st.floats(0.05, 1.0))
@settings(max_examples=30, deadline=None)
def test_laws(seed: int, strength: float) -> None:
    q, p, n = unit(3, 4, seed=seed), unit(3, 1, 4, seed=seed + 1), unit(5, 4, seed=seed + 2)
    plain, mined = pool_of(q, p, n, 0.2), PerpendicularNegatives(strength)(pool_of(q, p, n, 0.2))
    own = (q * p[:, 0]).sum(1)
    softer = cost(mined) <= cost(plain) + 1e-12
    assert bool(softer[own > 0].all())  # where the positive is near, it only ever takes away
    apart = n - torch.einsum("nd,d->n", n, p[0, 0])[:, None] * p[0, 0]  # perpendicular already
    alone = pool_of(q[:1], p[:1], apart)
    torch.testing.assert_close(PerpendicularNegatives(strength)(alone).mass(), alone.mass())


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"PerpendicularNegatives\(strength=0\): a share"):
        PerpendicularNegatives(0)
    with pytest.raises(ValueError, match=r"PerpendicularNegatives\(above=1.5\): a cosine"):
        PerpendicularNegatives(above=1.5)
    pool = replace(pool_of(unit(1, 4), unit(1, 1, 4), unit(2, 4)), similarity="dot")
    with pytest.raises(ValueError, match="projects unit vectors, and this pool compares by 'dot'"):
        PerpendicularNegatives()(pool)
