"""The four moments: process shares, resuming, drawn batches; and that every public miner has signed its contract."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from pathlib import Path

import pytest
import torch

import miners
from miners import (
    BatchMiner,
    DrawnBatches,
    NegativeSource,
    PoolMiner,
    Ragged,
    Row,
    Shuffled,
    StaticNegatives,
    TrainingTable,
)
from miners.testing import (
    BatchMinerContract,
    NegativeSourceContract,
    PoolMinerContract,
    random_table,
)


class TestShuffled(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return Shuffled(batch_size, drop_last, seed)


# ---- contracts are signed ------------------------------------------------------------------------------------------

SIGNED_BY = {PoolMiner: PoolMinerContract, BatchMiner: BatchMinerContract, NegativeSource: NegativeSourceContract}


def public_miners() -> list[type]:
    """Concrete public miners of all kinds; names that are loaded late are stores, indices and tables."""
    found = [vars(miners)[name] for name in miners.__all__ if name in vars(miners)]
    return [one for one in found if inspect.isclass(one) and issubclass(one, tuple(SIGNED_BY)) and one not in SIGNED_BY]


def signed() -> set[type]:
    """Classes of which some test class, in any test file of this folder, makes one."""
    for file in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"{__package__}.{file.stem}")
    made, table = set(), random_table()
    for contract in _below(PoolMinerContract):
        made.add(type(contract().make()))
    for contract in _below(BatchMinerContract):
        made.add(type(contract().make(8)))
    for contract in _below(NegativeSourceContract):
        made.add(type(contract().make(table)))
    return made


def _below(contract: type) -> list[type]:
    classes = [one for child in contract.__subclasses__() for one in (child, *_below(child))]
    return [one for one in classes if one.__module__.startswith(f"{__package__}.") and not inspect.isabstract(one)]


def test_every_public_miner_has_signed_its_contract() -> None:
    unsigned = [one.__name__ for one in public_miners() if one not in signed()]
    assert not unsigned, f"no test class inherits a contract of miners.testing for {unsigned}"


def test_an_unsigned_miner_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsigned(PoolMiner):
        def forward(self, pool):
            return pool

    monkeypatch.setattr(miners, "Unsigned", Unsigned, raising=False)
    monkeypatch.setattr(miners, "__all__", [*miners.__all__, "Unsigned"])
    assert Unsigned in public_miners()
    assert Unsigned not in signed()


# ---- batches -------------------------------------------------------------------------------------------------------


def test_batches_of_one_global_order_are_contiguous_shares() -> None:
    class InOrder(Shuffled):
        def arrange(self, rows: torch.Tensor, epoch: int) -> torch.Tensor:
            return rows

    miner = InOrder(4)
    miner.attach(random_table(rows=10))
    assert list(miner) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_epoch_after_a_resumed_one_is_whole() -> None:
    stopped, miner = Shuffled(4), Shuffled(4)
    stopped.attach(random_table(rows=20))
    miner.attach(random_table(rows=20))
    stopped.set_epoch(3)
    whole = list(stopped)
    stopped.batch_trained()
    stopped.batch_trained()
    miner.load_state_dict(stopped.state_dict())
    miner.set_epoch(3)  # as a trainer says again
    assert list(miner) == whole[2:]
    miner.set_epoch(4)
    assert len(list(miner)) == 5


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"Shuffled\(batch_size=0\): wants at least 1"):
        Shuffled(0)
    with pytest.raises(RuntimeError, match=r"Shuffled knows no rows yet: call attach\(TrainingTable"):
        list(Shuffled(2))
    with pytest.raises(ValueError, match="a training set without rows"):
        Shuffled(2).attach(TrainingTable(torch.arange(0), Ragged.empty(0)))
    with pytest.raises(AttributeError, match="module 'miners' has no attribute 'Nothing'"):
        miners.Nothing  # noqa: B018


# ---- drawn batches -------------------------------------------------------------------------------------------------


def drawn(batch_size: int = 4, epoch: int = 0, seed: int = 0) -> list[Row]:
    table = random_table(rows=20)
    lists = Ragged.from_lists([[100 + row, 200 + row, 300 + row] for row in range(20)])
    source = StaticNegatives(lists, num_negatives=2)
    source.attach(table)
    miner = Shuffled(batch_size)
    miner.attach(table)
    batches = DrawnBatches(miner, [source], seed)
    batches.set_epoch(epoch)
    return [row for batch in batches for row in batch]


def test_what_is_drawn_does_not_depend_on_the_batch() -> None:
    assert sorted(drawn(batch_size=4)) == sorted(drawn(batch_size=7))
    assert sorted(drawn(epoch=1)) != sorted(drawn(epoch=0))
    assert sorted(drawn(seed=1)) != sorted(drawn(seed=0))


def test_a_row_brings_one_of_its_positives_and_its_own_negatives() -> None:
    positives = random_table(rows=20).positives.to_lists()
    for row in drawn():
        assert row.positive in positives[row.index]
        assert {negative % 100 for negative in row.negatives} == {row.index}
        assert len(set(row.negatives)) == 2


def test_positives_are_drawn_evenly() -> None:
    table = TrainingTable(torch.arange(1), Ragged.from_lists([[3, 5, 8]]))
    miner = Shuffled(1)
    miner.attach(table)
    batches = DrawnBatches(miner)
    seen: Counter[int] = Counter()
    for epoch in range(3000):
        batches.set_epoch(epoch)
        seen.update(row.positive for batch in batches for row in batch)
    assert set(seen) == {3, 5, 8}
    assert all(900 < number < 1100 for number in seen.values())


def test_a_row_without_positives_says_so() -> None:
    miner = Shuffled(2)
    miner.attach(TrainingTable(torch.arange(2), Ragged.from_lists([[], [4]])))
    assert sorted(row for batch in DrawnBatches(miner) for row in batch) == [Row(0, -1, ()), Row(1, 4, ())]


def test_lightning_finds_the_clock_and_a_resumed_loader_goes_on() -> None:
    table = random_table(rows=20)
    miner, again = Shuffled(4), Shuffled(4)
    miner.attach(table)
    again.attach(table)
    batches, resumed = DrawnBatches(miner), DrawnBatches(again)
    batches.sampler.set_epoch(2)  # where Lightning looks
    assert miner.epoch == 2
    whole = list(batches)
    miner.batch_trained()  # the loader drew all of them ahead
    resumed.load_state_dict(batches.state_dict())
    assert list(resumed) == whole[1:]
    assert len(batches) == len(whole)


def test_a_checkpoint_between_two_epochs_begins_the_next_one() -> None:
    stopped, miner = Shuffled(4), Shuffled(4)
    stopped.attach(random_table(rows=20))
    miner.attach(random_table(rows=20))
    for _ in stopped:
        stopped.batch_trained()
    stopped.set_epoch(1)
    miner.load_state_dict(stopped.state_dict())
    assert list(miner) == list(stopped)
    assert len(list(miner)) == 5
