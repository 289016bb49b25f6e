"""Ranks, average precision and hit rates are the published ones; ties, distractors and metres are said."""

from __future__ import annotations

import logging

import pytest
import torch

from hardneg.metrics import evaluate_geo, rank_references
from hardneg.metrics.geo import top_percent
from miners import Places, Ragged, Store

T3 = torch.tensor(
    [[0.9, 0.8, 0.1, 0.2, 0.3], [0.7, 0.6, 0.9, 0.1, 0.2], [0.1, 0.5, 0.5, 0.4, 0.2], [0.3, 0.2, 0.1, 0.25, 0.9]]
)
"""Queries 10 to 13 against references 10 to 14."""
NAMES = ["10", "11", "12", "13"]


def test_t4_recalls_and_hit_rate() -> None:
    right = Ragged.from_lists([[0], [1], [2], [3]])
    ranks = rank_references(T3, torch.eye(5), right)
    assert [float((ranks.ranks < k).double().mean()) for k in (1, 2, 3)] == [0.5, 0.5, 1.0]
    assert ranks.against.tolist() == [0, 2, 1, 2]  # query 12 ties with its truth
    near = Ragged.from_lists([[11, 13, 14], [10, 13, 14], [11, 13, 14], [10, 11, 12]])
    wanted = Ragged.from_lists([[10], [11], [12], [13]])
    measures = evaluate_geo(T3, NAMES, Store(torch.eye(5), torch.arange(10, 15)), wanted, near)
    assert measures.means["hit_rate"] == 0.5
    assert measures.means["R@1"] == 0.5
    assert measures.by_query["R@1"] == {"10": 1.0, "11": 0.0, "12": 1.0, "13": 0.0}
    assert measures.ids[:, 0].tolist() == [10, 12, 11, 14]
    assert (measures.references, measures.distractors) == (5, 1)
    assert "R@1%" not in measures.means  # of five references


def test_t5_average_precision_of_university() -> None:
    labels, scores = [5, 7, -1, 5, 9, 7], torch.tensor([[0.2, 0.9, 0.95, 0.8, 0.7, 0.1]])
    junk = Ragged.from_lists([[i for i, label in enumerate(labels) if label == -1]])
    for asked, expected, first in ((5, 0.333333, False), (7, 0.662500, True)):
        right = Ragged.from_lists([[i for i, label in enumerate(labels) if label == asked]])
        found = rank_references(scores, torch.eye(6), right, junk)
        assert float(found.precision) == pytest.approx(expected, abs=1e-6)
        assert (int(found.ranks) == 0) == first


def test_distractors_count_unless_they_are_called_junk() -> None:
    """The toy of the spec: the released evaluation takes distractors out, the data set's own does not."""
    scores, right = torch.tensor([[0.9, 0.8, 0.1]]), Ragged.from_lists([[1]])
    counted = rank_references(scores, torch.eye(3), right)
    assert (float(counted.precision), int(counted.ranks)) == (0.25, 1)
    released = rank_references(scores, torch.eye(3), right, Ragged.from_lists([[0]]))
    assert (float(released.precision), int(released.ranks)) == (1.0, 0)


def test_one_percent() -> None:
    assert (top_percent(8884), top_percent(951, "round")) == (88, 11)
    vectors = torch.nn.functional.normalize(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    right = Ragged.from_lists([[i] for i in range(200)])
    queries = vectors + 0.5 * torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    means = evaluate_geo(queries, [str(i) for i in range(200)], Store(vectors), right).means
    ranks = rank_references(queries, vectors, right).ranks
    assert means["R@1%"] == float((ranks < 2).double().mean())
    assert means["R@1"] <= means["R@1%"] <= means["R@5"] <= means["R@10"]


def test_against_the_obvious_form() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, references = torch.randn(20, 6, generator=generator), torch.randn(30, 6, generator=generator)
    right = [torch.randperm(30, generator=generator)[: 1 + row % 4].tolist() for row in range(20)]
    found = rank_references(queries, references, Ragged.from_lists(right))
    for row, own in enumerate(right):
        order = (queries[row] @ references.T).argsort(descending=True).tolist()
        places = [place for place, reference in enumerate(order, 1) if reference in own]
        precision = [
            ((i / place) + ((i - 1) / (place - 1) if place > 1 else 1)) / 2 for i, place in enumerate(places, start=1)
        ]
        assert float(found.precision[row]) == pytest.approx(sum(precision) / len(own))
        assert int(found.ranks[row]) == places[0] - 1


def test_precision_with_ties_is_that_of_a_stable_sort() -> None:
    """Few values, so that right and wrong references tie with each other; the published form sorts the gallery."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (60, 40), generator=generator).double()
    right = [torch.randperm(40, generator=generator)[: 1 + row % 40].tolist() for row in range(60)]
    gone = [[i for i in torch.randperm(40, generator=generator)[:7].tolist() if i not in own] for own in right]
    found = rank_references(scores, torch.eye(40).double(), Ragged.from_lists(right), Ragged.from_lists(gone))
    for row, own in enumerate(right):
        there = [i for i in range(40) if i not in gone[row]]
        ranked = sorted(there, key=lambda i: -float(scores[row, i]))  # Python's sort is stable
        places = sorted(ranked.index(i) for i in own)
        area = [((k + 1) / (place + 1) + (k / place if place else 1)) / 2 for k, place in enumerate(places)]
        assert float(found.precision[row]) == pytest.approx(sum(area) / len(own), abs=1e-12)
    alone = rank_references(scores, torch.eye(40).double(), Ragged.from_lists(right), precision=False)
    assert len(alone.precision) == 0


def test_metres_to_the_first_reference() -> None:
    places = Places(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), "metres", torch.tensor([0, 0]))
    right = Ragged.from_lists([[0], [1]])
    store = Store(torch.eye(2))
    measures = evaluate_geo(torch.tensor([[1.0, 0.0], [1.0, 0.5]]), ["a", "b"], store, right, places=(places, places))
    assert measures.errors.tolist() == [0.0, 5.0]
    assert measures.means["error_m"] == 2.5
    apart = Places(places.coordinates, "metres", torch.tensor([0, 1]))
    measures = evaluate_geo(torch.tensor([[1.0, 0.0], [1.0, 0.5]]), ["a", "b"], store, right, places=(apart, apart))
    assert measures.errors.tolist() == [0.0, torch.inf]
    assert "error_m" not in measures.means  # metres between areas mean nothing
    assert measures.means["median_error_m"] == 0.0


def test_collapsed_embeddings_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        means = evaluate_geo(
            torch.ones(4, 2), NAMES, Store(torch.ones(4, 2)), Ragged.from_lists([[i] for i in range(4)])
        ).means
    assert (means["R@1"], means["R@1 (ties against)"]) == (1.0, 0.0)
    assert "many similarities are equal" in caplog.text


def test_a_query_without_a_right_reference_is_named() -> None:
    with pytest.raises(ValueError, match="query 1 has no right reference in the gallery"):
        rank_references(torch.eye(2), torch.eye(2), Ragged.from_lists([[0], []]))
