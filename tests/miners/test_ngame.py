"""Clusters are the published ones, batches are unions of clusters, and the curriculum keeps its dates."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miners import NGAME, BatchMiner, Block, Items, NegativePool, Ragged, Store, TrainingTable
from miners.ngame import _starts, balanced_clusters
from miners.testing import BatchMinerContract, random_stores, random_table


class TestNGAME(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return NGAME(4, batch_size, drop_last, seed)


class TestNGAMEFromItsBuffer(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return NGAME(4, batch_size, drop_last, seed, embeddings="buffer")


class TestNGAMEAsPublished(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return NGAME(batch_size=batch_size, drop_last=drop_last, seed=seed, halve_at=(1, 2), lag=1)


class TestNGAMEAsPublishedFromItsBuffer(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return NGAME(batch_size=batch_size, drop_last=drop_last, seed=seed, halve_at=(1, 2), lag=1, embeddings="buffer")


def clusters(vectors: Tensor, number: int, seed: int) -> set[frozenset[int]]:
    order, sizes = balanced_clusters(vectors, number, torch.Generator().manual_seed(seed))
    return {frozenset(one.tolist()) for one in order.split(sizes.tolist())}


def at(degrees: list[float]) -> Tensor:
    angle = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_t1_a_split_that_every_seed_finds() -> None:
    rows = torch.tensor([[1, 0], [0.98, 0.2], [-1, 0], [-0.98, 0.2]])
    for seed in range(300):
        assert clusters(rows, 2, seed) == {frozenset({0, 1}), frozenset({2, 3})}


def test_t2_four_clusters_that_every_seed_finds() -> None:
    rows = at([0, 5, 20, 25, 180, 185, 200, 205])
    for seed in range(300):
        assert clusters(rows, 4, seed) == {frozenset({2 * i, 2 * i + 1}) for i in range(4)}


def test_t2_two_clusters_have_two_optima() -> None:
    rows = at([0, 5, 20, 25, 180, 185, 200, 205])
    found = {frozenset(clusters(rows, 2, seed)) for seed in range(300)}
    best = frozenset({frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7})})
    assert best in found
    assert all(sorted(map(len, halves)) == [4, 4] for halves in found)


@pytest.mark.parametrize(
    ("rows", "number", "sizes"),
    [(5, 2, [3, 2]), (9, 3, [3, 2, 2, 2]), (9, 4, [3, 2, 2, 2]), (13, 4, [4, 3, 3, 3]), (7, 4, [2, 2, 2, 1])],
)
def test_t3_sizes(rows: int, number: int, sizes: list[int]) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        assert balanced_clusters(torch.randn(rows, 3, generator=generator), number, generator)[1].tolist() == sizes


def test_t4_the_published_schedule() -> None:
    miner = NGAME(halve_at=(10, 20, 25, 50, 75, 100, 125, 150, 200), refresh_interval=5, lag=1)
    table = {0: 294805, 11: 262144, 21: 131072, 26: 65536, 51: 32768, 76: 16384, 101: 8192, 126: 4096, 151: 2048}
    assert miner.schedule(294805, 300) == [*table.items(), (201, 1024)]
    assert sum(miner.due(epoch) for epoch in range(300)) == 58


def ready(rows: int = 40, **options: object) -> NGAME:
    miner = NGAME(**options)
    table = random_table(rows=rows)
    miner.attach(table)
    miner.refresh(random_stores(table))
    return miner


def test_t5_an_order_is_a_permutation_of_whole_clusters() -> None:
    miner = ready(cluster_size=5, refresh_interval=1000)  # clustered once
    first = miner.arrange(torch.arange(40), 0)
    second = miner.arrange(torch.arange(40), 1)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(40))
    assert not torch.equal(first, second)
    assert miner._order is not None
    assert miner._sizes is not None
    for cluster in miner._order.split(miner._sizes.tolist()):
        for order in (first, second):
            start = int((order == cluster[0]).nonzero())
            assert torch.equal(order[start : start + len(cluster)], cluster)  # whole, and in its own order


def test_a_batch_holds_neighbours() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(256, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    table = TrainingTable(torch.arange(256), Ragged.from_lists([[row] for row in range(256)]))

    def closeness(cluster_size: int) -> float:
        miner = NGAME(cluster_size, batch_size=32)
        miner.attach(table)
        miner.refresh({"query": Store(vectors, space="query")})
        within = [vectors[batch] @ vectors[batch].T for batch in miner]
        return sum(float(one.sum() - one.trace()) for one in within) / (256 * 31)

    assert closeness(1) < 0.05
    assert closeness(32) > closeness(8) > closeness(1) + 0.05


def test_sizes_are_spread_over_the_run() -> None:
    miner = NGAME([1, 2, 4, 8], warmup_epochs=1, spread_epochs=8)
    assert [miner.size_at(epoch) for epoch in range(12)] == [1, 1, 1, 2, 2, 4, 4, 8, 8, 8, 8, 8]
    assert miner.schedule(1024, 12) == [(0, 1024), (3, 512), (5, 256), (7, 128)]
    seldom = NGAME([1, 2, 4, 8], spread_epochs=8, refresh_interval=3)
    assert seldom.schedule(1024, 12) == [(0, 1024), (3, 512), (6, 128)]


def test_batches_of_a_curriculum_grow_harder() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(256, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    miner = NGAME([1, 8, 32], batch_size=32, spread_epochs=3)
    miner.attach(TrainingTable(torch.arange(256), Ragged.from_lists([[row] for row in range(256)])))
    miner.refresh({"query": Store(vectors, space="query")})
    closeness = []
    for epoch in range(3):
        miner.set_epoch(epoch)
        within = [vectors[batch] @ vectors[batch].T for batch in miner]
        closeness.append(sum(float(one.sum() - one.trace()) for one in within) / (256 * 31))
    assert closeness[0] + 0.05 < closeness[1] < closeness[2] - 0.05


def test_neighbours_that_are_the_same_thing_are_no_negatives() -> None:
    """Equal texts share a cluster; neither their ids nor their positives may push them apart."""
    vectors = at([0, 0, 1, 180, 180, 181])
    content = torch.tensor([7, 7, 8, 9, 9, 10])
    table = TrainingTable(torch.arange(6), Ragged.from_lists([[0], [1], [2], [3], [4], [5]]), anchor_content=content)
    miner = NGAME(3, batch_size=3)
    miner.attach(table)
    miner.refresh({"query": Store(vectors, space="query")})
    assert sorted(sorted(batch) for batch in miner) == [[0, 1, 2], [3, 4, 5]]
    own = Items(vectors[:3], torch.arange(3), content[:3], space="query")
    documents = Items(vectors[:3, None], torch.tensor([[0], [1], [2]]), content[:3, None], space="document")
    candidates = Items(vectors[:3], torch.arange(3), content[:3], space="document")
    pool = NegativePool(own, Block(documents, "positive"), known=Ragged.from_lists([[0], [1, 2], [2]]))
    pool = pool.add(Block(candidates, "in_batch"))
    assert pool.usable_of(pool.negatives[0]).tolist() == [
        [False, False, True],  # itself, and the same text under another id
        [False, False, False],  # and a document that is known to be right
        [True, True, False],
    ]


def test_t9_clusters_of_one_are_plain_shuffling() -> None:
    """Rows meet as often as chance lets them, as in a shuffled loader."""
    miner = ready(rows=12, cluster_size=1, batch_size=4)
    meetings = torch.zeros(12, 12)
    for epoch in range(600):
        miner.set_epoch(epoch)
        for batch in miner:
            meetings[torch.tensor(batch)[:, None], torch.tensor(batch)] += 1
    share = meetings / 600
    off = share[~torch.eye(12, dtype=torch.bool)]
    expected, deviation = 3 / 11, math.sqrt(3 / 11 * 8 / 11 / 600)
    assert bool(((off - expected).abs() < 5 * deviation).all())


def test_never_more_clusters_than_rows() -> None:
    assert NGAME(1).num_clusters(7, 0) == 4
    assert NGAME(16).num_clusters(3, 0) == 1
    order, sizes = balanced_clusters(torch.randn(3, 2), 1000, torch.Generator().manual_seed(0))
    assert sizes.tolist() == [2, 1]
    assert sorted(order.tolist()) == [0, 1, 2]


def test_identical_and_zero_rows_are_split_evenly() -> None:
    for rows in (torch.ones(10, 3), torch.zeros(10, 3)):
        order, sizes = balanced_clusters(rows, 4, torch.Generator().manual_seed(0))
        assert sizes.tolist() == [3, 2, 3, 2]
        assert sorted(order.tolist()) == list(range(10))


def test_of_equal_rows_the_earlier_go_first() -> None:
    order, sizes = balanced_clusters(torch.ones(7, 3), 2, torch.Generator().manual_seed(0))
    assert order.tolist() == list(range(7))
    assert sizes.tolist() == [4, 3]


def test_real_sizes_lie_between_half_and_whole() -> None:
    for rows in (100, 1000, 4097):
        number = NGAME(16).num_clusters(rows, 0)
        assert 8 < rows / number <= 16


def one_by_one(vectors: np.ndarray, number: int, seed: int) -> list[int]:
    """The clusters' rows, split as the specification says: a cluster at a time, its sums by plain additions."""
    generator = torch.Generator().manual_seed(seed)
    x = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    parts = [np.arange(len(x))]
    for _ in range(min(math.ceil(math.log2(number)), int(math.log2(len(x))))):
        starts = _starts(torch.tensor([len(part) for part in parts]), generator).tolist()
        halves = []
        for rows, (one, other) in zip(parts, starts, strict=True):
            first, before = (len(rows) + 1) // 2, -2.0
            towards = x[rows[other]] - x[rows[one]]
            while True:
                ranked = rows[np.argsort(np.vecdot(x[rows], towards), kind="stable")]
                sums = [sum(x[row] for row in half) for half in (ranked[:first], ranked[first:])]
                lengths = [max(np.linalg.norm(part), 1e-12) for part in sums]
                if sum(lengths) / len(rows) - before < 1e-4:
                    break
                before = sum(lengths) / len(rows)
                towards = sums[1] / lengths[1] - sums[0] / lengths[0]
            halves += [np.sort(ranked[:first]), np.sort(ranked[first:])]
        parts = halves
    return np.concatenate(parts).tolist()


