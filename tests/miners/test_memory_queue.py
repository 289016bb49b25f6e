"""A ring of past candidates, that a checkpoint keeps whole."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miners import InBatch, Items, MemoryQueue, NegativePool, PoolMiner
from miners.testing import PoolMinerContract, cost, random_pool


class TestMemoryQueue(PoolMinerContract):
    kinds = ("two_tower", "symmetric", "labelled")

    def make(self) -> PoolMiner:
        return MemoryQueue(size=8)


class TestFilledMemoryQueue(PoolMinerContract):
    """The same laws with something in the queue: four positives of other rows, known to nobody."""

    kinds = ("two_tower",)

    def make(self) -> PoolMiner:
        miner = MemoryQueue(size=8)
        pool = random_pool(11)
        first = pool.sides["positives"].take(slice(0, 4))
        miner.commit(
            replace(pool, sides={"positives": replace(first, ids=first.ids + 1000, content=first.content + 1000)})
        )
        return miner


def of_step(step: int, rows: int = 4, training: bool = True, **parts: Tensor) -> NegativePool:
    """A pool whose positives have ids rows x step, ... and whose vectors say so too."""
    ids = torch.arange(rows) + rows * step
    pool = random_pool(step, anchors=rows, training=training)
    old = pool.sides["positives"]
    assert isinstance(old, Items)
    documents = Items(ids[:, None].float().repeat(1, 8), ids, space=old.space, **parts)
    return replace(pool, sides={"positives": documents}, known=None)


def queued(miner: MemoryQueue) -> list[int]:
    return [] if miner._ring is None else miner._ring.ids.tolist()


def test_the_ring_is_written_modulo_its_size() -> None:
    miner = MemoryQueue(size=6)
    seen = []
    for step in range(4):
        miner.commit(of_step(step))
        seen.append(queued(miner))
        assert miner._ring.embeddings[:, 0].tolist() == queued(miner)  # a vector stays with its id
    assert seen == [[0, 1, 2, 3], [6, 7, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 10, 11]]


def test_a_batch_longer_than_the_queue_leaves_its_last_rows() -> None:
    miner = MemoryQueue(size=3)
    miner.commit(of_step(0, rows=5))
    assert sorted(queued(miner)) == [2, 3, 4]
    miner.commit(of_step(5, rows=1))
    assert sorted(queued(miner)) == [3, 4, 5]  # the oldest went


def test_what_is_not_written_is_no_candidate() -> None:
    miner, pool = MemoryQueue(size=100), of_step(9)
    assert miner(pool).negatives == ()
    miner.commit(of_step(0))
    (block,) = miner(pool).negatives
    assert block.origin == "queue"
    assert block.items.ids.tolist() == [0, 1, 2, 3]
    assert not block.items.embeddings.requires_grad


def test_evaluation_reads_and_never_writes() -> None:
    miner = MemoryQueue(size=4)
    miner.commit(of_step(0))
    miner.commit(of_step(1, training=False))
    assert queued(miner) == [0, 1, 2, 3]
    assert len(miner(of_step(2, training=False)).negatives) == 1


def test_an_anchors_own_positive_is_masked_when_it_is_met_again() -> None:
    pool = random_pool(0)
    miner = MemoryQueue(size=8)
    miner.commit(pool)
    mined = miner(random_pool(0))
    usable, ids = mined.usable_of(mined.negatives[0]), mined.negatives[0].items.ids
    for row, known in enumerate(pool.known.to_lists()):
        assert not usable[row, torch.isin(ids, torch.tensor(known))].any()
    assert not usable[0, 1]  # the same text as its positive
    assert usable[3, 1]


def test_content_labels_and_guide_are_queued_along() -> None:
    parts = {"content": torch.arange(4), "labels": torch.arange(4), "guide": torch.ones(4, 3), "norms": torch.ones(4)}
    miner = MemoryQueue(size=4)
    miner.commit(of_step(0, **parts))
    assert set(miner._ring.tensors()) == {"embeddings", "ids", *parts}


def test_the_pool_of_a_step_still_shows_the_queue_that_it_was_compared_with() -> None:
    miner = MemoryQueue(size=4)
    miner.commit(of_step(0))
    mined = miner(of_step(1))
    miner.commit(mined)
    assert mined.negatives[0].items.ids.tolist() == [0, 1, 2, 3]
    assert queued(miner) == [4, 5, 6, 7]


def reloaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_checkpoint_keeps_vectors_ids_pointer_and_fill() -> None:
    for steps in (0, 1, 2, 5):  # empty, half full, just wrapped, wrapped often
        stopped, resumed = MemoryQueue(size=6), MemoryQueue(size=6)
        for step in range(steps):
            stopped.commit(of_step(step))
        nn.ModuleList([resumed]).load_state_dict(reloaded(nn.ModuleList([stopped]).state_dict()))
        assert queued(resumed) == queued(stopped)
        for miner in (stopped, resumed):
            miner.commit(of_step(7))
        assert queued(resumed) == queued(stopped)
        torch.testing.assert_close(resumed._ring.embeddings, stopped._ring.embeddings)
        torch.testing.assert_close(cost(resumed(of_step(8))), cost(stopped(of_step(8))))


@pytest.mark.parametrize(("size", "message"), [(3, "has no room for them"), (9, "would not be")])
def test_a_queue_of_another_size_says_so(size: int, message: str) -> None:
    stopped = MemoryQueue(size=6)
    for step in range(2):
        stopped.commit(of_step(step))
    with pytest.raises(ValueError, match=message):
        MemoryQueue(size=size).load_state_dict(stopped.state_dict())


def test_scores_without_vectors_cannot_be_queued() -> None:
    with pytest.raises(ValueError, match="queues vectors; the side 'positives' has scores only"):
        MemoryQueue().commit(random_pool(0, "scores_only"))


@pytest.mark.parametrize(("options", "message"), [({"size": 0}, "size=0"), ({"side": "negatives"}, "side='negatives'")])
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryQueue(**options)


def test_every_row_of_all_processes_is_queued() -> None:
    pool = random_pool(0, anchors=6)
    miner = MemoryQueue(size=16)
    miner.commit(InBatch()(pool))  # a process with fewer anchors has the same sides
    assert queued(miner) == pool.sides["positives"].ids.tolist()
