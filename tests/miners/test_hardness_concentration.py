"""Weights by hardness; the numbers are those of the published codes of HCL and of cross-modal HAR."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hardneg.losses import InfoNCE
from miners import Block, Debiased, HardnessConcentration, InBatch, Items, NegativePool, PoolMiner
from miners.testing import PoolMinerContract, cost, one_anchor
from tests.oracles import har as oracle

DOUBLE = torch.float64
A = torch.tensor([[1, 0], [0.6, 0.8], [-0.8, 0.6]], dtype=DOUBLE)
B = torch.tensor([[0.6, 0.8], [0.8, 0.6], [-1, 0]], dtype=DOUBLE)
CORNERS = [(0.5, 0, 0), (0.5, 0.1, 0), (0.5, 0.1, 1), (0.1, 0.1, 1)]


class TestHardnessConcentration(PoolMinerContract):
    def make(self) -> PoolMiner:
        return HardnessConcentration(beta=1.0)


class TestHardnessConcentrationDetached(PoolMinerContract):
    def make(self) -> PoolMiner:
        return HardnessConcentration(beta=2.0, detach_weights=True)


def chain(tau_plus: float, beta: float, detach: bool = False) -> list[PoolMiner]:
    return [InBatch(), HardnessConcentration(beta, detach), Debiased(tau_plus)]


def mined(pool: NegativePool, miners: Sequence[PoolMiner]) -> NegativePool:
    for miner in miners:
        pool = miner(pool)
    return pool


def cross_modal(a: Tensor, b: Tensor, temperature: float, **parts: object) -> list[NegativePool]:
    """Simultaneous recordings of two modalities, one pool per direction."""
    ids = torch.arange(len(a))
    left, right = Items(a, ids, space="inertial"), Items(b, ids, space="skeleton")
    pools = []
    for anchors, others in ((left, right), (right, left)):
        own = Block(others.map(lambda part: part[:, None]), "positive")
        sides = {"anchors": anchors, "positives": others}
        pools.append(NegativePool(anchors, own, temperature, sides=sides, **parts))  # type: ignore[arg-type]
    return pools


def two_views(a: Tensor, b: Tensor, temperature: float) -> NegativePool:
    """SimCLR: 2B anchors of one space, the other view as positive, all of both views as candidates."""
    instance, size = torch.arange(2 * len(a)), len(a)
    views = Items(torch.cat([a, b]), instance, space="window")
    others = views.take((instance + size) % (2 * size))
    own = Block(others.map(lambda part: part[:, None]), "positive")
    return NegativePool(views, own, temperature, sides={"anchors": views, "positives": views})


def both_ways(a: Tensor, b: Tensor, temperature: float, miners: Sequence[PoolMiner], **parts: object) -> Tensor:
    """(2B,) losses: rows, then columns."""
    return torch.cat([cost(mined(pool, miners)) for pool in cross_modal(a, b, temperature, **parts)])


def close(value: Tensor, expected: object, digits: int = 6) -> None:
    assert value.detach().tolist() == pytest.approx(expected, abs=0.51 * 10**-digits)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.5, (0.948680, 0.854474, 1.110283, 1.217872, 1.284257, 1.267960)),
        (0.1, (1.412909, 1.393205, 1.965038, 2.032018, 2.072080, 1.997900)),
    ],
)
def test_t1_two_views(temperature: float, expected: Sequence[float]) -> None:
    settings = [(0, 0), (0.1, 0), (0.1, 0.5), (0.1, 1), (0.1, 2), (0, 1)]
    for (tau_plus, beta), value in zip(settings, expected, strict=True):
        pool = mined(two_views(A, B, temperature), chain(tau_plus, beta))
        assert pool.count().tolist() == [4] * 6
        close(cost(pool).mean(), value)


@pytest.mark.parametrize(
    ("corner", "spec", "too_many", "published"),
    zip(
        CORNERS,
        (0.649632, 0.597779, 0.862639, 1.543835),
        (0.652842, 0.533773, 0.817543, 1.498742),
        (0.647839, 0.526857, 0.810241, 1.427317),
        strict=True,
    ),
)
def test_t2_cross_modal(corner: tuple[float, float, float], spec: float, too_many: float, published: float) -> None:
    temperature, tau_plus, beta = corner
    losses = both_ways(A, B, temperature, chain(tau_plus, beta))
    close(losses.mean(), spec)
    if corner == CORNERS[2]:
        close(losses, [1.388088, 1.129672, 0.145396, 1.651285, 0.808185, 0.053207])
    # the published faults, kept where they belong
    close(oracle.released(A @ B.T, *corner, broadcast=False), too_many)
    close(oracle.released(A @ B.T, *corner), published)
    assert float(losses.mean()) != pytest.approx(published, abs=1e-3)


def test_t2_the_published_easy_estimator_is_no_info_nce() -> None:
    close(oracle.released(A @ B.T, 0.5, 0, 0, easy=True), 0.644443)
    close(oracle.released(A @ B.T, 0.5, 0, 0, easy=True, broadcast=False), 0.649632)


@pytest.mark.parametrize(("detach", "expected"), [(False, (0.083376, -0.135810)), (True, (0.055148, -0.151773))])
def test_t3_gradients(detach: bool, expected: tuple[float, float]) -> None:
    """With respect to ready unit vectors as free leaves: the dot product is what is differentiated."""
    a = A.clone().requires_grad_()
    loss = both_ways(a, B, 0.5, chain(0.1, 1, detach), similarity="dot").mean()
    (gradient,) = torch.autograd.grad(loss, a)
    close(gradient[0], list(expected))


def test_t4_with_equal_positives_the_broadcast_does_not_show() -> None:
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=DOUBLE)
    a = F.normalize(A, dim=1)
    similarity = a @ (a @ turn).T
    assert similarity.diagonal().tolist() == pytest.approx([0.8] * 3)
    one, other = (oracle.released(similarity, 0.5, 0.1, 1, broadcast=either) for either in (True, False))
    assert float(one) == pytest.approx(float(other), abs=1e-14)


def test_t5_nothing_to_do_is_cross_entropy() -> None:
    similarity = A @ B.T / 0.5
    expected = (F.cross_entropy(similarity, torch.arange(3)) + F.cross_entropy(similarity.T, torch.arange(3))) / 2
    assert float(both_ways(A, B, 0.5, chain(0, 0)).mean()) == pytest.approx(float(expected), abs=1e-12)


def test_t5_loss_rises_with_beta() -> None:
    losses = [float(both_ways(A, B, 0.5, chain(0, beta)).mean()) for beta in (0, 0.25, 0.5, 1, 2, 4)]
    assert losses == sorted(losses)
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_t5_equals_the_naive_form(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 5, generator=generator, dtype=DOUBLE) for _ in range(2))
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    for tau_plus, beta in ((0, 1), (0.1, 0), (0.1, 1), (0.03, 2)):
        expected = [
            oracle.corrected(
                float(rows[i, i]), [float(rows[i, j]) for j in range(7) if j != i], temperature, tau_plus, beta
            )
            for rows in (similarity, similarity.T)
            for i in range(7)
        ]
        found = both_ways(a, b, temperature, chain(tau_plus, beta))
        assert found.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-10)  # softplus of torch is x itself above 20


@pytest.mark.parametrize(("tau_plus", "beta"), [(0.1, 1.0), (0.0, 2.0), (0.1, 0.0)])
def test_t5_one_masked_entry_is_a_deleted_column(tau_plus: float, beta: float) -> None:
    chained = chain(tau_plus, beta)[1:]
    all_three = one_anchor(positive=0.8, candidates=[0.1, 0.7, -0.4], temperature=0.5)
    masked = all_three.mask(lambda scores, block: scores == 0.7, reason="test")
    deleted = one_anchor(positive=0.8, candidates=[0.1, -0.4], temperature=0.5)
    close(cost(mined(masked, chained)), cost(mined(deleted, chained)).tolist(), digits=12)


def test_small_temperatures_do_not_overflow() -> None:
    a, b = A.float(), B.float()
    for temperature in (0.07, 0.01):
        losses = both_ways(a, b, temperature, chain(0.1, 1))
        wide = both_ways(A, B, temperature, chain(0.1, 1))
        torch.testing.assert_close(losses, wide.float(), rtol=1e-4, atol=1e-4)


def test_mean_weight_is_one_and_synthetic_candidates_keep_theirs() -> None:
    pool = mined(cross_modal(A, B, 0.5)[0], [InBatch()])
    mixes = Items(B.flip(0), space="skeleton")
    pool = pool.add(Block(mixes, "mixed", real=False))
    weighted = HardnessConcentration(1.0)(pool)
    weights = weighted.negatives[0].log_weight
    assert weights is not None
    usable = weighted.usable_of(weighted.negatives[0])
    assert (weights.exp() * usable).sum(1).tolist() == pytest.approx([2.0] * 3)
    assert weighted.negatives[1].log_weight is None


def test_weights_of_a_miner_before_count_in_the_importance() -> None:
    pool = one_anchor(positive=0.5, candidates=[0.2, 0.4], temperature=1.0)
    lifted = pool.weight(lambda scores, block: torch.tensor([[0.3, 0.1]], dtype=DOUBLE))
    same = one_anchor(positive=0.5, candidates=[0.5, 0.5], temperature=1.0)
    total, expected = (HardnessConcentration(1.0)(one).mass() for one in (lifted, same))
    assert float(total) == pytest.approx(float(expected))


def test_says_what_beta_may_be() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        HardnessConcentration(beta=-1)


def test_the_loss_is_info_nce_over_what_the_chain_left() -> None:
    pools = [mined(pool, chain(0.1, 1)) for pool in cross_modal(A, B, 0.5)]
    total = sum(float(term / count) for term, count in map(InfoNCE(0.5), pools)) / 2
    assert total == pytest.approx(0.862639, abs=1e-6)
