"""Focal distillation is InfoNCE plus a pull towards what the old model got right."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hardneg.losses import FocalDistillation, InfoNCE
from miners import Block, InBatch, Items, NegativePool, SelfBlocks
from miners.testing import leaves, process_share, random_pool
from tests.oracles.other_negatives import focal_kl

LOGITS = [[2, 1, 0, 0.5], [0.5, 1.5, 0.2, 2], [0, 0.3, 1, 0.2]]
OLD = [[1.5, 0.5], [0.2, 1], [0.4, 0.1]]
NEW = [[1.8, 0.9, 0.1, 0.2], [0.3, 1.2, 0, 1], [0, 0, 2, 0]]
SCALE = 4.0  # logits of the specification are not cosines: they are divided by this, and so is the temperature


def seen(cosines: Tensor) -> Tensor:
    """(..., 2) vectors of these cosines with (1, 0)."""
    return torch.stack([cosines, (1 - cosines**2).clamp_min(0).sqrt()], dim=-1)


def pool_of(
    logits: Sequence[Sequence[float]] | Tensor,
    teacher: Sequence[Sequence[float]] | Tensor,
    positives: Sequence[int],
    temperature: float = 1.0,
) -> NegativePool:
    """Rows of logits of the new model and of the old one; the positive's column of each row."""
    new, old = torch.as_tensor(logits).double() / SCALE, torch.as_tensor(teacher).double() / SCALE
    own = torch.tensor(positives)[:, None]
    others = torch.ones_like(new, dtype=torch.bool).scatter(1, own, False)

    def rest(scores: Tensor) -> Tensor:
        return scores[others].view(len(scores), -1)

    anchors = Items(guide=torch.tensor([[1.0, 0.0]]).double().expand(len(new), 2))
    block = Block(Items(guide=seen(old.gather(1, own))), "positive", given=new.gather(1, own))
    pool = NegativePool(anchors, block, temperature / SCALE)
    return pool.add(Block(Items(guide=seen(rest(old))), "in_batch", given=rest(new)))


def drift(pool: NegativePool, softening: float = 1.0, focus: float = 5.0) -> float:
    """The distillation alone."""
    total, count = FocalDistillation(focus=focus, softening=softening)(pool)
    plain, _ = InfoNCE()(pool)
    return float((total - plain) / count)


def test_published_numbers() -> None:
    old_columns = [row[:2] for row in LOGITS]
    # the third item's class is new: no column of the old model is right for it, so any that it gets wrong will do
    assert drift(pool_of(old_columns, OLD, (0, 1, 1)), softening=5) == pytest.approx(0.000997, abs=5.1e-7)
    assert drift(pool_of(LOGITS, NEW, (0, 1, 2)), softening=5) == pytest.approx(0.017699, abs=5.1e-7)


def test_a_margin_on_new_classes_is_a_weight_of_their_columns() -> None:
    """The published margin: b = 4 on the logits of new classes, as positive and as negative. The pool carries it."""
    pool = pool_of(LOGITS, NEW, (0, 1, 2))
    total, count = InfoNCE()(pool)
    assert float(total / count) == pytest.approx(0.858506, abs=5.1e-7)
    new = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 1]]).double()  # which of each row's other columns are new
    own = replace(pool.positives, log_weight=4 * torch.tensor([[0], [0], [1]]).double())
    pool = replace(pool, positives=own).weight(lambda scores, block: 4 * new)
    total, count = InfoNCE()(pool)
    assert float(total / count) == pytest.approx(2.696511, abs=5.1e-7)
    both = drift(pool, softening=5) + drift(pool_of([row[:2] for row in LOGITS], OLD, (0, 1, 1)), softening=5)
    assert float(total / count) + both == pytest.approx(2.715207, abs=5.1e-7)  # weights do not touch the distillation


