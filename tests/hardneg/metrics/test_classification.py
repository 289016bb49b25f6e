"""Accuracy, macro-F1, linear probe and neighbours on data where the answer is known."""

from __future__ import annotations

import pytest
import torch

from hardneg.metrics.classification import (
    accuracy_and_macro_f1,
    evaluate_classes,
    linear_probe,
    nearest_classes,
)


def test_macro_f1_by_hand() -> None:
    """Class 0: precision 2/3, recall 1, F1 0.8; class 1: 1, 1/2, 2/3; class 3 never found; class 2 does not occur."""
    truth, predicted = torch.tensor([0, 0, 1, 1, 3]), torch.tensor([0, 0, 1, 0, 2])
    accuracy, f1 = accuracy_and_macro_f1(truth, predicted)
    assert accuracy == pytest.approx(3 / 5)
    assert f1 == pytest.approx((0.8 + 2 / 3 + 0) / 3)


def test_probe_finds_a_linear_boundary_and_only_that() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator)
    linear = (x[:, 0] > x[:, 1]).long()
    assert (linear_probe(x[:100], linear[:100], x[100:]) == linear[100:]).float().mean() > 0.95
    xor = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    assert (linear_probe(x[:100], xor[:100], x[100:]) == xor[100:]).float().mean() < 0.7
    assert linear_probe(x[:5], torch.full((5,), 7), x[5:8]).tolist() == [7, 7, 7]  # one class is known


def test_neighbours_vote_by_similarity() -> None:
    labels = torch.tensor([2, 0, 0, 1])
    ids = torch.tensor([[0, 1, 2], [3, 1, 0]])
    scores = torch.tensor([[0.9, 0.5, 0.45], [0.9, -0.5, -0.9]])
    assert nearest_classes(labels, scores, ids, k=1).tolist() == [2, 1]
    assert nearest_classes(labels, scores, ids, k=3).tolist() == [0, 1]


def test_each_modality_alone_and_both_together() -> None:
    """One modality tells classes apart, the other is noise."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    good = torch.nn.functional.one_hot(labels, 3) + 0.1 * torch.randn(60, 3, generator=generator)
    noise = torch.randn(60, 4, generator=generator)
    train, queries = torch.arange(30), torch.arange(30, 60)
    sets = [{"good": good[at], "noise": noise[at]} for at in (train, queries)]
    names = [f"w{i}" for i in range(60)]
    measures = evaluate_classes(sets[0], train, labels, sets[1], queries, names, k=3)
    assert set(measures.means) == {
        "kNN",
        *(f"{name}{of}" for name in ("accuracy", "macro-F1") for of in ("", " good", " noise")),
    }
    assert measures.means["accuracy good"] == 1.0
    assert measures.means["accuracy noise"] < 0.7
    assert measures.by_query["accuracy"]["w30"] in (0.0, 1.0)
    assert set(measures.ids.flatten().tolist()) <= set(train.tolist())
    assert measures.means["kNN"] > 0.8
    alone = evaluate_classes({"good": sets[0]["good"]}, train, labels, {"good": sets[1]["good"]}, queries, names)
    assert set(alone.means) == {"accuracy", "macro-F1", "kNN"}
