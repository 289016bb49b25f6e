"""Negatives from everywhere: even, never a positive, never twice, and all there are where there are few."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miners import NegativeSource, Ragged, RandomNegatives, TrainingTable
from miners.draws import RowGenerator
from miners.testing import NegativeSourceContract


class TestRandomNegatives(NegativeSourceContract):
    def make(self, table: TrainingTable) -> NegativeSource:
        return RandomNegatives(3)


class TestMoreThanThereAre(NegativeSourceContract):
    random = False  # all of them, in every epoch

    def make(self, table: TrainingTable) -> NegativeSource:
        return RandomNegatives(99)  # of 100 documents, one to three of them positives


def drawn(positives: list[list[int]], documents: int, wanted: int, epoch: int = 0, seed: int = 0) -> list[list[int]]:
    every = torch.arange(len(positives))
    source = RandomNegatives(wanted)
    source.attach(TrainingTable(every, Ragged.from_lists(positives), document_content=torch.arange(documents)))
    draw = source.draw(every, every, epoch, RowGenerator(seed, epoch, 1))
    assert torch.equal(draw.usable, draw.ids >= 0)
    return draw.ids.tolist()


@given(
    st.integers(1, 9).flatmap(
        lambda documents: st.tuples(
            st.just(documents),
            st.lists(st.lists(st.integers(0, documents - 1), max_size=12), min_size=1, max_size=5),
        )
    ),
    st.integers(1, 12),
    st.integers(0, 1000),
)
def test_as_many_as_there_are_besides_the_positives(case, wanted, seed):
    """Whatever the order of the positives, and where one stands on the list twice."""
    documents, positives = case
    for known, ids in zip(positives, drawn(positives, documents, wanted, seed=seed), strict=True):
        free = set(range(documents)) - set(known)
        usable = [document for document in ids if document >= 0]
        assert len(usable) == len(set(usable)) == min(wanted, len(free))
        assert set(usable) <= free


def test_every_set_of_documents_has_the_same_chance():
    rows = 6000
    seen = Counter(tuple(sorted(ids)) for ids in drawn([[4, 1]] * rows, 6, 2))
    assert set(seen) == {(0, 2), (0, 3), (0, 5), (2, 3), (2, 5), (3, 5)}
    assert all(870 < times < 1130 for times in seen.values())  # 1,000 expected, 29 the deviation of one


def test_messages():
    with pytest.raises(ValueError, match=r"RandomNegatives\(num_negatives=0\): wants at least 1"):
        RandomNegatives(0)
    with pytest.raises(ValueError, match="does not know how many documents there are"):
        RandomNegatives().attach(TrainingTable(torch.arange(1), Ragged.from_lists([[0]])))
    with pytest.raises(ValueError, match="row 1 has the positive 7, and there are 3 documents"):
        drawn([[0], [2, 7]], 3, 1)
    with pytest.raises(RuntimeError, match="knows no rows yet"):
        RandomNegatives().draw(torch.arange(1), torch.arange(1), 0, RowGenerator(0, 0))
