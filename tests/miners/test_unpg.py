"""UNPG: the published numbers, the one-column form against a column for each pair, and what happens at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hardneg.losses import InfoNCE
from miners import UNPG, ArcFace, Block, CosFace, InBatch, Items, NegativePool, PoolMiner
from miners.testing import PoolMinerContract
from miners.unpg import within_whiskers
from tests.oracles.unpg import wide_loss

DOUBLE = torch.float64


class TestUNPG(PoolMinerContract):
    def make(self) -> UNPG:
        return UNPG(whisker=0.5)

    def test_the_gradient_of_a_face_whose_pairs_are_all_filtered_out_is_zero(self) -> None:
        faces = at([0, 10, 20, 30, 40, 50, 60, 70, 200]).requires_grad_()  # the last is below the quartile with all
        items = Items(faces, torch.arange(9), labels=torch.arange(9), space="image")
        pool = UNPG(whisker=0.0)(bare(items))
        (gradient,) = torch.autograd.grad(pool.mass().sum(), faces)
        assert torch.equal(gradient[8], torch.zeros(2, dtype=DOUBLE))
        assert bool((gradient[:8] != 0).any(1).all())


def at(degrees: list[float]) -> Tensor:
    angle = torch.tensor(degrees, dtype=DOUBLE) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def bare(faces: Items, temperature: float = 1 / 16) -> NegativePool:
    """A pool whose anchors have a positive and nothing else."""
    positive = Block(Items(), "positive", given=torch.zeros(len(faces), 1, dtype=DOUBLE))
    return NegativePool(faces, positive, temperature, sides={"anchors": faces})


def faces_and_centres(faces: Tensor, labels: Tensor, centres: Tensor, temperature: float = 1 / 16) -> NegativePool:
    """The pool that a family of faces makes."""
    samples = Items(faces, torch.arange(len(faces)), labels=labels, space="image")
    classes = Items(centres, torch.arange(len(centres)), labels=torch.arange(len(centres)), space="class")
    own = Block(Items(centres[labels][:, None], labels[:, None], space="class"), "positive")
    sides = {"anchors": samples, "classes": classes}
    return NegativePool(samples, own, temperature, sides=sides, direction="image_to_class")


def chained(pool: NegativePool, *miners: PoolMiner) -> NegativePool:
    for miner in miners:
        pool = miner(pool)
    return pool


def loss_of(pool: NegativePool) -> Tensor:
    total, count = InfoNCE()(pool)
    return total / count


# ---- the published numbers -------------------------------------------------------------------------------------------


def test_t1_filter() -> None:
    values = torch.tensor([-0.9, -0.1, 0, 0.05, 0.1, 0.12, 0.2, 0.25, 0.3, 0.95])
    for whisker in (1.5, 1.0):
        assert within_whiskers(values, whisker).tolist() == [False, *[True] * 8, False]
    assert within_whiskers(torch.tensor([0.1, 0.2, 0.3, 0.9]), 1.5).all()
    assert within_whiskers(torch.tensor([0.5]), 1.5).all()
    # bounds are (-0.375, 0.625) and (-0.25, 0.5), ends included: quartiles are members, 0.000 and 0.250
    tight = torch.tensor([-0.375, -0.3751, 0.625, 0.6251])
    ends = torch.cat([tight[:1], values[1:9], tight[2:3]])
    assert within_whiskers(ends.double(), 1.5).tolist()[1:9] == [True] * 8


T2 = [
    (None, None, 2.126598, 0.552648),
    (1.5, 18, 5.827665, 2.260276),
    (0.5, 16, 2.738729, 0.598495),
    (0.25, 11, 2.230500, 0.557446),
]


@pytest.mark.parametrize(("whisker", "kept", "cosface", "arcface"), T2)
def test_t2_loss(whisker: float | None, kept: int | None, cosface: float, arcface: float) -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    pool = faces_and_centres(at([0, 10, 80, 95, 170, 185, 60]), labels, at([5, 90, 175, 60]))
    for margin, expected in ((CosFace(0.4), cosface), (ArcFace(0.5), arcface)):
        mined = chained(pool, margin, InBatch())
        if whisker is not None:
            miner = UNPG(whisker)
            mined = miner(mined)
            miner.commit(mined)
            seen = miner.statistics(mined)
            assert float(seen["kept_share"]) == pytest.approx(kept / 18)
            assert float(seen["hardest_kept"]) <= 0.342020 + whisker * (0.342020 + 0.573576)
        assert float(loss_of(mined)) == pytest.approx(expected, abs=0.51e-6)


# ---- the lean form ---------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    faces=st.integers(1, 12),
    classes=st.integers(1, 6),
    whisker=st.sampled_from([0.0, 0.25, 1.0, 1.5]),
    temperature=st.sampled_from([1 / 64, 1 / 16, 0.5]),
)
def test_t3_one_column_is_a_column_for_each_pair(
    seed: int, faces: int, classes: int, whisker: float, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(faces, 5, generator=generator, dtype=DOUBLE).requires_grad_()
    centres = torch.randn(classes, 5, generator=generator, dtype=DOUBLE).requires_grad_()
    labels = torch.randint(classes, (faces,), generator=generator)
    pool = chained(
        faces_and_centres(vectors, labels, centres, temperature), CosFace(0.35), InBatch(), UNPG(whisker=whisker)
    )
    lean = loss_of(pool)
    target = pool.scores(pool.positives)[:, 0]
    wide = wide_loss(vectors, labels, centres, target, temperature, whisker)
    assert abs(float((lean - wide).detach())) < 1e-9
    for one, two in zip(
        torch.autograd.grad(lean, (vectors, centres), retain_graph=True),
        torch.autograd.grad(wide, (vectors, centres)),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


# ---- edges -----------------------------------------------------------------------------------------------------------


def test_t5_one_identity_is_the_plain_loss_and_order_does_not_matter() -> None:
    centres, vectors = at([5, 90, 175]), at([0, 10, 80, 95, 170])
    same = faces_and_centres(vectors, torch.zeros(5, dtype=torch.long), centres)
    assert float(loss_of(chained(same, InBatch(), UNPG()))) == float(loss_of(chained(same, InBatch())))
    labels, order = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([3, 1, 4, 0, 2])
    one = loss_of(chained(faces_and_centres(vectors, labels, centres), InBatch(), UNPG()))
    two = loss_of(chained(faces_and_centres(vectors[order], labels[order], centres), InBatch(), UNPG()))
    assert float(one) == pytest.approx(float(two), abs=1e-12)


def test_few_and_equal_pairs_are_all_kept() -> None:
    assert within_whiskers(torch.tensor([-1.0, 0.0, 1.0]), 0.0).all()
    assert within_whiskers(torch.full((9,), 0.3), 0.0).all()
    assert within_whiskers(torch.zeros(0), 1.5).tolist() == []


def test_unnamed_faces_and_the_same_picture_make_no_pair() -> None:
    vectors = at([0, 10, 80, 95])
    everybody = Items(vectors, torch.arange(4), labels=torch.arange(4), space="image")
    labels = torch.tensor([0, 1, -1, 2])
    content = torch.tensor([7, 8, 9, 7])  # the first and the last are one picture under two names
    some = Items(vectors, torch.arange(4), content, labels, space="image")
    pairs = [(0, 1), (1, 3)]
    expected = torch.logsumexp(16 * torch.stack([vectors[a] @ vectors[b] for a, b in pairs]), 0)
    torch.testing.assert_close(UNPG()(bare(some)).mass(), expected.expand(4))
    assert float(UNPG()(bare(everybody)).mass()[0]) > float(expected)


def test_the_column_is_no_candidate() -> None:
    pool = UNPG()(bare(Items(at([0, 80, 170]), torch.arange(3), labels=torch.arange(3), space="image")))
    assert pool.count().tolist() == [0, 0, 0]
    assert pool.negatives[0].origin == "pairs"
    masked = pool.mask(lambda scores, block: torch.ones_like(scores, dtype=torch.bool), reason="test")
    assert masked.usable.all()


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"UNPG\(whisker=-1\): interquartile ranges"):
        UNPG(whisker=-1)
