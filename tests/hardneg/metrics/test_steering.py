"""Steering is judged by what is kept and by what is avoided."""

from __future__ import annotations

import pytest
import torch

from hardneg.metrics import evaluate_steering
from miners import steer
from miners.ragged import Ragged
from miners.store import Store


def on_circle(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_a_steered_query_keeps_its_target_and_avoids_the_rest() -> None:
    corpus = Store(on_circle(-20, 5, 10, 15, 200), torch.arange(5), "document")
    query, away = on_circle(0), on_circle(12)
    target = Ragged.from_lists([[0]])
    before = evaluate_steering(query, away, corpus, target, k=2, near=0.99)
    assert before == (0.0, 1.0)  # the first two are at 5 and 10 degrees
    after = evaluate_steering(steer(query, away, 2.0), away, corpus, target, k=2, near=0.99)
    assert after == (1.0, 0.5)
    nothing = evaluate_steering(query, on_circle(180), corpus, target, k=99, near=0.99)
    assert nothing == (1.0, 0.0)
    assert evaluate_steering(query, away, corpus, Ragged.from_lists([[]]), k=99).kept == 0


def test_messages() -> None:
    corpus = Store(on_circle(0), torch.arange(1), "document")
    with pytest.raises(ValueError, match=r"evaluate_steering\(k=0, near=0.8\): wants k of at least 1"):
        evaluate_steering(on_circle(0), on_circle(1), corpus, Ragged.from_lists([[0]]), k=0)
