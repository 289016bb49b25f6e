from __future__ import annotations

import pytest
import torch

from miners import MinedOnRefresh, NegativeSource, TrainingTable
from miners.draws import RowGenerator
from miners.ragged import Ragged
from miners.store import Store
from miners.testing import NegativeSourceContract

TABLE = TrainingTable(torch.tensor([7, 3]), Ragged.from_lists([[0], [2, 3]]))
"""Row 0 asks with query 7, whose positive is document 0; row 1 with query 3, whose positives are 2 and 3."""


def stores() -> dict[str, Store]:
    """Documents on a line: query 7 is nearest to 0, 1, 2, ..., query 3 to 4, 3, 2, ..."""
    documents = torch.stack([torch.arange(5.0), torch.ones(5)], dim=1)
    queries = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    return {"query": Store(queries, torch.tensor([3, 7]), "query"), "document": Store(documents, space="document")}


class TestMinedOnRefresh(NegativeSourceContract):
    def make(self, table: TrainingTable) -> NegativeSource:
        return MinedOnRefresh(num_negatives=3, search_depth=20)


def drawn(source: MinedOnRefresh) -> list[list[int]]:
    draw = source.draw(torch.tensor([0, 1]), torch.tensor([0, 2]), 0, RowGenerator(0, 0))
    assert draw.usable.tolist() == (draw.ids >= 0).tolist()
    return draw.ids.tolist()


def test_draws_what_the_model_finds_near_and_no_positive():
    source = MinedOnRefresh(num_negatives=1, search_depth=2)
    source.attach(TABLE)
    assert drawn(source) == [[-1], [-1]]  # nothing is mined yet
    source.refresh({"query": stores()["query"]})
    assert drawn(source) == [[-1], [-1]]
    source.refresh(stores())
    assert drawn(source) == [[1], [4]]


def test_ranks_count_what_is_no_positive():
    source = MinedOnRefresh(num_negatives=3, search_depth=5, first_rank=2)
    source.attach(TABLE)
    source.refresh(stores())
    assert [sorted(row) for row in drawn(source)] == [[-1, 3, 4], [-1, -1, 0]]


@pytest.mark.parametrize("wrong", [{"search_depth": 0}, {"first_rank": -1}, {"first_rank": 100}, {"num_negatives": 0}])
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MinedOnRefresh(**wrong)