@st.composite
def rows(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int]]:
    number, columns = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    cell = st.sampled_from([-2.0, -0.5, 0.0, 0.3, 0.3, 1.0, 3.5])
    matrix = st.lists(cell, min_size=number * columns, max_size=number * columns)
    new, old = (torch.tensor(draw(matrix)).double().view(number, columns) for _ in range(2))
    return new, old, draw(st.lists(st.integers(0, columns - 1), min_size=number, max_size=number))


@given(rows(), st.sampled_from([0.5, 1.0, 5.0]), st.sampled_from([0.0, 5.0]))
@settings(max_examples=60, deadline=None)
def test_laws(example: tuple[Tensor, Tensor, list[int]], softening: float, focus: float) -> None:
    new, old, own = example
    pool = pool_of(new, old, own)
    found = drift(pool, softening, focus)
    right = [
        all(row[place] > other for column, other in enumerate(row) if column != place)
        for row, place in zip(old.tolist(), own, strict=True)
    ]
    assert found == pytest.approx(focal_kl(old.tolist(), new.tolist(), right, softening, focus), abs=1e-9)
    assert found >= -1e-9
    assert drift(pool_of(old, old, own), softening, focus) == pytest.approx(0, abs=1e-9)
    assert drift(pool_of(new + 0.1, old, own), softening, focus) == pytest.approx(found, abs=1e-9)  # shifts are free
    masked = pool.mask(lambda scores, block: torch.ones_like(scores, dtype=torch.bool), "test")
    assert drift(masked, softening, focus) == pytest.approx(0, abs=1e-12)  # a positive alone is all there is
    if new.shape[1] > 2:  # a masked column is in neither distribution
        last = pool.mask(lambda scores, block: torch.arange(scores.shape[1]).expand_as(scores) == 0, "test")
        block = pool.negatives[0]
        cut = Block(Items(guide=block.items.guide[:, 1:]), "in_batch", given=block.given[:, 1:])
        assert drift(last, softening, focus) == pytest.approx(
            drift(replace(pool, negatives=(cut,)), softening, focus), abs=1e-9
        )


def test_gradients_are_those_of_finite_differences() -> None:
    base = SelfBlocks()(InBatch()(random_pool(1, "two_tower", dtype=torch.float64, temperature=0.5)))
    q, p = base.anchors.embeddings.detach(), base.sides["positives"].embeddings.detach()

    def loss(a: Tensor, b: Tensor, temperature: Tensor) -> Tensor:
        anchors = replace(base.anchors, embeddings=a)
        documents = replace(base.sides["positives"], embeddings=b)
        own = Block(documents.map(lambda part: part[:, None]), "positive")
        sides = {"anchors": anchors, "positives": documents}
        pool = replace(
            base, anchors=anchors, positives=own, sides=sides, negatives=(), memo={}, temperature=temperature
        )
        pool = InBatch()(pool).mask(lambda scores, block: scores > 0.5, "test")
        total, count = FocalDistillation(weight=0.7, focus=2.0, softening=1.5)(pool)
        return total / count

    temperature = torch.tensor(0.5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, temperature), (q.requires_grad_(), p.requires_grad_()))
    plain = InfoNCE()(InBatch()(base))[0]
    assert plain.requires_grad
    learned = temperature.clone().requires_grad_()  # the temperature is taught by InfoNCE alone
    (slope,) = torch.autograd.grad(loss(q, q, learned), learned)
    assert bool(slope.isfinite())


def test_following_its_gradient_ends_at_the_old_ranking() -> None:
    draw = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 4, 6, generator=draw, dtype=torch.float64).clamp(-3, 3)
    own = torch.tensor([[0], [3], [1], [5]])
    others = torch.ones(4, 6, dtype=torch.bool).scatter(1, own, False)
    start = drift(pool_of(new, old, own[:, 0].tolist()))
    for _ in range(100):
        logits = new.clone().requires_grad_()
        pool = pool_of(old, old, own[:, 0].tolist())
        pool = replace(pool, positives=replace(pool.positives, given=logits.gather(1, own) / SCALE))
        pool = replace(pool, negatives=(replace(pool.negatives[0], given=logits[others].view(4, -1) / SCALE),))
        (slope,) = torch.autograd.grad(FocalDistillation()(pool)[0] - InfoNCE()(pool)[0], logits)
        new = new - 0.3 * slope
    assert drift(pool_of(new, old, own[:, 0].tolist())) < 0.01 * start


