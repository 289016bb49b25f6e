"""Batches are those of Sample4Geo, neighbours the true ones, and nobody meets their like."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miners import (
    BatchMiner,
    GeoTable,
    NeighbourBatches,
    NeighbourTable,
    Places,
    Ragged,
    SimilarityTable,
    Store,
    TrainingTable,
)
from miners import neighbour_batches as module
from miners.neighbour_batches import half_nearest_half_random
from miners.testing import BatchMinerContract
from tests.oracles import geo


class TestWithoutTables(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        return NeighbourBatches([], batch_size=batch_size, drop_last=drop_last, seed=seed)


class TestBySimilarity(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        tables = [SimilarityTable(0, 1, index="torch")]
        return NeighbourBatches(tables, batch_size=batch_size, drop_last=drop_last, seed=seed)


class TestBySimilaritySeldom(BatchMinerContract):
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        tables = [SimilarityTable(0, 2, index="torch")]
        return NeighbourBatches(tables, batch_size=batch_size, drop_last=drop_last, seed=seed)


class Fixed(NeighbourTable):
    """Neighbours that somebody else has found."""

    def __init__(self, lists: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.lists = lists

    def prepare(self) -> None:
        self.near = Ragged.from_lists(self.lists).padded().int()


def table(
    rows: int,
    coordinates: Tensor | None = None,
    positives: Sequence[Sequence[int]] | None = None,
    **parts: object,
) -> TrainingTable:
    lists = [[row] for row in range(rows)] if positives is None else positives
    places = None if coordinates is None else Places(coordinates)
    return TrainingTable(torch.arange(rows), Ragged.from_lists(lists), document_places=places, **parts)


def ring(rows: int = 12) -> list[list[int]]:
    """Others by distance on a ring, ties by the smaller number."""
    return [
        sorted((j for j in range(rows) if j != i), key=lambda j: (min((i - j) % rows, (j - i) % rows), j))
        for i in range(rows)
    ]


T2 = [
    (0, 4, [[2, 1, 3, 5], [10, 9, 11, 7], [6, 4, 8, 12]]),
    (0, 5, [[2, 1, 3, 5, 4], [10, 9, 11, 7, 12]]),
    (1, 4, [[8, 7, 9, 5], [12, 1, 11, 10], [6, 3, 4, 2]]),
]


@pytest.mark.parametrize(("seed", "size", "expected"), T2)
def test_t2_order(seed: int, size: int, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    near = {i + 1: [j + 1 for j in others] for i, others in enumerate(ring())}
    assert geo.shuffle(range(1, 13), near, size, 4, 6, seed) == expected  # the published code's own

    def half(listed: np.ndarray, select: int, _: object) -> np.ndarray:  # ours, with Python's generator
        far = listed[select // 2 :].tolist()
        random.shuffle(far)
        return np.array([*listed[: select // 2].tolist(), *far[: select // 2]], dtype=int)

    def order(rows: np.ndarray, _: object) -> np.ndarray:
        pool = rows.tolist()
        random.shuffle(pool)
        return np.array(pool)

    monkeypatch.setattr(module, "half_nearest_half_random", half)
    monkeypatch.setattr(module, "_shuffled", order)
    miner = NeighbourBatches([Fixed([others[:6] for others in ring()])], 4, 6, batch_size=size, drop_last=True)
    miner.attach(table(12))
    random.seed(seed)
    assert [[row + 1 for row in batch] for batch in miner] == expected


@pytest.mark.parametrize("seed", range(5))
def test_t2_properties(seed: int) -> None:
    """Nearest half unless used up; others from the rest of the range; whole batches; N mod B rows are dropped."""
    rows, size, select, span = 103, 16, 8, 20
    listed = ring(rows)
    miner = NeighbourBatches([Fixed([others[:span] for others in listed])], select, span, False, size, True, seed)
    miner.attach(table(rows))
    batches = list(miner)
    handed = [row for batch in batches for row in batch]
    assert len(handed) == len(set(handed)) == rows - rows % size
    assert all(len(batch) == size for batch in batches)
    first = batches[0]
    assert set(listed[first[0]][: select // 2]) == set(first[1 : 1 + select // 2])
    assert set(first[1 + select // 2 : 1 + select]) <= set(listed[first[0]][select // 2 : span])


def test_half_nearest_half_random() -> None:
    generator = np.random.default_rng(0)
    for length, expected in ((10, 4), (3, 3), (2, 2), (0, 0)):
        found = half_nearest_half_random(np.arange(length), 4, generator)
        assert len(found) == len(set(found.tolist())) == expected
        assert found[:2].tolist() == list(range(length))[:2]
    seen = {int(half_nearest_half_random(np.arange(6), 2, generator)[1]) for _ in range(200)}
    assert seen == {1, 2, 3, 4, 5}


def test_t3_similarity_table() -> None:
    scores = torch.tensor(
        [[0.9, 0.8, 0.1, 0.2, 0.3], [0.7, 0.6, 0.9, 0.1, 0.2], [0.1, 0.5, 0.5, 0.4, 0.2], [0.3, 0.2, 0.1, 0.25, 0.9]]
    )
    rows = TrainingTable(torch.arange(10, 14), Ragged.from_lists([[10], [11], [12], [13, 14]]))
    for index in ("Flat", "torch"):
        similar = SimilarityTable(0, index=index)
        similar.attach(rows, 2)
        documents = Store(torch.eye(5), torch.arange(10, 15))
        assert similar.refresh({"query": Store(scores, torch.arange(10, 14)), "document": documents}, 0)
        similar.prepare()
        assert similar.near[:3].tolist() == [[11, 14], [12, 10], [11, 13]]
    # 14 stands in the table above as a positive, since a document that nobody holds is in no batch
    assert similar.near[3].tolist() == [10, 11]
    alone = SimilarityTable(0)
    alone.attach(TrainingTable(torch.tensor([13, 14]), Ragged.from_lists([[13], [14]])), 2)
    assert alone.refresh({"query": Store(torch.eye(2), [13, 14]), "document": Store(torch.eye(2), [13, 14])}, 0)
    alone.prepare()
    assert alone.near.tolist() == [[14, -1], [13, -1]]  # fewer references than asked for


def test_t3_the_last_query() -> None:
    """Query 13 of the spec's table, whose own document is 13."""
    scores = torch.tensor([[0.3, 0.2, 0.1, 0.25, 0.9]]).repeat(5, 1)
    rows = TrainingTable(torch.arange(10, 15), Ragged.from_lists([[10], [11], [12], [13], [14]]))
    similar = SimilarityTable(0)
    similar.attach(rows, 2)
    similar.refresh({"query": Store(scores, rows.anchors), "document": Store(torch.eye(5), rows.anchors)}, 0)
    similar.prepare()
    assert similar.near[3].tolist() == [14, 10]