@settings(deadline=None)
@given(
    rows=st.integers(2, 40),
    dim=st.integers(2, 5),
    copies=st.integers(0, 1),  # of more, both halves may have one direction, and rounding decides
    zeros=st.integers(0, 4),
    number=st.integers(2, 50),
    room=st.sampled_from([1, 3, 10, 1000]),
    seed=st.integers(0, 1000),
)
def test_clusters_are_those_of_splits_one_by_one(
    rows: int, dim: int, copies: int, zeros: int, number: int, room: int, seed: int
) -> None:
    """Whether a cluster is too large for a block of ``room`` rows or shares it; of equal rows, the earlier go first."""
    draw = np.random.default_rng(seed)
    vectors = np.concatenate([draw.standard_normal((rows, dim)), np.zeros((zeros, dim))])
    vectors = draw.permutation(np.concatenate([vectors, np.repeat(vectors[:1], copies, axis=0)]))
    given_ = torch.from_numpy(vectors.copy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("miners.ngame.BLOCK_BYTES", 8 * dim * room)
        patch.setattr("miners.ngame.ROWS_AT_ONCE", 7)
        order, _ = balanced_clusters(given_, number, torch.Generator().manual_seed(seed))
    assert order.tolist() == one_by_one(vectors, number, seed)
    assert torch.equal(given_, torch.from_numpy(vectors))  # untouched


def test_threads_are_as_many_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        order, _ = balanced_clusters(torch.randn(100, 3), 8, torch.Generator())
        assert torch.get_num_threads() == 2
        assert sorted(order.tolist()) == list(range(100))
    finally:
        torch.set_num_threads(before)


def test_lag_uses_clusters_one_epoch_later() -> None:
    late = ready(cluster_size=5, lag=1)
    assert late._sizes is None
    list(late)
    assert late._sizes is not None
    soon = ready(cluster_size=5)
    late.set_epoch(1)
    soon.set_epoch(1)
    assert list(late) != list(soon)


def test_the_buffer_clusters_what_training_showed(caplog: pytest.LogCaptureFixture) -> None:
    miner = ready(rows=10, cluster_size=5, batch_size=4, embeddings="buffer")
    with caplog.at_level(logging.INFO):
        shuffled = list(miner)
    assert "no row has been trained yet" in caplog.text
    assert miner._sizes is None
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    miner.observe(rows, Items(at([0, 180, 1, 181, 2, 182, 3, 183]), rows, space="query"))
    miner.set_epoch(1)
    batches = list(miner)
    assert batches != shuffled
    assert miner._order is not None
    assert miner._sizes is not None
    halves = [set(one.tolist()) for one in miner._order.split(miner._sizes.tolist())]
    assert halves == [{0, 2, 4, 6}, {1, 3, 5, 7}, {8}, {9}] or halves == [{1, 3, 5, 7}, {0, 2, 4, 6}, {8}, {9}]


def test_a_vector_that_is_not_finite_is_named() -> None:
    vectors = torch.randn(5, 2)
    vectors[3, 1] = torch.nan
    with pytest.raises(ValueError, match="row 3 of 5 has a vector that is not finite"):
        balanced_clusters(vectors, 2, torch.Generator())


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"NGAME\(cluster_size=0, refresh_interval=1, lag=0\)"):
        NGAME(0)
    with pytest.raises(ValueError, match=r"NGAME\(cluster_size=\[4, 2\]\): a curriculum is a rising list"):
        NGAME([4, 2], spread_epochs=2)
    for wrong in ({"cluster_size": [1, 2]}, {"spread_epochs": 4}, {"cluster_size": [1, 2], "spread_epochs": 0}):
        with pytest.raises(ValueError, match="a list of sizes wants the number of epochs that it is spread over"):
            NGAME(**wrong)
    with pytest.raises(ValueError, match=r"NGAME\(embeddings='old'\): wants 'fresh' or 'buffer'"):
        NGAME(embeddings="old")
    with pytest.raises(ValueError, match=r"NGAME\(halve_at=\[3, 2\]\): rising epochs from 1 on"):
        NGAME(halve_at=(3, 2))
    miner = NGAME()
    miner.attach(random_table())
    with pytest.raises(
        RuntimeError, match=r"no embeddings to cluster at epoch 0.*RefreshNegatives.*embeddings='buffer'"
    ):
        list(miner)
    with pytest.raises(ValueError, match=r"NGAME clusters space 'query' and was handed \['image'\]"):
        miner.refresh({"image": Store(torch.randn(3, 2), space="image")})
