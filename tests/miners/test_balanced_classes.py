"""Batches of a few rows of each of many classes."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from miners import BalancedClasses, BatchMiner, Ragged, TrainingTable
from miners.testing import BatchMinerContract


class TestBalancedClasses(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return BalancedClasses(2, batch_size, drop_last, seed)


def table(labels: list[int]) -> TrainingTable:
    rows = torch.arange(len(labels))
    return TrainingTable(rows, Ragged.from_lists([[row] for row in rows.tolist()]), labels=torch.tensor(labels))


def batches(labels: list[int], per_class: int, batch_size: int, epoch: int = 0) -> list[Tensor]:
    """Classes of each batch of an epoch."""
    miner = BalancedClasses(per_class, batch_size)
    miner.attach(table(labels))
    miner.set_epoch(epoch)
    return [torch.tensor(labels)[batch] for batch in miner]


@pytest.mark.parametrize("epoch", range(4))
@pytest.mark.parametrize(("classes", "each", "per_class", "size"), [(25, 8, 2, 20), (10, 12, 4, 16), (7, 6, 3, 9)])
def test_every_class_of_a_batch_has_as_many_rows(
    classes: int, each: int, per_class: int, size: int, epoch: int
) -> None:
    found = batches([i % classes for i in range(classes * each)], per_class, size, epoch)
    assert sum(map(len, found)) == classes * each
    for batch in found:
        _, counts = batch.unique(return_counts=True)
        assert counts.tolist() == [per_class] * (len(batch) // per_class)


@pytest.mark.parametrize("seed", range(5))
def test_classes_of_any_size(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (60,), generator=generator)
    labels = torch.arange(60).repeat_interleave(sizes).tolist()
    found = batches(labels, 2, 24)
    assert sum(map(len, found)) == len(labels)
    for batch in found:
        _, counts = batch.unique(return_counts=True)
        assert int(counts.max()) <= 4  # two of its own group, and at most left-overs


def test_classes_of_one_row_and_rows_without_class_travel_together() -> None:
    found = torch.cat(batches([0, 0, 0, 0, 1, 2, 3, -1, -1], 2, 4))
    assert sorted(found.tolist()) == [-1, -1, 0, 0, 0, 0, 1, 2, 3]


def test_companions_change() -> None:
    """Classes with two groups each meet others in each of them."""
    met = [frozenset(batch.unique().tolist()) for batch in batches([i % 24 for i in range(96)], 2, 12)]
    assert len(set(met)) == len(met)


def test_too_few_classes_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = batches([0, 1] * 8, 2, 8)
    assert "has 2 classes and a batch wants 4" in caplog.text
    assert [len(batch) for batch in found] == [8, 8]


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="per_class=0"):
        BalancedClasses(0)
    with pytest.raises(ValueError, match="does not divide batch_size=32"):
        BalancedClasses(5).attach(table([0, 1]))
    nameless = TrainingTable(torch.arange(2), Ragged.from_lists([[0], [1]]))
    with pytest.raises(ValueError, match="has none"):
        BalancedClasses().attach(nameless)
    assert BalancedClasses(4, 32).classes == 8
