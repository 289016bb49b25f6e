"""Gradient caching: batches as large as the mathematics wants, in the memory of a small one.

The loss wants all vectors at once, the encoder's activations do not. Each chunk is encoded without a graph; when
backward brings the gradients of the vectors, each chunk is encoded once more, with a graph, the same dropout and under
the same autocast, and its gradients are added up. What it costs is one more forward pass.

One node of the graph stands for all chunks, so that a weight's gradient arrives once and whole, as DDP and gradient
scalers want it. A checkpoint of each chunk (`torch.utils.checkpoint`) would keep a graph of small nodes per chunk,
between which the memory of a CPU is cut to pieces: 2,048 texts of 16 tokens held 1.7 times what 32 hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules.batch import Batch
from hardneg.leaves import leaves_behind
from miners.pool import Items

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOATS = ("embeddings", "norms")  # parts of Items that a gradient flows through
Key = tuple[str, str]  # side and part


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
        GradCache, Gao et al., arXiv 2101.06983.
    """
    if all(len(items) <= chunk_size for items in batch.items.values()):
        return encode(batch)
    sides: dict[str, Items] = {}
    for side, items in batch.items.items():
        starts = range(0, max(len(items), 1), chunk_size)
        chunks = _Chunks(encode, [_part(batch, side, slice(start, start + chunk_size)) for start in starts], device)
        found = chunks.first()
        keys = chunks.differentiable
        if keys:
            tensors = [found[name].tensors()[part] for name, part in keys]
            for (name, part), tensor in zip(keys, _Cached.apply(chunks, *tensors, *chunks.weights), strict=False):
                found[name] = replace(found[name], **{part: tensor})
        sides |= found
    return sides


class _Chunks:
    """The parts of one side, to be encoded twice alike."""

    def __init__(
        self, encode: Callable[[Batch], dict[str, Items]], parts: Sequence[Batch], device: torch.device
    ) -> None:
        self.encode, self.parts, self.device = encode, parts, device
        self.dice: list[list[Tensor]] = []  # states of the generators before each part
        self.sizes: list[int] = []
        self.differentiable: list[Key] = []
        self.weights: list[Tensor] = []
        kinds = dict.fromkeys(("cpu", device.type))
        self.autocast = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]

    def first(self) -> dict[str, Items]:
        """All parts end to end, without a graph."""
        found: list[dict[str, Items]] = []
        for number, part in enumerate(self.parts):
            self.dice.append(_dice(self.device))
            # a graph for the first part, to see what depends on which weights; autocast must keep no copies of weights
            # that were made without one
            with torch.set_grad_enabled(number == 0 and torch.is_grad_enabled()), self._autocast(cache=False):
                encoded = self.encode(part)
            if number == 0:
                floats = {
                    (name, key): tensor
                    for name, items in encoded.items()
                    for key, tensor in items.tensors().items()
                    if key in FLOATS
                }
                self.differentiable = [key for key, tensor in floats.items() if tensor.requires_grad]
                self.weights = leaves_behind(floats[key] for key in self.differentiable)
            found.append({name: items.detach() for name, items in encoded.items()})
            self.sizes.append(len(next(iter(encoded.values()))))
        return {name: _end_to_end([part[name] for part in found]) for name in found[0]}

    def again(self, gradients: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradient of each weight, given those of the differentiable tensors (all parts)."""
        total: list[Tensor | None] = [None] * len(self.weights)
        by_part = zip(*(gradient.split(self.sizes) for gradient in gradients), strict=True)
        now = _dice(self.device)
        for part, dice, asked in zip(self.parts, self.dice, by_part, strict=True):
            _restore(self.device, dice)
            with torch.enable_grad(), self._autocast(cache=True):
                encoded = self.encode(part)
            tensors = [encoded[name].tensors()[key] for name, key in self.differentiable]
            for number, more in enumerate(torch.autograd.grad(tensors, self.weights, list(asked), allow_unused=True)):
                old = total[number]
                total[number] = more if old is None else old if more is None else old.add_(more)
        _restore(self.device, now)
        return total

    @contextmanager
    def _autocast(self, cache: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for kind, dtype, enabled in self.autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=cache))
            yield


class _Cached(torch.autograd.Function):
    """Vectors that stand for all chunks; backward encodes these again."""

    @staticmethod
    def forward(ctx: Any, chunks: _Chunks, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.chunks = chunks
        return tuple(tensor.view_as(tensor) for tensor in tensors[: len(chunks.differentiable)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(None for _ in gradients), *ctx.chunks.again(gradients))


def _dice(device: torch.device) -> list[Tensor]:
    """The states of the generators that dropout on this device draws from."""
    states = [torch.get_rng_state()]
    if device.type == "mps":
        states.append(torch.mps.get_rng_state())
    elif device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _restore(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "mps":
        torch.mps.set_rng_state(states[1])
    elif device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)


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
