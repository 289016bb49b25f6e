"""Families that meet in batches: the laws of the specification, its chances, and what is too small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miners import BatchMiner, FamilyBatches, Ragged, Shuffled, TrainingTable
from miners.family_batches import chances
from miners.testing import BatchMinerContract


class TestFamiliesAlone(BatchMinerContract):
    covers = False

    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return FamilyBatches(2, 0, None, batch_size, drop_last, seed)


class HalfOrdinary(FamilyBatches):
    """Every second row is ordinary, the others are families of three."""

    def attach(self, table: TrainingTable) -> None:
        rows = torch.arange(len(table))
        super().attach(replace(table, labels=torch.where(rows % 2 == 0, -1, rows // 6)))


class TestFamiliesAndOrdinary(BatchMinerContract):
    covers = False

    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return HalfOrdinary(2, 2, None, batch_size, drop_last, seed)


def table(labels: list[int]) -> TrainingTable:
    rows = torch.arange(len(labels))
    return TrainingTable(rows, Ragged.from_lists([[row] for row in rows.tolist()]), labels=torch.tensor(labels))


def ready(labels: list[int], **options: object) -> FamilyBatches:
    miner = FamilyBatches(**options)  # type: ignore[arg-type]
    miner.attach(table(labels))
    return miner


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, extra=st.integers(4, 40), members=st.integers(2, 3), ordinary=st.integers(0, 2))
def test_laws_of_a_batch(sizes: list[int], extra: int, members: int, ordinary: int) -> None:
    labels = [number for number, size in enumerate(sizes) for _ in range(size)] + [-1] * extra
    whole = [number for number, size in enumerate(sizes) if size >= members]
    miner = ready(labels, members=members, ordinary=ordinary, batch_size=3 * (members + ordinary), drop_last=True)
    if not whole:
        return
    for batch in miner:
        assert len(batch) == 3 * (members + ordinary), "the batch is not constant"
        families = [labels[row] for row in batch if labels[row] in whole]
        assert len(families) == 3 * members
        for family in set(families):
            assert families.count(family) == members, "a row without its siblings, or a family twice"


def test_ordinary_rows_go_round_without_replacement() -> None:
    """Two families want two of six ordinary rows in each epoch: three epochs see all of them."""
    miner = ready([0, 0, 1, 1] + [-1] * 6, ordinary=1, batch_size=3)
    for round_ in range(3):
        seen = []
        for epoch in range(3 * round_, 3 * round_ + 3):
            miner.set_epoch(epoch)
            seen += [row for batch in miner for row in batch if row >= 4]
        assert sorted(seen) == [4, 5, 6, 7, 8, 9]


def test_too_few_ordinary_rows_are_fewer_families() -> None:
    miner = ready([i // 2 for i in range(20)] + [-1] * 3, ordinary=1, batch_size=6)
    rows = [row for batch in miner for row in batch]
    assert len(rows) == 9 == miner.num_rows
    assert len(set(rows)) == 9


def test_single_rows_without_ordinary_ones_are_random_batches() -> None:
    plain = Shuffled(batch_size=4, seed=3)
    plain.attach(table(list(range(18))))
    single = ready([i // 3 for i in range(18)], members=1, batch_size=4, seed=3)
    for epoch in range(3):
        plain.set_epoch(epoch)
        single.set_epoch(epoch)
        assert list(single) == list(plain)


def test_chances_of_the_specification() -> None:
    found = chances(torch.tensor([1.2, 0.4, -0.3, 2.0]), torch.zeros(4, dtype=torch.long))
    assert (found / found.sum()).tolist() == pytest.approx([0.307692, 0.184615, 0.076923, 0.430769], abs=1e-6)


def test_members_are_drawn_by_weight() -> None:
    miner = ready([0, 0, 0, 0], members=2, batch_size=2, weights=[1.2, 0.4, -0.3, 2.0])
    first = torch.zeros(4)
    for epoch in range(2000):
        miner.set_epoch(epoch)
        first[next(iter(miner))] += 1
    p = torch.tensor([0.307692, 0.184615, 0.076923, 0.430769])  # both of two draws without replacement
    both = p + (p[None] * p[:, None] / (1 - p[:, None])).fill_diagonal_(0).sum(0)
    assert torch.allclose(first / 2000, both, atol=0.04)


def test_a_row_alone_in_its_family_is_ordinary() -> None:
    miner = ready([0, 0, 1, -1], ordinary=1, batch_size=3)
    (batch,) = list(miner)
    assert sorted(batch)[:2] == [0, 1]
    assert batch[2] in (2, 3)


@pytest.mark.parametrize("ordinary", [0, 2])
def test_a_family_stays_on_one_process_to_the_last_batch(ordinary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [i // 2 for i in range(14)] + [-1] * 14
    monkeypatch.setattr("miners.base.process_count", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("miners.base.process_rank", lambda rank=rank: rank)
        miner = ready(labels, ordinary=ordinary, batch_size=4 + 2 * ordinary)
        shares.append(list(miner))
        assert len(shares[-1]) == len(miner) == 2
    met = []
    for batch in (batch for share in shares for batch in share):
        families = [labels[row] for row in batch if labels[row] >= 0]
        assert len(batch) == len(families) // 2 * (2 + ordinary)
        assert all(families.count(family) == 2 for family in families)
        met += families
    assert sorted(met) == [i // 2 for i in range(14)]
    labels = [i // 2 for i in range(10)]  # a fifth family alone would leave the other process without rows
    shares = [list(ready(labels, batch_size=4))]
    assert [len(batch) for batch in shares[0]] == [4]


def test_no_family_at_all(caplog: pytest.LogCaptureFixture) -> None:
    miner = ready([0, 1, 2, -1], batch_size=2)
    assert "no family has 2 rows" in caplog.text
    assert sorted(row for batch in miner for row in batch) == [0, 1, 2, 3]


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least 1 member"):
        FamilyBatches(0)
    with pytest.raises(ValueError, match="batch_size=32 is no multiple of 10"):
        ready([0, 0], ordinary=8)
    with pytest.raises(ValueError, match="3 weights for 2 training rows"):
        ready([0, 0], weights=[1, 2, 3])
    with pytest.raises(ValueError, match="wants 2 ordinary rows for each family, and the training set has 1"):
        ready([0, 0, -1], ordinary=2)
    with pytest.raises(ValueError, match=r"has none \(labels\)"):
        FamilyBatches().attach(TrainingTable(torch.arange(2), Ragged.from_lists([[0], [1]])))
