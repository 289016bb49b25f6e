"""AdaMEOW's weights: the published values, the published degeneracy, and that ours has none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hardneg.losses import InfoNCE
from miners import InBatch, LearnedWeights, NegativePool
from miners.testing import PoolMinerContract, cost, random_pool
from tests.miners.test_cluster_weights import DOUBLE, A, Z, pool
from tests.oracles import meow


class TestLearnedWeights(PoolMinerContract):
    def make(self) -> LearnedWeights:
        return LearnedWeights(dim=8, hidden=4)


class TestWaiting(PoolMinerContract):
    def make(self) -> LearnedWeights:
        return LearnedWeights(dim=8, hidden=4, start_step=10)


def published() -> LearnedWeights:
    """With the numbers of the specification's T5."""
    miner = LearnedWeights(dim=2, hidden=1).double()
    for weight, value in zip(miner.parameters(), ([[1, -0.5]], [0.1], [2.0], -0.3), strict=True):
        weight.data = torch.tensor(value, dtype=DOUBLE)
    return miner


def test_t5_weights_and_the_degeneracy_of_the_published_loss() -> None:
    weights = published().log_odds(A, Z).sigmoid().detach()
    inner = torch.tensor([1, -0.5], dtype=DOUBLE)
    torch.testing.assert_close(weights, meow.soft_weights(A, Z, inner, 0.1, 2.0, -0.3))
    assert float(weights[0, 0]) == pytest.approx(0.836624, abs=1e-6)
    assert float(weights[3, 3]) == pytest.approx(0.097530, abs=1e-6)
    assert float(meow.released(A, Z, weights, 0.5).mean()) == pytest.approx(-0.433218, abs=1e-6)
    assert float(meow.released(A, Z, torch.full_like(weights, 1e-6), 0.5).mean()) == pytest.approx(-13.232343, abs=1e-6)


def test_weights_have_a_mean_of_one() -> None:
    mined = published()(pool())
    log_weight = mined.negatives[0].log_weight
    assert log_weight is not None
    torch.testing.assert_close(log_weight.exp().where(mined.usable, 0).sum(1) / 3, torch.ones(4, dtype=DOUBLE))


def test_lowering_all_weights_changes_nothing() -> None:
    miner, low = published(), published()
    miner.outer.data *= 0  # all alike: plain InfoNCE
    low.outer.data *= 0
    low.outer_bias.data -= 50
    for one in (miner, low):
        torch.testing.assert_close(cost(one(pool())), cost(pool()))


def trained(loss: object, miner: LearnedWeights) -> float:
    optimizer = torch.optim.Adam(miner.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        value: Tensor = loss()  # type: ignore[operator]
        value.backward()
        optimizer.step()
    return float(value.detach())


def test_no_trivial_minimum() -> None:
    ours, theirs = published(), published()
    mean = lambda: cost(ours(pool())).mean()  # noqa: E731
    free = lambda: meow.released(A, Z, theirs.log_odds(A, Z).sigmoid(), 0.5).mean()  # noqa: E731
    assert trained(free, theirs) < -5
    similarity = (A @ Z.T / 0.5).exp()
    off = similarity.masked_fill(torch.eye(4, dtype=torch.bool), torch.inf)
    bound = torch.log1p(3 * off.amin(1) / similarity.diagonal())
    found = trained(mean, ours)
    assert found >= float(bound.mean()) > 0


def test_gradients_reach_the_network_and_the_vectors() -> None:
    miner = published()

    def loss(a: Tensor, z: Tensor, *weights: Tensor) -> Tensor:
        names = [name for name, _ in miner.named_parameters()]
        vectors = pool(a.detach(), z.detach())  # to the network they are constants
        mined = torch.func.functional_call(miner, dict(zip(names, weights, strict=True)), (vectors,))
        plain = pool(a, z)
        log_weight = mined.negatives[0].log_weight
        return InfoNCE()(plain.weight(lambda scores, block: log_weight))[0]

    weights = [weight.detach().clone().requires_grad_() for weight in miner.parameters()]
    vectors = (A.clone().requires_grad_(), Z.clone().requires_grad_())
    expected = torch.autograd.grad(loss(*vectors, *weights), (*vectors, *weights))
    direct = torch.autograd.grad(InfoNCE()(miner(pool(*vectors)))[0], (*vectors, *miner.parameters()))
    for one, other in zip(direct, expected, strict=True):
        torch.testing.assert_close(one, other)
    constant = [weight.detach() for weight in weights]
    assert torch.autograd.gradcheck(lambda *w: loss(A, Z, *w), weights)
    assert len(constant) == 4


def test_before_its_step_it_is_plain() -> None:
    late = LearnedWeights(dim=8, start_step=4)
    mined: NegativePool = InBatch()(random_pool())  # step 3
    assert torch.equal(cost(late(mined)), cost(mined))
    gradients = torch.autograd.grad(cost(late(mined)).sum(), list(late.parameters()))
    assert all(not bool(gradient.any()) for gradient in gradients)  # there, so that DDP finds it, and 0
    later = replace(mined, context=replace(mined.context, step=4))
    assert not torch.equal(cost(late(later)), cost(mined))


def test_statistics() -> None:
    miner = published()
    assert float(miner.statistics(miner(pool()))["spread"]) > 0.1
    miner.outer.data *= 0
    assert float(miner.statistics(miner(pool()))["spread"]) == pytest.approx(0, abs=1e-6)


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"LearnedWeights\(dim=0, hidden=16"):
        LearnedWeights(dim=0)
    with pytest.raises(ValueError, match=r"LearnedWeights\(dim=384\) meets vectors of 2 dims. Set its dim to 2"):
        LearnedWeights()(pool())
