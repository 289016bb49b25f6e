"""Negatives from the positive's neighbourhood: a source's laws, known positives, few neighbours."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from miners import ClusterNegatives, NegativeSource, Ragged, Store, TrainingTable
from miners.draws import RowGenerator
from miners.testing import NegativeSourceContract, random_table


class TestClusters(NegativeSourceContract):
    def make(self, table: TrainingTable) -> NegativeSource:
        return ClusterNegatives(num_negatives=3, size=10)  # of the first refresh


class TestNearest(NegativeSourceContract):
    def make(self, table: TrainingTable) -> NegativeSource:
        vectors = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        return ClusterNegatives(Store(vectors), kind="nearest", size=8, num_negatives=4, mix=0.0)


class TestShuffledLabels(NegativeSourceContract):
    def make(self, table: TrainingTable) -> NegativeSource:
        return ClusterNegatives(labels=torch.arange(100) % 20, shuffled=True)


def training_set(labels: list[int], positives: list[list[int]]) -> TrainingTable:
    return TrainingTable(
        torch.arange(len(positives)), Ragged.from_lists(positives), document_content=torch.arange(len(labels))
    )


def ready(labels: list[int], positives: list[list[int]], **options: object) -> ClusterNegatives:
    source = ClusterNegatives(labels=labels, **options)  # type: ignore[arg-type]
    source.attach(training_set(labels, positives))
    return source


def drawn(source: ClusterNegatives, positives: list[int]) -> list[int]:
    """Usable negatives of rows with these positives, one after the other."""
    draw = source.draw(torch.arange(len(positives)), torch.tensor(positives), 0, RowGenerator(0, 0, 1))
    return draw.ids[draw.usable].tolist()


def test_neighbours_alone_come_from_the_cluster() -> None:
    source = ready([0, 0, 0, 0, 1, 1, 1], [[0]] * 50, mix=0.0, num_negatives=2)
    assert set(drawn(source, [0] * 50)) == {1, 2, 3}
    assert source.counts["neighbour"] == 100
    source = ready([0, 0, 0, 0, 1, 1, 1], [[4, 5]] * 50, mix=0.0, num_negatives=2)
    found = drawn(source, [4] * 50)
    assert found.count(6) == 50  # the one neighbour that is no known positive
    assert not {4, 5} & set(found)
    assert source.counts["reserve"] == 50


def test_mix_is_a_share_of_the_draws() -> None:
    source = ready([0] * 50 + [1] * 950, [[0]] * 1000, mix=0.5, num_negatives=4)
    near = [negative < 50 for negative in drawn(source, [0] * 1000)]
    assert 0.47 < sum(near) / len(near) < 0.57
    assert abs(source.counts["uniform"] - 2000) < 150


def test_all_neighbours_known_is_uniform_in_the_end() -> None:
    source = ready([0, 0, 1, 1, 1], [[0, 1]] * 30, mix=0.0, num_negatives=2)
    assert set(drawn(source, [0] * 30)) == {2, 3, 4}
    assert set(source.counts.elements()) == {"reserve"}


def test_positives_that_are_alone_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    source = ready([0, 1, 1, 1], [[0]] * 750 + [[1]] * 750, mix=0.0, num_negatives=1)
    with caplog.at_level(logging.WARNING):
        drawn(source, [0] * 750 + [1] * 750)
        drawn(source, [0] * 750 + [1] * 750)
    assert 1450 < source.counts["alone"] <= 1500  # a draw of the positive itself is drawn again
    assert caplog.text.count("50 % of the draws are uniform because the positive is alone") == 1


def test_documents_without_a_vector_are_uniform() -> None:
    """By name: the store knows three of five documents, in another order."""
    store = Store(torch.tensor([[1.0, 0], [1, 0.1], [0, 1]]), names=["d4", "d0", "d2"])
    rows = [[0]] * 40 + [[1]] * 40
    source = ClusterNegatives(store, num_negatives=1, mix=0.0, kind="nearest", size=1)
    source.attach(replace(training_set([0] * 5, rows), document_names=[f"d{i}" for i in range(5)]))
    found = drawn(source, [0] * 40 + [1] * 40)
    assert set(found[:40]) == {4}
    assert set(found[40:]) == {0, 2, 3, 4}


def test_a_store_of_other_data_is_refused(tmp_path: Path) -> None:
    named = replace(training_set([0] * 2, [[0]]), document_names=["a", "b"])
    with pytest.raises(ValueError, match="a vector of 'c', which is not in this data set"):
        ClusterNegatives(Store(torch.eye(3), names=["a", "b", "c"])).attach(named)
    with pytest.raises(ValueError, match="a vector of document 2, and the data set 2 documents"):
        ClusterNegatives(Store(torch.eye(3))).attach(named)
    with pytest.raises(ValueError, match="labels of 3 documents, the data set 2"):
        ClusterNegatives(labels=[0, 0, 1]).attach(named)


def test_a_saved_store(tmp_path: Path) -> None:
    Store(torch.randn(100, 3, generator=torch.Generator().manual_seed(0))).save(tmp_path / "store")
    source = ClusterNegatives(tmp_path / "store", size=5)
    source.attach(random_table())
    source.refresh({"document": Store(torch.eye(3))})  # fixed vectors stay
    assert source.near is not None
    assert len(source.near) == 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_negatives": 0}, "num_negatives=0"),
        ({"kind": "knn"}, "wants 'clusters' or 'nearest'"),
        ({"size": 0}, "size=0"),
        ({"mix": 1.5}, "0 <= mix <= 1"),
        ({"labels": [0], "embeddings": Store(torch.eye(2))}, "give one of them"),
    ],
)
def test_mistakes(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClusterNegatives(**options)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no store at '.*nowhere'\. Make one with `hardneg predict`"):
        ClusterNegatives(tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match="Set embeddings or labels, or add the callback RefreshNegatives"):
        ClusterNegatives().draw(torch.arange(1), torch.arange(1), 0, RowGenerator(0, 0))