def test_columns_without_the_old_models_vectors_are_left_out() -> None:
    pool = pool_of(LOGITS, NEW, (0, 1, 2))
    mixed = pool.add(Block(Items(), "mixed", given=torch.full((3, 2), 0.9).double(), real=False))
    bank = mixed.add(Block(Items(), "bank", given=torch.full((3, 2), 0.9).double()))
    assert drift(bank) == pytest.approx(drift(pool), abs=1e-12)
    assert float(InfoNCE()(bank)[0]) > float(InfoNCE()(pool)[0])


def test_positives_without_the_old_models_vectors_are_taught_by_info_nce_and_said_so_once(caplog) -> None:
    pool = pool_of(LOGITS, NEW, (0, 1, 2))
    bare = replace(pool, positives=Block(Items(), "positive", given=pool.positives.given))
    loss = FocalDistillation()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(loss(bare)[0], InfoNCE()(bare)[0])
    assert len([one for one in caplog.records if "without the old model's vectors" in one.message]) == 1


def test_several_positives_count_as_their_mean_and_an_anchor_without_one_not_at_all() -> None:
    own = torch.tensor([[0.5, 0.2], [0.4, 0.4]]).double()
    usable = torch.tensor([[True, True], [False, False]])
    old = torch.tensor([[0.6, 0.1], [0.3, 0.3]]).double()
    negative, before = torch.tensor([[0.3], [0.2]]).double(), torch.tensor([[0.2], [0.5]]).double()
    anchors = Items(guide=torch.tensor([[1.0, 0.0]]).double().expand(2, 2))
    pool = NegativePool(anchors, Block(Items(guide=seen(old)), "positive", given=own, usable=usable), 0.5)
    pool = pool.add(Block(Items(guide=seen(before)), "mined", given=negative))
    total, count = FocalDistillation()(pool)
    assert int(count) == 1
    expected = sum(
        focal_kl([[old[0, i], before[0, 0]]], [[own[0, i], negative[0, 0]]], [bool(old[0, i] > before[0, 0])], 0.5)
        for i in range(2)
    )
    assert float(total - InfoNCE()(pool)[0]) == pytest.approx(expected / 2, abs=1e-9)


def test_sums_of_shares_add_up_and_half_precision_stays_finite() -> None:
    whole = FocalDistillation()(InBatch()(random_pool(0, "two_tower")))
    shares = [
        FocalDistillation()(InBatch()(process_share(random_pool(0, "two_tower"), at, n))) for at, n in ((0, 2), (2, 4))
    ]
    torch.testing.assert_close(sum(total for total, _ in shares), whole[0])
    half = InBatch()(random_pool(0, "two_tower", dtype=torch.float16))
    total, _ = FocalDistillation()(half)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, whole[0], rtol=1e-3, atol=1e-3)
    assert all(
        bool(slope.isfinite().all())
        for slope in torch.autograd.grad(total, leaves(half), allow_unused=True)
        if slope is not None
    )


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"FocalDistillation\(weight=-1, focus=5.0, softening=1.0\): wants weight"):
        FocalDistillation(weight=-1)
    with pytest.raises(ValueError, match="with similarities by 'dot'"):
        FocalDistillation()(replace(pool_of(LOGITS, NEW, (0, 1, 2)), similarity="dot"))
    plain = FocalDistillation(weight=0)  # nothing is compared, so nothing is wanted
    pool = pool_of(LOGITS, NEW, (0, 1, 2))
    torch.testing.assert_close(plain(pool)[0], InfoNCE()(pool)[0])