COORDINATES = st.lists(
    st.tuples(
        st.floats(-90, 90, allow_nan=False).map(lambda v: round(v, 3)),
        st.floats(-180, 180, allow_nan=False).map(lambda v: round(v, 3)),
    ),
    min_size=2,
    max_size=24,
)


@settings(max_examples=60, deadline=None)
@given(COORDINATES, st.integers(1, 30))
def test_geo_table_is_brute_force(points: list[tuple[float, float]], depth: int) -> None:
    coordinates = torch.tensor(points, dtype=torch.float64)
    near = GeoTable()
    near.attach(table(len(points), coordinates), depth)
    near.prepare()
    k = min(depth, len(points) - 1)
    expected = geo.nearest(coordinates.numpy(), k)
    found = near.near.numpy()
    assert (found[:, k:] == -1).all()
    assert all(row not in others for row, others in enumerate(found[:, :k].tolist()))
    assert all(len(set(others)) == k for others in found[:, :k].tolist())
    places = Places(coordinates)
    rows = torch.arange(len(points)).repeat_interleave(k)
    ours, theirs = (
        places.distances(rows, places, torch.from_numpy(one[:, :k].astype(np.int64)).flatten())
        for one in (found, expected)
    )
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0.2)  # places of equal distance may change order


def test_neighbours_stay_in_their_area() -> None:
    places = Places(torch.tensor([[0.0], [1.0], [0.5], [9.0], [0.6]]), "metres", torch.tensor([0, 0, 1, 0, 1]))
    near = GeoTable()
    near.attach(TrainingTable(torch.arange(5), Ragged.from_lists([[i] for i in range(5)]), document_places=places), 3)
    near.prepare()
    assert near.near.tolist() == [[1, 3, -1], [0, 3, -1], [4, -1, -1], [1, 0, -1], [2, -1, -1]]


