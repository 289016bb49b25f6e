"""Gradient caching: batches as large as the mathematics wants, in the memory of a small one.

The loss wants all vectors at once, the encoder's activations do not. Each chunk is encoded, its activations are thrown
away, and they are computed again when backward comes to the chunk; `torch.utils.checkpoint` does both, with the same
dropout (it restores the states of the generators) and under the same autocast. What it costs is one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from datamodules.batch import Batch
from miners.pool import Items


def encode_in_chunks(
    encode: Callable[[Batch], dict[str, Items]], batch: Batch, chunk_size: int, device: torch.device
) -> dict[str, Items]:
    """What ``encode(batch)`` gives, with the activations of one chunk in memory at a time.

    Exact where ``encode`` treats every thing by itself: an encoder with batch norm sees other batches.

    Args:
        encode: a family's; called with a part of one side at a time.
        chunk_size: things of one part.
        device: whose generator dropout draws from.

    Source:
        GradCache, Gao et al., arXiv 2101.06983. Differs: one backward through checkpoints, so that gradients of a
        weight are added up before anybody (DDP, a gradient scaler) looks at them.
    """
    if all(len(items) <= chunk_size for items in batch.items.values()):
        return encode(batch)
    # checkpoint looks at the devices of its tensor arguments to find the generators that it must restore
    where = torch.empty(0, device=device)
    sides: dict[str, Items] = {}
    for side, items in batch.items.items():
        parts: list[dict[str, Items]] = []
        for start in range(0, max(len(items), 1), chunk_size):
            part = _part(batch, side, slice(start, start + chunk_size))
            parts.append(checkpoint(lambda _, part=part: encode(part), where, use_reentrant=False))
        sides |= {name: _end_to_end([part[name] for part in parts]) for name in parts[0]}
    return sides


def _part(batch: Batch, side: str, rows: slice) -> Batch:
    return Batch({side: _cut(batch.inputs[side], rows)}, {side: batch.items[side].take(rows)}, batch.known, batch.rows)


def _cut(inputs: Any, rows: slice) -> Any:
    """Some rows of raw inputs: of a tensor or a list, or of each of several in a mapping."""
    if isinstance(inputs, Mapping):
        return {name: _cut(value, rows) for name, value in inputs.items()}
    return inputs[rows]


def _end_to_end(parts: list[Items]) -> Items:
    tensors = [part.tensors() for part in parts]
    whole = {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
    return replace(parts[0], **whole)  # type: ignore[arg-type]
