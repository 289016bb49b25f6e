"""Negatives from a table: never a positive, a function of (seed, epoch, row), and tables of other data are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from miners import NegativeSource, Ragged, StaticNegatives, TrainingTable
from miners.draws import RowGenerator
from miners.testing import NegativeSourceContract, random_table


def lists(table: TrainingTable) -> Ragged:
    """0 to 12 documents per row, positives among them."""
    documents = int(table.positives.values.max()) + 1
    return Ragged.from_lists(
        [
            torch.randperm(documents, generator=torch.Generator().manual_seed(row))[: row % 13].tolist() + positives
            for row, positives in enumerate(table.positives.to_lists())
        ]
    )


class TestStaticNegatives(NegativeSourceContract):
    def make(self, table: TrainingTable) -> NegativeSource:
        return StaticNegatives(lists(table), num_negatives=3)


class TestMoreNegativesThanAnyListHolds(NegativeSourceContract):
    random = True

    def make(self, table: TrainingTable) -> NegativeSource:
        return StaticNegatives(lists(table), num_negatives=40, first_rank=1)


def drawn(source: StaticNegatives, rows: int, epochs: int = 1) -> list[list[int]]:
    every = torch.arange(rows)
    out: list[list[int]] = [[] for _ in range(rows)]
    for epoch in range(epochs):
        ids = source.draw(every, every, epoch, RowGenerator(0, epoch, 1)).ids
        out = [old + new for old, new in zip(out, ids.tolist(), strict=True)]
    return out


def table(positives: list[list[int]]) -> TrainingTable:
    return TrainingTable(torch.arange(len(positives)), Ragged.from_lists(positives))


def test_short_lists_are_drawn_whole_and_padded() -> None:
    source = StaticNegatives(Ragged.from_lists([[5, 6, 7], [], [0, 8]]), num_negatives=3)
    source.attach(table([[0], [1], [0, 2]]))
    first, second, third = drawn(source, 3)
    assert sorted(first) == [5, 6, 7]
    assert second == [-1, -1, -1]
    assert third == [8, -1, -1]


def test_draws_are_even_over_the_list() -> None:
    source = StaticNegatives(Ragged.from_lists([[4, 5, 6, 7]]), num_negatives=2)
    source.attach(table([[0]]))
    seen = Counter(drawn(source, 1, epochs=4000)[0])
    assert set(seen) == {4, 5, 6, 7}
    assert all(1850 < number < 2150 for number in seen.values())


def test_ranks_count_as_the_table_has_them() -> None:
    """A positive inside the list keeps its rank: what it frees is not filled from behind."""
    source = StaticNegatives(Ragged.from_lists([[9, 0, 7, 6, 5]]), num_negatives=5, first_rank=1, last_rank=4)
    source.attach(table([[0]]))
    assert sorted(drawn(source, 1)[0]) == [-1, -1, -1, 6, 7]


def named(tmp_path: Path, queries: list[str], documents: list[str]) -> Path:
    path = tmp_path / "mined.parquet"
    pq.write_table(pa.table({"query_id": queries, "doc_id": documents, "rank": list(range(len(queries)))}), path)
    return path


def training_set() -> TrainingTable:
    known = TrainingTable(torch.tensor([0, 1, 0]), Ragged.from_lists([[0], [1], [0]]))
    return replace(known, anchor_names=["q0", "q1"], document_names=["d0", "d1", "d2", "d3"])


def test_a_table_names_its_queries_and_documents(tmp_path: Path) -> None:
    path = named(tmp_path, ["q1", "q0", "q1", "q0"], ["d3", "d2", "d0", "d0"])
    source = StaticNegatives(path, num_negatives=2)
    source.attach(training_set())
    assert [sorted(row) for row in drawn(source, 3)] == [
        [-1, 2],
        [0, 3],
        [-1, 2],
    ]  # both rows of q0; d0 is its positive


def test_a_table_of_other_data_is_refused(tmp_path: Path) -> None:
    source = StaticNegatives(named(tmp_path, ["q0", "q0"], ["d1", "d9"]))
    with pytest.raises(ValueError, match=r"mined.parquet', row 1: doc_id 'd9' is not in this data set"):
        source.attach(training_set())
    with pytest.raises(ValueError, match=r"this training set has no names\. Hand over ready lists"):
        source.attach(random_table())
    pq.write_table(pa.table({"q": ["q0"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"has columns \['q'\]; it must have query_id and doc_id"):
        StaticNegatives(tmp_path / "other.parquet").attach(training_set())


def test_reads_what_mine_writes_empty_slots_included(tmp_path: Path) -> None:
    from miners import Store, mine

    corpus = Store(torch.eye(4), torch.arange(4), "document", names=["d0", "d1", "d2", "d3"])
    queries = Store(torch.eye(4)[:2] + 0.1, torch.arange(2), "query", names=["q0", "q1"])
    mine(queries, corpus, [[0], [1, 2]], num_negatives=3, too_few="pad", out=tmp_path / "mined.parquet")
    rows = TrainingTable(
        torch.arange(2),
        Ragged.from_lists([[0], [1, 2]]),
        anchor_names=["q0", "q1"],
        document_names=["d0", "d1", "d2", "d3"],
    )
    source = StaticNegatives(tmp_path / "mined.parquet", num_negatives=3)
    source.attach(rows)
    assert [sorted(row) for row in drawn(source, 2)] == [[1, 2, 3], [-1, 0, 3]]


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no table at '.*nowhere.parquet'. Make one with `hardneg mine`"):
        StaticNegatives(tmp_path / "nowhere.parquet")
    with pytest.raises(ValueError, match=r"num_negatives=0\): wants at least 1"):
        StaticNegatives(Ragged.empty(1), num_negatives=0)
    with pytest.raises(ValueError, match="an empty window"):
        StaticNegatives(Ragged.empty(1), first_rank=5, last_rank=5)
    with pytest.raises(ValueError, match="StaticNegatives has 2 lists for 1 training rows"):
        StaticNegatives(Ragged.empty(2)).attach(table([[0]]))
    with pytest.raises(RuntimeError, match="StaticNegatives knows no rows yet"):
        StaticNegatives(Ragged.empty(1)).draw(torch.arange(1), torch.arange(1), 0, RowGenerator(0, 0))
