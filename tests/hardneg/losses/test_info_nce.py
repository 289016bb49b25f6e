"""InfoNCE over a pool is one big cross-entropy per positive, without the big matrix."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hardneg.losses import InfoNCE
from miners import Block, InBatch, Items, NegativePool, SelfBlocks
from miners.testing import KINDS, leaves, process_share, random_pool
from tests.oracles import pool as oracle


def mean(pool: NegativePool, smoothing: float = 0.0) -> Tensor:
    total, count = InfoNCE(label_smoothing=smoothing)(pool)
    return total / count


def mined(seed: int, kind: str, dtype: torch.dtype = torch.float64, **options: int) -> NegativePool:
    """Several blocks, masks, weights, and a synthetic block."""
    pool = InBatch()(random_pool(seed, kind, dtype=dtype, **options))
    if "own_positive" in KINDS[kind]:
        pool = SelfBlocks()(pool)
    pool = pool.mask(lambda scores, block: scores > 0.6, "test")
    pool = pool.weight(lambda scores, block: 0.5 * scores - 0.2)
    mixes = torch.linspace(-1, 1, 2 * len(pool)).to(pool.mass().dtype).reshape(-1, 2)
    return pool.add(Block(Items(), "mixed", given=mixes, real=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_loss_that_loops_compute(kind: str, smoothing: float, seed: int) -> None:
    pool = mined(seed, kind)
    with torch.no_grad():
        assert float(mean(pool, smoothing)) == pytest.approx(oracle.info_nce(pool, smoothing), rel=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_is_one_concatenated_cross_entropy_with_its_gradient(smoothing: float) -> None:
    pool = SelfBlocks()(InBatch()(random_pool(1, "symmetric", dtype=torch.float64)))
    q, p = leaves(pool)
    a, b = F.normalize(q, dim=1), F.normalize(p, dim=1)
    wide = torch.cat([a @ b.T, a @ a.T, b @ b.T], 1) / 0.1
    keep = pool.usable.clone()
    keep[:, :6] |= torch.eye(6, dtype=torch.bool)
    terms = []
    for row in range(6):  # label smoothing of torch spreads over masked columns: leave them out
        logits = wide[row][keep[row]]
        place = int(keep[row, :row].sum())
        terms.append(F.cross_entropy(logits, torch.tensor(place), label_smoothing=smoothing))
    expected = torch.stack(terms).mean()
    value = mean(pool, smoothing)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(torch.autograd.grad(value, [q, p]), torch.autograd.grad(expected, [q, p]), strict=True):
        torch.testing.assert_close(ours, theirs)


def free_pool(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    weights: Tensor,
    temperature: Tensor,
    shared: bool,
    keep: Tensor,
) -> NegativePool:
    """Everything a gradient can reach, as free leaves: three blocks, one of them each anchor's own."""
    allowed = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0]]).bool()  # two, one, one and no positive
    own = Block(Items(positives if not shared else positives[0]), "positive", usable=allowed)
    pool = NegativePool(Items(anchors), own, temperature)
    pool = pool.add(Block(Items(candidates), "in_batch", usable=keep, log_weight=weights))
    pool = pool.add(
        Block(
            Items(torch.stack([candidates, 1 - candidates, candidates, -candidates])),
            "mined",
            log_weight=weights[:, :1],
        )
    )
    return pool.add(Block(Items(candidates), "documents", left=Items(positives[:, 0])))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_gradients_are_those_of_finite_differences(similarity: str, shared: bool, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    keep = torch.rand(4, 5, generator=generator) > 0.3
    keep[1] = False
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    inputs = (leaf(4, 3), leaf(4, 2, 3), leaf(5, 3), leaf(4, 5), temperature)

    def loss(*parts: Tensor) -> Tensor:
        pool = replace(free_pool(*parts, shared, keep), similarity=similarity)
        return mean(pool, smoothing)

    assert torch.autograd.gradcheck(loss, inputs)


def test_gradient_of_the_learned_temperature() -> None:
    loss = InfoNCE(0.2, learn_temperature=True).double()

    def value(scale: Tensor) -> Tensor:
        pool = replace(mined(0, "symmetric"), temperature=(-scale).exp())
        total, count = loss(pool)
        return total / count

    assert torch.autograd.gradcheck(value, (torch.tensor(1.6, dtype=torch.float64, requires_grad=True),))


def test_an_empty_row_costs_nothing_and_the_others_what_they_cost() -> None:
    pool = InBatch()(random_pool(0, "symmetric"))
    emptied = pool.mask(lambda scores, block: (torch.arange(6) == 2)[:, None].expand_as(scores), "test")
    total, count = InfoNCE()(emptied)
    whole, _ = InfoNCE()(pool)
    lost = InfoNCE()(InBatch()(process_share(random_pool(0, "symmetric"), 2, 1)))[0]
    assert count == 6
    torch.testing.assert_close(total, whole - lost)
    for gradient in torch.autograd.grad(total, leaves(pool)):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_batch_of_one_has_no_negatives_and_no_loss(smoothing: float) -> None:
    pool = InBatch()(random_pool(0, "symmetric", anchors=1))
    total, count = InfoNCE(label_smoothing=smoothing)(pool)
    assert (float(total.detach()), int(count)) == (0.0, 1)
    for gradient in torch.autograd.grad(total, leaves(pool), allow_unused=True):
        assert gradient is None or not gradient.any()


def test_anchors_without_a_positive_are_not_counted() -> None:
    pool = InBatch()(random_pool(0, "labelled", anchors=4))  # classes 0, 1, 2, 0: only two anchors have a positive
    total, count = InfoNCE()(pool)
    assert int(count) == 2
    for gradient in torch.autograd.grad(total, leaves(pool)):
        assert bool(gradient.isfinite().all())
    alone = InBatch()(random_pool(0, "labelled", anchors=3))
    total, count = InfoNCE(label_smoothing=0.1)(alone)
    assert (float(total.detach()), int(count)) == (0.0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_counts_of_shares_add_up(kind: str) -> None:
    whole = InfoNCE()(InBatch()(random_pool(0, kind)))
    shares = [InfoNCE()(InBatch()(process_share(random_pool(0, kind), at, n))) for at, n in ((0, 1), (1, 3), (4, 2))]
    torch.testing.assert_close(sum(total for total, _ in shares), whole[0])
    assert sum(int(count) for _, count in shares) == int(whole[1])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_cost_the_same(half: torch.dtype) -> None:
    loss = mean(mined(2, "two_tower", half))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, mean(mined(2, "two_tower", torch.float32)))
    cold = replace(mined(2, "two_tower", half), temperature=0.01)
    gradients = torch.autograd.grad(mean(cold), leaves(cold))
    assert all(gradient.dtype == half and bool(gradient.isfinite().all()) for gradient in gradients)


def test_the_null_positive_of_an_anchor_without_a_positive() -> None:
    none = torch.zeros(1, 1, dtype=torch.bool)
    negatives = torch.tensor([[0.2, 0.5, 0.1]]).double()
    pool = NegativePool(Items(), Block(Items(), "positive", given=torch.ones(1, 1).double(), usable=none), 0.1)
    pool = pool.add(Block(Items(), "in_batch", given=negatives))
    total, count = InfoNCE(null_positive=0.4)(pool)
    assert float(total) == pytest.approx(1.361849, abs=5.1e-7)
    assert int(count) == 1
    assert int(InfoNCE()(pool)[1]) == 0  # off by default
    emptied = pool.mask(lambda scores, block: torch.ones_like(scores, dtype=torch.bool), "test")
    assert float(InfoNCE(null_positive=0.4)(emptied)[0]) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_null_positive_is_a_positive_of_that_similarity(smoothing: float) -> None:
    """Rows with a positive cost what they cost; a null one costs what a positive with its score would."""
    given = torch.tensor([[0.6, 0.1], [0.3, 0.2], [0.5, 0.5]]).double()
    usable = torch.tensor([[1, 1], [0, 0], [0, 1]]).bool()
    negatives = torch.tensor([[0.3, -0.2], [0.4, 0.1], [0.5, 0.0]]).double().requires_grad_()
    keep = torch.tensor([[1, 1], [1, 0], [0, 0]]).bool()

    def pool_with(positives: Tensor, allowed: Tensor) -> NegativePool:
        pool = NegativePool(Items(), Block(Items(), "positive", given=positives, usable=allowed), 0.2)
        return pool.add(Block(Items(), "in_batch", given=negatives, usable=keep))

    found = InfoNCE(label_smoothing=smoothing, null_positive=0.35)(pool_with(given, usable))
    filled, allowed = given.clone(), usable.clone()
    filled[1, 0], allowed[1, 0] = 0.35, True
    expected = InfoNCE(label_smoothing=smoothing)(pool_with(filled, allowed))
    torch.testing.assert_close(found[0], expected[0])
    assert int(found[1]) == int(expected[1]) == 3
    for ours, theirs in zip(
        torch.autograd.grad(found[0], negatives), torch.autograd.grad(expected[0], negatives), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradient_of_the_null_positive_is_that_of_finite_differences() -> None:
    pool = InBatch()(random_pool(0, "labelled", dtype=torch.float64, anchors=4))  # two anchors have no positive
    vectors = pool.anchors.embeddings.detach().requires_grad_()

    def value(anchors: Tensor, temperature: Tensor) -> Tensor:
        free = replace(pool, anchors=replace(pool.anchors, embeddings=anchors), temperature=temperature, memo={})
        total, count = InfoNCE(null_positive=0.3)(free)
        return total / count

    assert torch.autograd.gradcheck(value, (vectors, torch.tensor(0.6, dtype=torch.float64, requires_grad=True)))
    assert int(InfoNCE(null_positive=0.3)(pool)[1]) == 4


@st.composite
def scores(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Positive (B, 1), negatives (B, N), usable (B, N): cosines, with ties."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    cosine = st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.3, 0.3, 0.99, 1.0])

    def matrix(width: int, element: st.SearchStrategy[float]) -> Tensor:
        cells = draw(st.lists(element, min_size=rows * width, max_size=rows * width))
        return torch.tensor(cells).double().reshape(rows, width)

    return matrix(1, cosine), matrix(columns, cosine), matrix(columns, st.sampled_from([0.0, 1.0])).bool()


def pool_of(positive: Tensor, negative: Tensor, usable: Tensor | None, temperature: float = 0.1) -> NegativePool:
    pool = NegativePool(Items(), Block(Items(), "positive", given=positive), temperature)
    return pool.add(Block(Items(), "in_batch", given=negative, usable=usable))


@given(scores(), st.sampled_from([0.0, 0.1]))
@settings(max_examples=60, deadline=None)
def test_laws(example: tuple[Tensor, Tensor, Tensor], smoothing: float) -> None:
    positive, negative, usable = example
    loss = InfoNCE(label_smoothing=smoothing)
    value = loss(pool_of(positive, negative, usable))[0]
    assert value >= 0
    # a masked column changes nothing, whatever it holds
    wider = torch.cat([negative, torch.full_like(positive, 1e4)], 1), torch.cat([usable, usable[:, :1] & False], 1)
    torch.testing.assert_close(loss(pool_of(positive, *wider))[0], value, rtol=0, atol=1e-14)
    # neither does the order of columns, nor cutting one block in two
    order = torch.randperm(negative.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(pool_of(positive, negative[:, order], usable[:, order]))[0], value)
    cut = negative.shape[1] // 2
    two = pool_of(positive, negative[:, :cut], usable[:, :cut])
    two = two.add(Block(Items(), "queue", given=negative[:, cut:], usable=usable[:, cut:]))
    torch.testing.assert_close(loss(two)[0], value)
    # similarities count as differences
    torch.testing.assert_close(loss(pool_of(positive + 3, negative + 3, usable))[0], value, rtol=1e-9, atol=1e-9)
    if not smoothing:  # one more negative never makes it cheaper, and a duplicate counts once more
        assert loss(pool_of(positive, negative, None))[0] >= value - 1e-12
        twice = torch.cat([negative, negative], 1), torch.cat([usable, usable], 1)
        weighted = pool_of(positive, negative, usable).weight(lambda s, b: torch.full_like(s, math.log(2)))
        torch.testing.assert_close(loss(pool_of(positive, *twice))[0], loss(weighted)[0])


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"InfoNCE\(label_smoothing=1\): a share, so 0 <= label_smoothing < 1"):
        InfoNCE(label_smoothing=1)
    with pytest.raises(ValueError, match=r"InfoNCE\(temperature=0\): wants a positive number"):
        InfoNCE(0)
    with pytest.raises(ValueError, match="wants a positive number"):
        InfoNCE(float("nan"))
    with pytest.raises(ValueError, match=r"InfoNCE\(null_positive=inf\): a similarity, so a finite number"):
        InfoNCE(null_positive=float("inf"))


def test_fixed_and_learned_temperatures() -> None:
    assert InfoNCE(0.05).temperature == 0.05
    assert not list(InfoNCE(0.05).parameters())
    assert not InfoNCE(0.05).state_dict()
    learned = InfoNCE(0.05, learn_temperature=True)
    assert float(learned.temperature.detach()) == pytest.approx(0.05)
    assert [name for name, _ in learned.named_parameters()] == ["logit_scale"]
    with torch.no_grad():
        learned.logit_scale.fill_(20.0)
    assert float(learned.temperature.detach()) == pytest.approx(0.01)
