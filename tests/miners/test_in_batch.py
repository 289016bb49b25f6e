"""The other rows' positives, drawn negatives and class centres become negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from miners import InBatch, PoolMiner
from miners.testing import PoolMinerContract, process_share, random_pool


class TestInBatch(PoolMinerContract):
    def make(self) -> PoolMiner:
        return InBatch()

    def before(self) -> Sequence[PoolMiner]:
        return ()


class TestInBatchWithOwnDrawnNegatives(TestInBatch):
    def make(self) -> PoolMiner:
        return InBatch(drawn="own")


class TestInBatchWithoutDrawnNegatives(TestInBatch):
    def make(self) -> PoolMiner:
        return InBatch(drawn="none")


def test_each_anchor_meets_the_other_rows_positives() -> None:
    pool = InBatch()(random_pool(0, "symmetric", anchors=4))
    (block,) = pool.negatives
    assert block.origin == "in_batch"
    # known: row i + 2; content: documents 0 and 1 are one text
    assert pool.usable.tolist() == [
        [False, False, False, True],
        [False, False, True, False],
        [False, True, False, True],
        [True, False, True, False],
    ]
    assert {reason: int(n) for reason, n in pool.dropped.items()} == {"positive": 4, "known": 4, "same_content": 2}


@pytest.mark.parametrize(("drawn", "columns"), [("shared", [8, 8, 8, 8]), ("own", [2, 2, 2, 2])])
def test_drawn_negatives_serve_all_rows_or_their_own(drawn: str, columns: list[int]) -> None:
    pool = random_pool(0, "two_tower", anchors=4)
    pool = InBatch(drawn)(replace(pool, known=None))
    block = pool.negatives[1]
    assert block.origin == "mined"
    assert pool.usable_of(block).sum(1).tolist() == columns


def test_own_drawn_negatives_on_the_second_process() -> None:
    pool = random_pool(0, "two_tower", anchors=4)
    pool = InBatch("own")(process_share(replace(pool, known=None), 2, 2))
    assert pool.usable_of(pool.negatives[1]).nonzero().tolist() == [[0, 4], [0, 5], [1, 6], [1, 7]]


def test_own_class_and_its_centre_are_masked() -> None:
    pool = InBatch()(random_pool(0, "labelled", anchors=4))
    faces, centres = pool.negatives
    assert (faces.origin, centres.origin) == ("in_batch", "classes")
    assert pool.usable_of(centres).tolist() == [
        [False, True, True],
        [True, False, True],
        [True, True, False],
        [False, True, True],
    ]


def test_messages() -> None:
    with pytest.raises(ValueError, match="InBatch\\(drawn='mine'\\): wants 'shared', 'own' or 'none'"):
        InBatch("mine")
    pool = random_pool(0, "two_tower")
    with pytest.raises(ValueError, match="InBatch found no candidates: the pool's sides are \\['anchors'\\]"):
        InBatch()(replace(pool, sides={"anchors": pool.anchors}))
    sides = dict(pool.sides) | {"drawn": replace(pool.sides["drawn"], rows=None)}
    with pytest.raises(ValueError, match=r"needs Items\.rows on the drawn side"):
        InBatch("own")(replace(pool, sides=sides))


def test_no_drawn_rows_in_this_batch() -> None:
    pool = random_pool(0, "two_tower")
    nothing = pool.sides["drawn"].take(torch.arange(0))
    mined = InBatch()(replace(pool, sides=dict(pool.sides) | {"drawn": nothing}))
    assert [block.origin for block in mined.negatives] == ["in_batch"]
