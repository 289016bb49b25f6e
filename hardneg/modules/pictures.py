"""Encoding pictures that the workers of a loader decode."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from datamodules.batch import Batch


@torch.no_grad()
def encode_batches(
    encode: Callable[[Tensor], Tensor], encoder: nn.Module, batches: Iterable[Batch], dim: int
) -> Tensor:
    """(n, dim) float32 vectors, on the CPU, of batches of one side, with ``encoder`` in evaluation mode.

    Args:
        encode: inputs (B, ...) on the encoder's device -> (B, dim).
        encoder: whose mode and device are meant; it is in training again afterwards if it was before.
        dim: of the answer if there is no batch.
    """
    training, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    try:
        parts = [encode(inputs.to(device)).float().cpu() for batch in batches for inputs in batch.inputs.values()]
    finally:
        encoder.train(training)
    return torch.cat(parts) if parts else torch.zeros(0, dim)