def test_several_rows_of_a_place() -> None:
    """Two panoramas of each tile, five pictures of each building: never two of them in a batch."""
    for each, places in ((2, 40), (5, 20)):
        coordinates = torch.rand(places, 2, generator=torch.Generator().manual_seed(0))
        positives = [[row // each] for row in range(each * places)]
        miner = NeighbourBatches([GeoTable()], batch_size=16)
        miner.attach(table(each * places, coordinates, positives))
        for epoch in range(3):
            miner.set_epoch(epoch)
            batches = list(miner)
            assert sorted(row for batch in batches for row in batch) == list(range(each * places))
            assert all(len({row // each for row in batch}) == len(batch) for batch in batches)


def test_a_place_with_too_many_rows_is_said(caplog: pytest.LogCaptureFixture) -> None:
    positives = [[0]] * 6 + [[row] for row in range(1, 7)]
    miner = NeighbourBatches([], batch_size=4)
    miner.attach(table(12, positives=positives))
    with caplog.at_level(logging.WARNING):
        batches = list(miner)
    assert sorted(row for batch in batches for row in batch) == list(range(12))
    assert "3 of 12 rows share an anchor or a positive with a row of their batch" in caplog.text


def test_semi_positives_are_kept_apart_where_asked() -> None:
    coordinates = torch.arange(60.0)[:, None].repeat(1, 2) / 1000
    semi = Ragged.from_lists([[row + 1] if row < 59 else [] for row in range(60)])  # one-sided: apart both ways
    for forbid in (False, True):
        miner = NeighbourBatches([GeoTable()], forbid=forbid, batch_size=8, drop_last=True)
        miner.attach(table(60, coordinates, semi_positives=semi))
        met = [row for batch in miner for row in batch if row + 1 in batch]
        assert bool(met) != forbid
        near = miner.tables[0].near.tolist()
        assert (31 in near[30]) != forbid  # nor do they take a neighbour's place in the list
        assert all(others.count(-1) == 0 for others in near)


def test_the_switch_and_the_refresh_are_the_papers() -> None:
    coordinates = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    miner = NeighbourBatches(batch_size=8)
    miner.attach(table(30, coordinates))
    place, similar = miner.tables
    made = []
    for epoch in range(13):
        miner.set_epoch(epoch)
        vectors = Store(torch.randn(30, 4, generator=torch.Generator().manual_seed(epoch)), space="query")
        miner.refresh({"query": vectors, "document": vectors})
        assert miner.table_at(epoch) is (place if epoch < 4 else similar)
        assert sorted(row for batch in miner for row in batch) == list(range(30))
        made.append(similar.made_at)
    assert made == [None] * 4 + [4] * 4 + [8] * 4 + [12]


def test_embeddings_that_wait_for_an_epoch_survive_a_stop() -> None:
    """A table is due, and the checkpoint comes before the epoch that is arranged by it."""
    vectors = Store(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), space="query")
    runs = []
    for stopped in (False, True):
        miner = NeighbourBatches([SimilarityTable(1, index="torch")], batch_size=8)
        miner.attach(table(30))
        list(miner)
        miner.set_epoch(1)
        miner.refresh({"query": vectors, "document": vectors})
        if stopped:
            state = miner.state_dict()
            assert state["tables"][0]["near"] is not None
            miner = NeighbourBatches([SimilarityTable(1, index="torch")], batch_size=8)
            miner.attach(table(30))
            miner.load_state_dict(state)
        runs.append(list(miner))
    assert runs[0] == runs[1]


def test_rows_of_one_positive_are_not_compared_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(*_: object) -> None:
        raise AssertionError("a row was compared with all of its like")

    monkeypatch.setattr(module._Meetings, "of", of)
    positives = [[0] if row % 10 == 0 else [row] for row in range(400)]
    miner = NeighbourBatches([Fixed([[0, (row + 1) % 400] for row in range(400)])], 2, 2, batch_size=4, drop_last=True)
    miner.attach(table(400, positives=positives))
    batches = list(miner)
    assert all(sum(row % 10 == 0 for row in batch) <= 1 for batch in batches)
    assert sum(map(len, batches)) == 400


def test_batches_are_harder_than_shuffled_ones() -> None:
    coordinates = torch.rand(256, 2, generator=torch.Generator().manual_seed(0))

    def spread(tables: list[NeighbourTable]) -> float:
        miner = NeighbourBatches(tables, 30, 32, batch_size=32, drop_last=True)
        miner.attach(table(256, coordinates))
        first = list(miner)[:3]  # later ones take what is left of the neighbourhoods
        return float(np.mean([float(torch.cdist(c := coordinates[batch], c).mean()) for batch in first]))

    assert spread([GeoTable()]) < 0.6 * spread([])


def test_without_embeddings_the_epoch_is_shuffled(caplog: pytest.LogCaptureFixture) -> None:
    miner = NeighbourBatches([SimilarityTable(0)], batch_size=4)
    miner.attach(table(8))
    with caplog.at_level(logging.WARNING):
        assert sum(map(len, miner)) == 8
    assert "epoch 0 is shuffled, since SimilarityTable has no embeddings yet" in caplog.text


def test_messages() -> None:
    with pytest.raises(ValueError, match="this training set has no places"):
        NeighbourBatches().attach(table(4))
    with pytest.raises(ValueError, match=r"first epochs of its tables are \[4, 0\]"):
        NeighbourBatches([SimilarityTable(), GeoTable()])
    with pytest.raises(ValueError, match=r"neighbour_select=1\): wants at least 2"):
        NeighbourBatches([], neighbour_select=1)
    with pytest.raises(ValueError, match="come from the range, which has to be as long"):
        NeighbourBatches([], neighbour_select=64, neighbour_range=32)
    with pytest.raises(
        ValueError, match=r"neighbour_range=16\): half of 64 companions.*neighbour_select to at most 16"
    ):
        NeighbourBatches([SimilarityTable()], neighbour_range=16, batch_size=128).attach(table(4))
    with pytest.raises(ValueError, match="refresh_interval=0"):
        SimilarityTable(refresh_interval=0)
    with pytest.raises(ValueError, match="first_epoch=-1"):
        GeoTable(-1)
    miner = NeighbourBatches([SimilarityTable(0)])
    miner.attach(table(4))
    with pytest.raises(ValueError, match=r"compares 'query' with 'document' and was handed \['query'\]"):
        miner.refresh({"query": Store(torch.eye(4))})
