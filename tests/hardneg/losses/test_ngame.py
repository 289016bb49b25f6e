"""NGAME's hinge: the numbers of the published function, and the one that it gets wrong."""

from __future__ import annotations

import pytest
import torch

from hardneg.losses import NGAMEClassifierHinge, NGAMEHinge
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


def classifier_loss(scores: list[list[float]], right: list[list[int]], positives: int, negatives: int) -> torch.Tensor:
    """Every label is a column for every anchor; its own are its positives."""
    usable = torch.tensor(right) == 1
    given = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    labels = Items(ids=torch.arange(given.shape[1]))
    base = NegativePool(
        Items(ids=torch.arange(len(given)), space="query"), Block(labels, "classes", given=given, usable=usable)
    )
    total, count = NGAMEClassifierHinge(0.2, positives, negatives)(base.add(Block(labels, "classes", given=given)))
    total.backward()
    assert given.grad is not None
    assert bool(torch.isfinite(given.grad).all())
    return total.detach() / count


def test_t7_classifiers() -> None:
    scores = [[0.9, 0.2, 0.6, 0.5, 0.1], [0.3, 0.7, 0.4, 0.75, 0], [0.1, 0.2, 0.8, 0.55, 0.6]]
    right = [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1]]
    assert float(classifier_loss(scores, right, positives=3, negatives=2)) == pytest.approx(0.027778, abs=5e-7)


def test_as_many_labels_as_anchors_are_no_other_case() -> None:
    """The published code takes the diagonal for the positives then, and returns 0.2."""
    scores, right = [[0.1, 0.9, 0.8], [0.7, 0.2, 0.3], [0.4, 0.5, 0.6]], [[0, 1, 1], [1, 0, 0], [0, 0, 1]]
    assert float(classifier_loss(scores, right, positives=2, negatives=1)) == pytest.approx(0.016667, abs=5e-7)


def test_an_anchor_without_negatives_or_positives_costs_nothing() -> None:
    assert float(classifier_loss([[0.1, 0.2]], [[1, 1]], positives=3, negatives=2)) == 0
    with_one_more = classifier_loss([[0.1, 0.2], [0.9, 0.8]], [[1, 0], [0, 0]], positives=1, negatives=1)
    assert float(with_one_more) == pytest.approx(0.3)  # the second anchor does not count


def test_the_classifier_hinge_says_what_it_wants() -> None:
    with pytest.raises(ValueError, match=r"NGAMEClassifierHinge\(num_positives=0, num_negatives=5\): at least 1 each"):
        NGAMEClassifierHinge(num_positives=0)
