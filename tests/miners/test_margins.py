"""Margins: the published values, slopes that stay finite, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from miners import AdaFace, ArcFace, Block, CosFace, InBatch, Items, MagFace, NegativePool, PoolMiner, StepContext
from miners.margins import Margin
from miners.testing import PoolMinerContract

DOUBLE = torch.float64


class TestCosFace(PoolMinerContract):
    def make(self) -> PoolMiner:
        return CosFace()


class TestArcFace(PoolMinerContract):
    def make(self) -> PoolMiner:
        return ArcFace()


class TestMagFace(PoolMinerContract):
    def make(self) -> PoolMiner:
        return MagFace(shortest=1, longest=10)


class TestAdaFace(PoolMinerContract):
    def make(self) -> PoolMiner:
        return AdaFace()


def pool_of(cosines: list[float], lengths: list[float] | None = None, training: bool = False) -> NegativePool:
    """An anchor for each cosine to its positive, of these lengths."""
    lengths = [1.0] * len(cosines) if lengths is None else lengths
    anchors = torch.tensor([[length, 0.0] for length in lengths], dtype=DOUBLE).requires_grad_()
    own = torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines], dtype=DOUBLE)[:, None]
    rows = torch.arange(len(cosines))
    faces = Items(anchors, rows, labels=rows, space="image")
    positives = Block(Items(own, rows[:, None], space="class"), "positive")
    return NegativePool(faces, positives, sides={"anchors": faces}, context=StepContext(training=training))


def target(margin: Margin, cosine: float, length: float = 1.0) -> float:
    pool = margin(pool_of([cosine], [length]))
    return float(pool.scores(pool.positives))


def test_cosface_and_arcface() -> None:
    assert target(CosFace(0.35), 0.5) == pytest.approx(0.15)
    for cosine in (-0.9, 0.0, 0.5, 0.99):
        assert target(ArcFace(0.5), cosine) == pytest.approx(math.cos(math.acos(cosine) + 0.5), abs=1e-9)


@pytest.mark.parametrize(
    ("length", "expected", "price"),
    [(10, 0.073532, 0.100826), (50, -0.066352, 0.024132), (110, -0.272895, 0.018182)],
)
def test_t4_magface(length: float, expected: float, price: float) -> None:
    miner = MagFace(price=1.0)
    assert target(miner, 0.5, length) == pytest.approx(expected, abs=0.51e-6)
    total, count = miner.aux_loss(pool_of([0.5], [length]))
    assert float(total / count) == pytest.approx(price, abs=0.51e-6)


def test_t4_magface_cuts_lengths_and_is_easy_on_wrong_sides() -> None:
    assert target(MagFace(), 0.5, 5) == pytest.approx(0.073532, abs=0.51e-6)
    assert target(MagFace(), 0.5, 200) == pytest.approx(-0.272895, abs=0.51e-6)
    assert target(MagFace(), -0.2, 50) == pytest.approx(-0.2)


def test_magface_trains_lengths() -> None:
    pool = pool_of([0.5], [50.0])
    miner = MagFace()
    mined = miner(pool)
    (gradient,) = torch.autograd.grad(mined.scores(mined.positives).sum(), pool.anchors.embeddings, retain_graph=True)
    assert gradient[0, 0] < 0  # a longer vector has a larger margin
    (gradient,) = torch.autograd.grad(miner.aux_loss(mined)[0], pool.anchors.embeddings)
    assert gradient[0, 0] < 0  # and a lower price, until 110


@pytest.mark.parametrize(("length", "expected"), [(15, 0.113755), (20, 0.100000), (25, 0.077390), (40, -0.002223)])
def test_t4_adaface(length: float, expected: float) -> None:
    miner = AdaFace()
    miner.mean.fill_(20)
    miner.std.fill_(5)
    assert target(miner, 0.5, length) == pytest.approx(expected, abs=0.51e-6)


def naive_adaface(cosine: float, quality: float, margin: float = 0.4, edge: float = 1e-3) -> float:
    angle = math.acos(min(max(cosine, -1 + edge), 1 - edge)) - margin * quality
    return math.cos(min(max(angle, edge), math.pi - edge)) - margin * (1 + quality)


@pytest.mark.parametrize("cosine", [-1.0, -0.97, -0.4, 0.3, 0.95, 0.9999, 1.0])
@pytest.mark.parametrize(("length", "quality"), [(1.0, -1.0), (20.0, 0.0), (60.0, 1.0)])
def test_adaface_equals_its_angles(cosine: float, length: float, quality: float) -> None:
    miner = AdaFace()
    miner.mean.fill_(20)
    miner.std.fill_(0.5)
    assert target(miner, cosine, length) == pytest.approx(naive_adaface(cosine, quality), abs=1e-6)


def test_adaface_follows_lengths() -> None:
    miner, lengths = AdaFace(rate=0.25), torch.tensor([10.0, 30.0])
    pool = pool_of([0.5, 0.5], lengths.tolist(), training=True)
    mined = miner(pool)
    mean, std = 0.75 * 20 + 0.25 * 20, 0.75 * 100 + 0.25 * float(lengths.std())
    quality = 0.333 * (30 - mean) / (std + 1e-3)
    assert float(mined.scores(mined.positives)[1]) == pytest.approx(naive_adaface(0.5, quality), abs=1e-6)
    assert (float(miner.mean), float(miner.std)) == (20, 100)  # not before the step is done
    miner.commit(mined)
    assert (float(miner.mean), float(miner.std)) == (pytest.approx(mean), pytest.approx(std))
    miner.commit(miner(pool_of([0.5], [50.0], training=True)))  # one alone has no deviation
    assert float(miner.std) == pytest.approx(std)


@pytest.mark.parametrize("miner", [CosFace(), ArcFace(), MagFace(), AdaFace()], ids=lambda m: type(m).__name__)
def test_slopes_are_finite_where_angles_end(miner: Margin) -> None:
    pool = pool_of([1.0, -1.0, 0.5], [20.0, 20.0, 20.0])
    mined = miner(pool)
    (gradient,) = torch.autograd.grad(mined.scores(mined.positives).sum(), pool.anchors.embeddings)
    assert bool(gradient.isfinite().all())


def test_only_positives_change() -> None:
    pool = InBatch()(_with_classes(pool_of([0.5, 0.2])))
    mined = ArcFace()(pool)
    assert mined.negatives is pool.negatives
    assert mined.positives.items is pool.positives.items


def _with_classes(pool: NegativePool) -> NegativePool:
    from dataclasses import replace

    centres = Items(torch.eye(2, dtype=DOUBLE), torch.arange(2), labels=torch.arange(2), space="class")
    return replace(pool, sides={**pool.sides, "classes": centres})


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: CosFace(-0.1), "at least 0"),
        (lambda: ArcFace(2.0), r"ArcFace\(margin=2.0\): radians"),
        (lambda: MagFace(longest=5), "0 < shortest < longest"),
        (lambda: MagFace(lowest_margin=0.9), "highest margin not below"),
        (lambda: AdaFace(h=0), "h above 0"),
        (lambda: ArcFace()(_dot(pool_of([0.5]))), r"compares by 'dot'. Set model.init_args.similarity: cosine"),
    ],
)
def test_mistakes(make, complaint: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=complaint):
        make()


def _dot(pool: NegativePool) -> NegativePool:
    from dataclasses import replace

    return replace(pool, similarity="dot")


def test_half_precision_lengths_are_summed_in_full() -> None:
    from miners.margins import lengths_of

    vectors: Tensor = torch.full((1, 4096), 8.0, dtype=torch.float16)
    assert lengths_of(Items(vectors)).item() == 512.0
