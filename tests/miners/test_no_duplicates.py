"""No two rows of a batch share an anchor, a positive or their content."""

from __future__ import annotations

import logging
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miners import NGAME, BatchMiner, NoDuplicates, Ragged, TrainingTable
from miners.testing import BatchMinerContract, random_stores, random_table


class TestNoDuplicates(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return NoDuplicates(None, batch_size, drop_last, seed)


class TestNoDuplicatesOverNGAME(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return NoDuplicates(NGAME(4), batch_size, drop_last, seed)


def meet(table: TrainingTable, one: int, two: int) -> bool:
    """The slow, obvious rule."""
    positives = table.positives.to_lists()
    if int(table.anchors[one]) == int(table.anchors[two]) or set(positives[one]) & set(positives[two]):
        return True
    contents = [{int(table.document_content[p]) for p in positives[row]} for row in (one, two)]
    return bool(contents[0] & contents[1]) or bool(table.anchor_content[one] == table.anchor_content[two])


@pytest.mark.parametrize("seed", range(5))
def test_no_two_rows_of_a_batch_are_alike(seed: int) -> None:
    table = random_table(seed, rows=60)
    miner = NoDuplicates(batch_size=5, seed=seed)
    miner.attach(table)
    for batch in miner:
        assert not any(meet(table, one, two) for one, two in combinations(batch, 2))


def test_an_order_without_duplicates_is_left_as_it_is() -> None:
    table = TrainingTable(torch.arange(20), Ragged.from_lists([[row] for row in range(20)]))
    miner = NoDuplicates(NGAME(4), batch_size=6)
    miner.attach(table)
    miner.refresh(random_stores(table))
    inner = NGAME(4, batch_size=6)
    inner.attach(table)
    inner.refresh(random_stores(table))
    assert list(miner) == list(inner)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_every_row_stays_whatever_repeats(documents: list[int], batch_size: int) -> None:
    table = TrainingTable(torch.arange(len(documents)), Ragged.from_lists([[one] for one in documents]))
    miner = NoDuplicates(batch_size=batch_size)
    miner.attach(table)
    assert sorted(row for batch in miner for row in batch) == list(range(len(documents)))


def test_what_no_batch_can_hold_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    table = TrainingTable(torch.arange(8), Ragged.from_lists([[7]] * 8))
    miner = NoDuplicates(batch_size=4)
    miner.attach(table)
    with caplog.at_level(logging.WARNING):
        assert sorted(row for batch in miner for row in batch) == list(range(8))
    assert "6 of 8 rows share an anchor or a positive" in caplog.text


def test_the_inner_miner_learns_what_the_outer_learns() -> None:
    inner = NGAME(4, batch_size=999)
    outer = NoDuplicates(inner, batch_size=8, drop_last=True, seed=5)
    table = random_table()
    outer.attach(table)
    assert (inner.batch_size, inner.drop_last, inner.seed) == (8, True, 5)
    outer.refresh(random_stores(table))
    assert inner._store is not None
