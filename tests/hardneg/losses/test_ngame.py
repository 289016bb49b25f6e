"""NGAME's hinge: the numbers of the published function, and the one that it gets wrong."""

from __future__ import annotations

import pytest
import torch

from hardneg.losses import NGAMEHinge
from miners import Block, InBatch, Items, NegativePool
from miners.testing import leaves, random_pool
from tests.oracles import pairs as oracle

S = [[0.80, 0.60, 0.20, 0.75], [0.30, 0.50, 0.40, 0.10], [0.55, 0.65, 0.70, 0.20], [0.75, 0.35, 0.10, 0.90]]
LABELS = [[1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]]


def pool(scores: torch.Tensor) -> NegativePool:
    """The batch of spec T6: sampled labels a, b, c, a, as ids; every anchor's known labels are masked by the pool."""
    documents = Items(ids=torch.tensor([0, 1, 2, 0]))
    own = Block(documents.map(lambda part: part[:, None]), "positive", given=scores.diagonal()[:, None])
    base = NegativePool(Items(ids=torch.arange(4), space="query"), own, 1.0)
    return base.add(Block(documents, "in_batch", given=scores, usable=torch.tensor(LABELS) == 0))


def loss(k: int, temperature: float | None) -> torch.Tensor:
    total, count = NGAMEHinge(0.3, k, temperature)(pool(torch.tensor(S, dtype=torch.float64)))
    return total / count


@pytest.mark.parametrize(
    ("k", "temperature", "expected"),
    [(1, None, 0.112500), (1, 0.1, 0.112500), (2, None, 0.068750), (2, 0.1, 0.052781), (3, None, 0.045833)],
)
def test_t6_values(k: int, temperature: float | None, expected: float) -> None:
    assert float(loss(k, temperature)) == pytest.approx(expected, abs=5e-7)


def test_a_missing_slot_has_no_share_in_the_softmax() -> None:
    """Rows 0, 2 and 3 have two negatives: three slots cost them what two cost."""
    scores = torch.tensor(S, dtype=torch.float64)
    for row in (0, 2, 3):
        part = pool(scores)
        others = torch.arange(4)[:, None] != row
        part = part.mask(lambda s, block, others=others: others.expand_as(s), "test")
        two, three = (NGAMEHinge(0.3, k, 0.1)(part)[0] for k in (2, 3))
        assert float(three) == pytest.approx(float(two), abs=1e-12)
        assert float(two) > 0 or row == 3


def test_t6_gradient() -> None:
    scores = torch.tensor(S, dtype=torch.float64, requires_grad=True)
    total, count = NGAMEHinge(0.3, 2, 0.1)(pool(scores))
    (gradient,) = torch.autograd.grad(total / count, scores)
    assert gradient[1].tolist() == pytest.approx([0.009041, -0.125000, 0.115959, 0], abs=5e-7)


def test_t6_the_published_code_lets_positives_back_in() -> None:
    assert oracle.ngame_as_published(S, LABELS, 0.3, 1) == {0.1125}
    assert oracle.ngame_as_published(S, LABELS, 0.3, 2) == {0.06875}
    leaked = oracle.ngame_as_published(S, LABELS, 0.3, 3)
    assert any(value == pytest.approx(0.108333, abs=5e-7) for value in leaked)
    assert min(leaked) > float(loss(3, None)) + 0.05


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_gradients_are_those_of_finite_differences(temperature: float | None) -> None:
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)

    def value(given: torch.Tensor) -> torch.Tensor:
        return NGAMEHinge(0.3, 3, temperature)(pool(given))[0]

    assert torch.autograd.gradcheck(value, (scores,))


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_rows_without_negatives_cost_nothing(temperature: float | None) -> None:
    mined = InBatch()(random_pool(0, "symmetric"))
    emptied = mined.mask(lambda scores, block: (torch.arange(6) < 5)[:, None].expand_as(scores), "test")
    total, count = NGAMEHinge(2.0, 4, temperature)(emptied)
    assert int(count) == 24
    assert total > 0
    for gradient in torch.autograd.grad(total, leaves(mined)):
        assert bool(gradient.isfinite().all())
    nothing = mined.mask(lambda scores, block: torch.ones_like(scores).bool(), "test")
    assert NGAMEHinge(2.0, 4, temperature)(nothing)[0] == 0
