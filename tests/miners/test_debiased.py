"""The share of positives among unlabelled negatives is taken out, down to the bound that remains."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch

from miners import Block, Debiased, Items, NegativePool, PoolMiner, StepContext
from miners.testing import PoolMinerContract, cost, one_anchor
from tests.oracles import har as oracle


class TestDebiased(PoolMinerContract):
    def make(self) -> PoolMiner:
        return Debiased(tau_plus=0.1)


class TestDebiasedOfDotProducts(PoolMinerContract):
    def make(self) -> PoolMiner:
        return Debiased(tau_plus=0.02, min_similarity=-9.0)


def test_parity_of_one_anchor() -> None:
    negatives = [0.3, 0.75, -0.6, 0.1]
    for tau_plus in (0.0, 0.034, 0.1):
        pool = Debiased(tau_plus)(one_anchor(0.8, negatives, temperature=0.5))
        expected = oracle.corrected(0.8, negatives, 0.5, tau_plus, 0)
        assert float(cost(pool)) == pytest.approx(expected, abs=1e-12)


def test_the_bound_takes_over_without_a_gradient_for_the_negatives() -> None:
    given = torch.tensor([[-0.9, -0.8]], dtype=torch.float64, requires_grad=True)
    pool = one_anchor(0.9, [-0.9, -0.8], temperature=0.2)
    pool = replace(pool, negatives=(replace(pool.negatives[0], given=given),))
    miner = Debiased(0.1)
    corrected = miner(pool)
    assert corrected.mass().item() == pytest.approx(math.log(2) - 1 / 0.2)
    (gradient,) = torch.autograd.grad(cost(corrected).sum(), given)
    assert gradient.abs().max() < 1e-12
    assert miner.statistics(corrected) == {}  # not looked yet
    miner.commit(corrected)
    assert float(miner.clamp_rate) == 1.0
    assert float(miner.statistics(corrected)["clamp_rate"]) == 1.0


def test_says_once_that_most_anchors_are_at_the_bound(caplog) -> None:
    miner, pool = Debiased(0.1), one_anchor(0.9, [-0.9, -0.8], temperature=0.2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            miner.commit(miner(pool))
    assert [record.message.count("Lower tau_plus") for record in caplog.records] == [1]
    later = replace(pool, context=StepContext(step=7))
    unseen = Debiased(0.1)
    unseen.commit(unseen(later))
    assert unseen.clamp_rate is None  # looked at every 50 steps
    easy = Debiased(0.01)
    easy.commit(easy(one_anchor(0.1, [0.5, 0.6], temperature=0.5)))
    assert float(easy.clamp_rate) == 0.0


def test_several_positives_count_as_their_mean() -> None:
    scores, negatives = (torch.tensor([row], dtype=torch.float64) for row in ([0.8, 0.2, 0.9], [0.6, 0.5]))
    own = Block(Items(), "positive", given=scores, usable=torch.tensor([[True, True, False]]))
    pool = NegativePool(Items(ids=torch.tensor([0])), own, 0.5).add(Block(Items(), "mined", given=negatives))
    mean = (math.exp(0.8 / 0.5) + math.exp(0.2 / 0.5)) / 2
    expected = (math.exp(1.2) + math.exp(1.0) - 0.1 * 2 * mean) / 0.9
    assert float(Debiased(0.1)(pool).mass()) == pytest.approx(math.log(expected), abs=1e-12)


def test_synthetic_candidates_are_left_alone() -> None:
    pool = one_anchor(0.5, [0.4, 0.3], temperature=0.5)
    mixed = pool.add(Block(Items(), "mixed", given=torch.tensor([[0.45]]).double(), real=False))
    corrected = Debiased(0.1)(mixed)
    assert corrected.negatives[1].log_weight is None
    assert float(corrected.mass(real=True)) == pytest.approx(float(Debiased(0.1)(pool).mass()), abs=1e-12)


@pytest.mark.parametrize("tau_plus", [-0.1, 1.0])
def test_says_what_tau_plus_may_be(tau_plus: float) -> None:
    with pytest.raises(ValueError, match="0 <= tau_plus < 1"):
        Debiased(tau_plus)
