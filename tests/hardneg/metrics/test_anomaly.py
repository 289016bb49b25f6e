"""AUROC of anomaly scores: scikit-learn's, signed, and the same from the placement of each anomaly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from hardneg.metrics import evaluate_anomalies
from hardneg.metrics.anomaly import placements
from tests.oracles.clan import folded

scores = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(scores, scores)
def test_placements_average_to_the_area(benign: list[int], anomalous: list[int]) -> None:
    expected = roc_auc_score([0] * len(benign) + [1] * len(anomalous), benign + anomalous)
    found = placements(torch.tensor(benign).double(), torch.tensor(anomalous).double())
    assert float(found.mean()) == pytest.approx(expected)


def test_means_are_those_of_the_rows() -> None:
    dice = torch.Generator().manual_seed(0)
    benign, anomalous = torch.randn(200, generator=dice), 1 + torch.randn(90, generator=dice)
    labels = torch.tensor([1] * 80 + [3] * 10)
    names = [f"row {row}" for row in range(90)]
    measures = evaluate_anomalies(benign, anomalous, labels, ["normal", "dos", "none", "probe"], names)
    assert set(measures.means) == {
        "AUROC",
        "AUROC by class",
        "AUROC dos",
        "AUROC probe",
        "detected at 1 % false alarms",
    }
    for name, by_row in measures.by_query.items():
        assert math.fsum(by_row.values()) / len(by_row) == pytest.approx(measures.means[name]), name
    assert measures.means["AUROC by class"] == pytest.approx(
        (measures.means["AUROC dos"] + measures.means["AUROC probe"]) / 2
    )
    assert measures.means["AUROC"] == pytest.approx(
        (80 * measures.means["AUROC dos"] + 10 * measures.means["AUROC probe"]) / 90
    )
    assert set(measures.by_query["AUROC probe"]) == set(names[80:])
    threshold = benign.sort().values[-3]  # two of 200 are above it
    assert measures.means["detected at 1 % false alarms"] == pytest.approx(
        float((anomalous > threshold).double().mean()), abs=0.012
    )


def test_an_inverted_detector_is_not_a_good_one() -> None:
    benign, anomalous = torch.tensor([3.0, 4, 5]), torch.tensor([0.0, 1])
    measures = evaluate_anomalies(benign, anomalous, torch.tensor([1, 1]), ["normal", "dos"], ["a", "b"])
    assert measures.means["AUROC"] == measures.means["AUROC by class"] == 0.0
    assert folded([measures.means["AUROC dos"]]) == 1.0  # what the published tables would show


def test_messages() -> None:
    one, none = torch.zeros(1), torch.zeros(0)
    with pytest.raises(ValueError, match=r"got 0 and 1. A split of one class alone cannot be evaluated"):
        evaluate_anomalies(none, one, torch.tensor([1]), ["normal", "dos"], ["a"])
    with pytest.raises(ValueError, match="got 1 and 0"):
        evaluate_anomalies(one, none, none.long(), ["normal", "dos"], [])
    with pytest.raises(ValueError, match="an anomaly score is not finite"):
        evaluate_anomalies(one, one * torch.nan, torch.tensor([1]), ["normal", "dos"], ["a"])
