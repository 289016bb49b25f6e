"""Retrieval measures against numbers worked out by hand, on negative cosines."""

from __future__ import annotations

import math

import pytest
import torch

from hardneg.metrics import evaluate_retrieval
from hardneg.metrics.retrieval import r_precision
from miners import Ragged, Store

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


def test_t5_r_precision():
    """Gold {a, b}, ranking a, x, y, b, z; 7 gold ones of which 4 are found; rows a, a, b, of which a is found."""
    ranking = torch.tensor([[0, 7, 8, 1, 9]])
    gold = Ragged.from_lists([[0, 1]])
    assert [float(r_precision(ranking, gold, k)) for k in (1, 3, 5)] == [1.0, 0.5, 1.0]
    assert float(r_precision(torch.tensor([[0, 1, 2, 3, 99]]), Ragged.from_lists([[0, 1, 2, 3, 4, 5, 6]]), 5)) == 0.8
    rows = Ragged.from_lists([[0, 0, 1]])
    found = torch.tensor([[0, 7, 8, 9, -1]])
    assert float(r_precision(found, rows, 5)) == 0.5
    assert float(r_precision(found, rows, 5, "rows")) == pytest.approx(1 / 3)


def test_r_precision_beside_the_other_measures():
    queries = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    judged = {"q": {"a": 1, "c": 1, "b": 0}, "r": {"b": 2}}
    found = evaluate_retrieval(queries, ["q", "r"], corpus(), NAMES, judged, rp_cutoffs=[1, 2])
    assert found.by_query["RP@1"] == {"q": 1.0, "r": 1.0}
    assert found.by_query["RP@2"] == {"q": 0.5, "r": 1.0}
    assert found.means["RP@2"] == 0.75
