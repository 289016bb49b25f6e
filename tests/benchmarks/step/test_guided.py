"""Guided InfoNCE equals sentence-transformers' loss where the two are defined alike, in a hundredth of its memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.step.guided import batch, ours, theirs, with_gradients
from benchmarks.step.measure import peak_megabytes


@pytest.mark.parametrize("self_blocks", [True, False])
@pytest.mark.parametrize("guide_dims", [32, 7])
def test_values_and_gradients_are_equal(self_blocks: bool, guide_dims: int) -> None:
    student, guide = batch(48, 32, seed=1, guide_dims=guide_dims)
    value, gradients = with_gradients(partial(ours, student, guide, self_blocks), student)
    expected, others = with_gradients(partial(theirs, student, guide, self_blocks), student)
    assert float(value) == pytest.approx(float(expected), abs=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_the_guide_had_something_to_drop() -> None:
    student, guide = batch(48, 32, seed=1)
    blind = [torch.cat([one, torch.zeros_like(one)], 1) for one in guide]
    blind[1] = blind[0]  # every positive is the guide's best: nothing is dropped but itself
    assert float(ours(student, guide)) < float(ours(student, blind)) - 1e-3


def test_memory_at_full_size() -> None:
    student, guide = batch(512, 256, seed=0)
    assert peak_megabytes(partial(ours, student, guide)) <= 50
