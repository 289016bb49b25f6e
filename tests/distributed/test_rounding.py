"""A promise about float64 holds on every CPU, not on those whose float32 kernels happen to round alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hardneg.modules import RetrievalModule
from tests.distributed.test_gather import CHAINS, DIRECTIONS, distance, trained

# Kernels whose result depends on the shape of the batch, the CPU and the number of threads.
SUMMED = {"mm", "bmm", "addmm", "baddbmm", "linalg_vector_norm", "sum", "mean", "logsumexp", "_softmax", "_log_softmax"}


class OtherKernels(TorchDispatchMode):
    """Rounds every float32 sum of products up by one unit in the last place."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32 and func._schema.name[6:] in SUMMED:
            return torch.nextafter(out, out.new_full((), torch.inf))
        return out


@contextmanager
def other_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    step = RetrievalModule.training_step

    def rounded(self: RetrievalModule, *batch: Any) -> torch.Tensor:
        with OtherKernels():
            return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalModule, "training_step", rounded)
        yield


@pytest.mark.parametrize("loss", ["InfoNCE", "FocalDistillation"])
def test_no_rounding_of_float32_reaches_a_float64_loss(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for chain in CHAINS:
        cell = (chain, loss, DIRECTIONS[0], "plain")
        expected = trained(cell, torch.float64)
        with other_kernels(monkeypatch):
            found = trained(cell, torch.float64)
        assert distance("float64", expected, found) <= 1e-9, chain


def test_the_rounding_is_felt_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = ("GIST", "InfoNCE", DIRECTIONS[0], "plain")
    expected = trained(cell, torch.float32)
    with other_kernels(monkeypatch):
        assert distance("float32", expected, trained(cell, torch.float32)) > 0
