"""Several positives per anchor equal pytorch-metric-learning's loss, and do not multiply the memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.step.measure import peak_megabytes
from benchmarks.step.multi_positive import batch, ours, theirs


def test_values_and_gradients_are_equal() -> None:
    embeddings, labels = batch(48, 16, seed=0)
    value = ours(embeddings, labels)
    assert embeddings.grad is not None
    gradient, embeddings.grad = embeddings.grad.clone(), None
    assert float(value) == pytest.approx(float(theirs(embeddings, labels)), abs=1e-5)
    torch.testing.assert_close(gradient, embeddings.grad, rtol=1e-4, atol=1e-6)


def test_memory_at_full_size() -> None:
    embeddings, labels = batch(2048, 256, seed=0)
    assert peak_megabytes(partial(ours, embeddings, labels)) <= 300
