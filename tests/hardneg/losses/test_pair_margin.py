"""CLAN's hinge: the numbers of its specification (section 5), and the published code as an oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hardneg.losses import PairMargin
from miners import Block, InBatch, Items, NegativePool
from miners.testing import random_pool
from tests.oracles import clan

CLEAN = torch.tensor([[1, 0], [0.6, 0.8], [0.8, 0.6]], dtype=torch.float64)
CORRUPTED = torch.tensor([[0, 1], [-0.6, 0.8], [0.6, 0.8]], dtype=torch.float64)


def pool(clean: Tensor = CLEAN, corrupted: Tensor = CORRUPTED) -> NegativePool:
    rows = Items(clean, torch.arange(len(clean)), space="row")
    others = Block(rows, "positive", usable=~torch.eye(len(clean), dtype=torch.bool))
    return NegativePool(rows, others, sides={"drawn": Items(corrupted, space="row")})


def value(loss: PairMargin, *vectors: Tensor) -> Tensor:
    total, count = loss(InBatch()(pool(*vectors)))
    return total / count


def test_t1_distances() -> None:
    between = clan.distance(CLEAN, CLEAN)
    assert between[[0, 0, 1], [1, 2, 2]].tolist() == pytest.approx([0.2, 0.1, 0.02])
    expected = torch.tensor([[0.5, 0.8, 0.2], [0.1, 0.36, 0], [0.2, 0.5, 0.02]], dtype=torch.float64)
    torch.testing.assert_close(clan.distance(CLEAN, CORRUPTED), expected)
    mined = InBatch()(pool())
    torch.testing.assert_close((1 - mined.scores(mined.negatives[0])) / 2, expected)


@pytest.mark.parametrize(
    ("margin", "squared", "expected"),
    [(0.5, False, 0.23), (0.5, True, 0.0784), (1.0, False, 0.404444), (1.0, True, 0.286178)],
)
def test_t2_loss(margin: float, squared: bool, expected: float) -> None:
    ours = float(value(PairMargin(margin, squared=squared)))
    assert ours == pytest.approx(expected, abs=1e-6)
    assert ours == pytest.approx(float(clan.released(CLEAN, CORRUPTED, margin, squared=squared)))


def test_t3_gradients() -> None:
    clean, corrupted = CLEAN.clone().requires_grad_(), CORRUPTED.clone().requires_grad_()
    of_clean, of_corrupted = torch.autograd.grad(value(PairMargin(), clean, corrupted), (clean, corrupted))
    assert of_clean.flatten().tolist() == pytest.approx([0, -0.083333, -0.124, 0.093, -0.043, 0.057333], abs=1e-6)
    assert of_corrupted.flatten().tolist() == pytest.approx([0.058333, 0, 0.032, 0.024, 0.036, -0.027], abs=1e-6)


@pytest.mark.parametrize("mean", ["active", "all"])
def test_gradients_are_those_of_the_loss(mean: str) -> None:
    inputs = tuple(torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = PairMargin(0.9, 0.3, mean, squared=True)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda a, b: value(loss, a, b), inputs)


def test_t5_all_margins_met() -> None:
    clean = CLEAN.clone().requires_grad_()
    loss = value(PairMargin(0.1), clean, -CLEAN)
    assert float(loss) == pytest.approx(0.053333, abs=1e-6)
    alone = value(PairMargin(0.1, positive_share=0.0), clean, -CLEAN)
    assert float(alone) == 0
    assert not bool(torch.autograd.grad(alone, clean)[0].any())


def test_t6_a_collapsed_batch_costs_a_quarter() -> None:
    ones = torch.ones(4, 8)
    assert float(value(PairMargin(), ones, ones)) == pytest.approx(0.25, abs=1e-6)
    # round-off of 1e-7 over an epsilon of 1e-6, in the place of 0
    assert float(clan.released(ones * 0.3, ones * 0.3, 0.5)) != pytest.approx(0.25, abs=1e-3)


def test_mean_over_all() -> None:
    violations = (0.5 - clan.distance(CLEAN, CORRUPTED)).clamp_min(0).mean()
    assert float(value(PairMargin(positive_share=0, mean="all"))) == pytest.approx(float(violations))


def test_weights_multiply() -> None:
    mined = InBatch()(pool())
    doubled = mined.weight(lambda scores, block: torch.full_like(scores, 2.0).log())
    loss = PairMargin(positive_share=0)
    torch.testing.assert_close(loss(doubled)[0], 2 * loss(mined)[0])


@pytest.mark.parametrize("find", [lambda: InBatch()(random_pool()), lambda: random_pool()])
def test_usual_pairs_and_no_negatives(find: Callable[[], NegativePool]) -> None:
    total, count = PairMargin()(find())
    assert int(count) == 6
    assert bool(torch.isfinite(total))
    assert total.requires_grad


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"PairMargin\(margin=0, positive_share=0.5\): a margin in \(0, 1\]"):
        PairMargin(0)
    with pytest.raises(ValueError, match="wants 'active' or 'all'"):
        PairMargin(mean="most")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="PairMargin compares by cosine"):
        PairMargin()(random_pool(kind="scores_only"))
