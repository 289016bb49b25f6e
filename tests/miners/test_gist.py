"""A frozen guide decides who may be a negative; the numbers are those of the published codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hardneg.losses import InfoNCE
from miners import GIST, Block, InBatch, Items, NegativePool, PoolMiner, SelfBlocks
from miners.testing import PoolMinerContract, one_anchor, permuted, random_pool
from tests.oracles import gist as oracle


class TestGIST(PoolMinerContract):
    def make(self) -> PoolMiner:
        return GIST()

    def before(self) -> Sequence[PoolMiner]:
        return InBatch(), SelfBlocks()


class TestGISTRelativeHardOnly(TestGIST):
    def make(self) -> PoolMiner:
        return GIST(margin=0.1, margin_strategy="relative", hard_only=True)


STUDENT = ([0, 60, 150], [20, 90, 120], [45, 10, 170])
GUIDE = ([0, 70, 160], [30, 80, 130], [20, 40, 100])


def at(degrees: Sequence[float]) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def pairs(
    student: Sequence[Sequence[float]],
    guide: Sequence[Sequence[float]],
    temperature: float = 0.1,
    content: Tensor | None = None,
) -> NegativePool:
    """Queries, documents and, where there is a third list, drawn negatives, as a family would hand them over."""
    ids = torch.arange(len(student[0]))
    queries = Items(at(student[0]), ids, space="query", guide=at(guide[0]))
    documents = Items(at(student[1]), ids, content, guide=at(guide[1]))
    sides: dict[str, Items | Block] = {"anchors": queries, "positives": documents}
    if len(student) > 2:
        sides["drawn"] = Items(at(student[2]), ids + 100, guide=at(guide[2]))
    own = Block(documents.map(lambda part: part[:, None]), "positive")
    return NegativePool(queries, own, temperature, sides=sides)


def loss(pool: NegativePool, *miners: PoolMiner) -> float:
    for miner in miners:
        pool = miner(pool)
    total, count = InfoNCE()(pool)
    return float((total / count).detach())


FOUR = (InBatch(), SelfBlocks())


@pytest.mark.parametrize(
    ("temperature", "columns", "miners", "expected"),
    [
        (0.1, 3, (*FOUR, GIST()), 1.340722),
        (0.01, 3, (*FOUR, GIST()), 7.293518),
        (0.1, 3, (InBatch(), GIST()), 1.173045),
        (0.1, 2, (*FOUR, GIST()), 0.535550),
        (0.1, 3, FOUR, 1.353088),  # no guide
        (0.1, 3, (*FOUR, GIST(hard_only=True)), 1.301039),
    ],
)
def test_t1_published_losses(temperature: float, columns: int, miners: tuple[PoolMiner, ...], expected: float) -> None:
    pool = pairs(STUDENT[:columns], GUIDE[:columns], temperature)
    assert loss(pool, *miners) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("strategy", "margin", "expected"),
    [
        ("absolute", 0.05, 1.340722),
        ("absolute", 0.10, 1.029085),
        ("relative", 0.10, 1.340722),
        ("relative", 0.12, 1.029085),
        ("absolute", 0.20, 1.022200),
        ("relative", 0.20, 1.022200),
        ("absolute", 0.30, 0.903803),
        ("relative", 0.30, 0.903803),
    ],
)
def test_t2_margins(strategy: Any, margin: float, expected: float) -> None:
    value = loss(pairs(STUDENT, GUIDE), *FOUR, GIST(margin, strategy))
    assert value == pytest.approx(expected, abs=5e-7)
    assert oracle.guided(STUDENT, GUIDE, margin=margin, strategy=strategy) == pytest.approx(expected, abs=5e-7)


def test_what_the_guide_drops() -> None:
    pool = pairs(STUDENT, GUIDE)
    assert pool.lowest_positive(guide=True)[:, 0].tolist() == pytest.approx([0.866025, 0.984808, 0.866025], abs=5e-7)
    mined = GIST()(SelfBlocks()(InBatch()(pool)))
    assert mined.usable.tolist() == [  # own positive; drawn, QQ and PP
        [False, True, True, False, True, True, False, True, True, False, True, True],
        [True, False, True, True, True, True, True, False, True, True, False, True],
        [True, True, False, True, True, True, True, True, False, True, True, False],
    ]
    assert int(mined.dropped["gist"]) == 1


DOUBLE = ([0, 60, 150], [20, 20, 120]), ([0, 70, 160], [30, 30, 130])


def test_t3_a_second_copy_of_the_positive() -> None:
    """By default identical texts are known by their content; the published codes keep them at margin 0."""
    text = torch.tensor([5, 5, 6])
    assert loss(pairs(*DOUBLE, content=text), *FOUR, GIST()) == pytest.approx(0.047953, abs=5e-7)
    assert loss(pairs(*DOUBLE), *FOUR, GIST()) == pytest.approx(0.486839, abs=5e-7)  # nobody said they are one text
    assert loss(pairs(*DOUBLE), *FOUR, GIST(0.01)) == pytest.approx(0.047953, abs=5e-7)
    assert oracle.guided(*DOUBLE) == pytest.approx(0.486839, abs=5e-7)


def test_t4_a_query_equal_to_its_positive_meets_no_diagonal() -> None:
    same = ([0, 60, 150], [0, 90, 120]), ([0, 70, 160], [0, 80, 130])
    assert loss(pairs(*same), *FOUR, GIST()) == pytest.approx(0.481333, abs=5e-7)
    assert oracle.guided(*same) == pytest.approx(0.846026, abs=5e-7)  # published: the diagonal leaks in
    assert oracle.guided(*same, diagonals=True) == pytest.approx(0.481333, abs=5e-7)


def test_t5_a_negative_margin_lets_no_diagonal_in() -> None:
    two = STUDENT[:2], GUIDE[:2]
    assert loss(pairs(*two), *FOUR, GIST(-0.2)) == pytest.approx(0.535550, abs=5e-7)
    assert oracle.guided(*two, margin=-0.2) == pytest.approx(2.039375, abs=5e-7)


EIGHT = ([0, 60, 150, 200], [20, 90, 120, 215]), ([0, 70, 160, 190], [30, 80, 130, 230])


def test_t6_one_process_and_what_gathering_documents_alone_gives() -> None:
    assert loss(pairs(*EIGHT), *FOUR, GIST()) == pytest.approx(0.416054, abs=5e-7)
    no_queries = (InBatch(), SelfBlocks(anchors=False), GIST())
    assert loss(pairs(*EIGHT), *no_queries) == pytest.approx(0.397471, abs=5e-7)
    shares = [oracle.guided(*EIGHT, rows=slice(start, start + 2)) for start in (0, 2)]
    assert shares == pytest.approx([0.450274, 0.381758], abs=5e-7)
    apart = [oracle.guided(*EIGHT, rows=slice(start, start + 2), queries=False) for start in (0, 2)]
    assert sum(apart) / 2 == pytest.approx(0.397471, abs=5e-7)


def test_t6_two_processes_of_ours_equal_one() -> None:
    whole = pairs(*EIGHT)
    parts = []
    for start in (0, 2):
        own = slice(start, start + 2)
        parts.append(
            replace(
                whole,
                anchors=whole.anchors.take(own),
                positives=Block(whole.positives.items.take(own), "positive"),
                context=replace(whole.context, offset=start, global_rows=4),
                memo={},
            )
        )
    assert sum(loss(part, *FOUR, GIST()) for part in parts) / 2 == pytest.approx(0.416054, abs=5e-7)


def test_t8_permuting_scaling_and_a_guide_that_is_the_student() -> None:
    pool = random_pool(2, "two_tower", dtype=torch.float64)
    chain = (*FOUR, GIST(0.05))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert loss(permuted(pool, order), *chain) == pytest.approx(loss(pool, *chain), abs=1e-12)

    sides = {
        name: replace(side, guide=3 * side.guide, embeddings=7 * side.embeddings) for name, side in pool.sides.items()
    }
    items = pool.positives.items
    own = replace(items, guide=3 * items.guide, embeddings=7 * items.embeddings)
    scaled = replace(pool, anchors=sides["anchors"], positives=Block(own, "positive"), sides=sides, memo={})
    assert loss(scaled, *chain) == pytest.approx(loss(pool, *chain), abs=1e-12)

    far = ([0, 90, 180, 270], [5, 95, 185, 275])
    mined = GIST()(SelfBlocks()(InBatch()(pairs(far, far))))
    assert int(mined.dropped["gist"]) == 0  # diagonals are identities, and the positive is the best of its row
    assert mined.count().tolist() == [9, 9, 9, 9]


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
def test_t8_drop_sets_are_nested(strategy: Any) -> None:
    pool = SelfBlocks()(InBatch()(random_pool(4, "two_tower", anchors=16)))
    margins = (-0.3, -0.1, 0.0, 0.05, 0.2, 0.5, 1.0)
    kept = [GIST(margin, strategy)(pool).usable for margin in margins]
    assert all(bool((later <= earlier).all()) for earlier, later in pairwise(kept))
    assert kept[0].sum() > kept[-1].sum()


def test_a_tie_with_the_positive_stays_at_margin_zero() -> None:
    pool = one_anchor(0.5, [0.3, 0.3, 0.3], guide_positive=0.5, guide_candidates=[0.5, 0.5 + 1e-9, -0.5])
    assert GIST()(pool).usable.tolist() == [[True, False, True]]
    assert GIST(1e-6)(pool).usable.tolist() == [[False, False, True]]


def test_a_negative_positive_keeps_the_margin_s_direction() -> None:
    pool = one_anchor(0.5, [0.3, 0.3], guide_positive=-0.5, guide_candidates=[-0.52, -0.56])
    assert GIST(0.1, "relative")(pool).usable.tolist() == [[False, True]]


def test_nothing_flows_into_the_guide() -> None:
    pool = random_pool(1, "two_tower")
    guides = [side.guide.requires_grad_() for side in pool.sides.values()]
    mined = GIST()(SelfBlocks()(InBatch()(pool)))
    total, _ = InfoNCE()(mined)
    assert torch.autograd.grad(total, guides, allow_unused=True) == (None,) * len(guides)


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"GIST\(margin_strategy='percent'\): wants 'absolute' or 'relative'"):
        GIST(margin_strategy="percent")
    with pytest.raises(
        ValueError, match=r"needs guide vectors on every block; block 'positive' .* has none\. Give the"
    ):
        GIST()(InBatch()(random_pool(0, "symmetric")))
