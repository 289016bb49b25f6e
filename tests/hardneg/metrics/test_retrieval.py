"""Retrieval measures against numbers worked out by hand, on negative cosines."""

from __future__ import annotations

import math

import pytest
import torch

from hardneg.metrics import evaluate_retrieval
from miners import Store

NAMES = ["a", "b", "c", "d"]


def corpus() -> Store:
    return Store(torch.tensor([[1.0, 0], [0, 1.0], [-1.0, 0], [0, -1.0]]), torch.arange(4), "document")


def test_negative_scores_and_grades():
    # all scores of this query are negative or zero: a < d < b < c in rank
    query = torch.tensor([[-1.0, 0.1]])
    query = query / query.norm()
    found = evaluate_retrieval(query, ["q"], corpus(), NAMES, {"q": {"b": 2, "a": 1, "c": 0}})
    assert found.ids[0].tolist() == [2, 1, 3, 0]
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert found.means["nDCG@10"] == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert found.means["MRR@10"] == pytest.approx(0.5)
    assert found.means["Recall@10"] == pytest.approx(1.0)
    assert found.means["MAP"] == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_means_are_over_all_queries():
    queries = torch.tensor([[1.0, 0], [0, 1.0]])
    found = evaluate_retrieval(queries, ["q", "r"], corpus(), NAMES, {"q": {"a": 1}, "r": {"d": 1}})
    assert found.by_query["MRR@10"] == {"q": 1.0, "r": 0.25}
    assert found.means["MRR@10"] == pytest.approx(0.625)


def test_a_query_without_judgements_is_named():
    with pytest.raises(ValueError, match="query 'r' has no judgements"):
        evaluate_retrieval(torch.eye(2), ["q", "r"], corpus(), NAMES, {"q": {"a": 1}})
