"""From the rows of one process to the rows of all: the same mathematics on one and on many.

A process compares its own anchors with the candidates of all, so what is gathered keeps its gradient: backward adds up
what all processes ask of a vector and hands it to the process that made it. `DistributedDataParallel` then averages
the gradients of the weights, which is why `reduce` multiplies by the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from datamodules.batch import Batch
from miners.base import process_count, process_rank
from miners.pool import Items
from miners.ragged import Ragged

FLOATS = ("embeddings", "norms")  # parts that a gradient flows through
MOST_SIDES = 29
GATHERED_ROWS = 1 << 16  # vectors of each process that travel at a time when many things are encoded in shares
NAMES = ("ids", "content", "labels", "rows")  # int64 parts


def gather(sides: Mapping[str, Items], batch: Batch) -> tuple[dict[str, Items], Batch, slice]:
    """Sides and batch of all processes, in the order of their ranks, and where this process' rows stand among them.

    Every part travels: embeddings with gradient, ids, content, labels, norms, guide, and ``rows``, which become rows of
    the global batch. Processes may hold different numbers of rows, and of drawn negatives.

    Args:
        sides: what this process encoded.
        batch: this process' batch.

    Returns:
        sides (G, ...); a `Batch` with the ``known`` and ``rows`` of all G rows and no inputs; the slice of own rows.

    Raises:
        ValueError: processes whose sides differ in kind (a part or a side that only some of them have).
    """
    own = torch.arange(len(batch))
    if process_count() == 1:
        return dict(sides), Batch({}, dict(sides), batch.known, batch.rows), slice(0, len(own))
    counts = _counts(sides, batch)
    offset = sum(count[0] for count in counts[: process_rank()])

    names: list[tuple[Any, int, Tensor]] = [
        ("rows", 0, batch.rows),
        ("lengths", 0, batch.known.lengths),
        ("values", 1, batch.known.values),
    ]
    guides: list[tuple[Any, int, Tensor]] = []
    floats: list[tuple[Any, int, Tensor]] = []
    for at, (side, items) in enumerate(sides.items(), start=2):
        for part, tensor in items.tensors().items():
            if part == "rows":
                tensor = tensor + offset
            into = names if part in NAMES else floats if part in FLOATS else guides
            into.append(((side, part), at, tensor))

    found = _gathered(names, counts) | _gathered(guides, counts) | _gathered(floats, counts, gradient=True)
    lengths = found["lengths"]
    known = Ragged(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), found["values"])
    everyone = {
        side: replace(items, **{part: found[side, part] for part in items.tensors()})  # type: ignore[arg-type]
        for side, items in sides.items()
    }
    return everyone, Batch({}, everyone, known, found["rows"]), slice(offset, offset + len(own))


def reduce(total: Tensor, count: Tensor) -> Tensor:
    """The mean of (sum, count) terms over all processes, as far as this process' gradient goes.

    ``total`` x W / count of all: averaged over W processes, as DDP does with gradients, it is the sum of all totals
    over the sum of all counts, however unevenly rows are spread.
    """
    if process_count() > 1:
        count = added(count)
    return total * process_count() / count.clamp_min(1)


def added(value: Tensor) -> Tensor:
    """The sum of ``value`` over all processes, without gradient."""
    if process_count() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def joined(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors (n, ...) of all processes end to end, in the order of ranks, without gradient; n may differ."""
    if process_count() == 1:
        return dict(parts)
    first = next(iter(parts.values()))
    counts = _stacked(torch.tensor([len(first)], device=first.device)).tolist()
    return _gathered([(name, 0, tensor.detach()) for name, tensor in parts.items()], counts)


def in_order(share: Tensor, number: int, device: torch.device) -> Tensor:
    """(number, d) on the CPU, in their order, from the shares (n, d) of all processes: every W-th thing each.

    Args:
        share: this process' vectors, of the things ``[rank::W]``.
        number: of things in all.
        device: on which processes talk.
    """
    if process_count() == 1:
        return share
    whole = torch.empty(number, share.shape[1])
    mine = torch.arange(number)[process_rank() :: process_count()]
    for start in range(0, -(-number // process_count()), GATHERED_ROWS):
        rows = slice(start, start + GATHERED_ROWS)
        found = joined({"at": mine[rows].to(device), "vectors": share[rows].to(device)})
        whole[found["at"].cpu()] = found["vectors"].cpu()
    return whole


def _gathered(
    parts: Sequence[tuple[Any, int, Tensor]], counts: list[list[int]], gradient: bool = False
) -> dict[Any, Tensor]:
    """(G, ...) of each part, by key. One message, so that backward sends one too, in the same order everywhere.

    Args:
        parts: key, column of ``counts`` that says how many there are, this process' tensor (n, ...).
    """
    if not parts:
        return {}
    dtype = parts[0][2].dtype
    for _, _, tensor in parts:
        dtype = torch.promote_types(dtype, tensor.dtype)
    widths = [tensor.shape[1:].numel() for _, _, tensor in parts]
    pieces = [
        [count[at] * width for (_, at, _), width in zip(parts, widths, strict=True)] for count in counts
    ]  # W x parts: numbers in each
    flat = torch.cat([tensor.reshape(-1).to(dtype) for _, _, tensor in parts])
    longest = max(map(sum, pieces))
    flat = torch.nn.functional.pad(flat, (0, longest - len(flat)))  # collectives want equal shapes
    everyone = _StackedWithGradient.apply(flat) if gradient else _stacked(flat)
    of_process = [row[: sum(piece)].split(piece) for row, piece in zip(everyone, pieces, strict=True)]
    return {
        key: torch.cat([split[number] for split in of_process]).view(-1, *tensor.shape[1:]).to(tensor.dtype)
        for number, (key, _, tensor) in enumerate(parts)
    }


def _stacked(tensor: Tensor) -> Tensor:
    """(W, ...) the tensor of every process; equal shapes."""
    out = tensor.new_empty(process_count() * tensor.numel())
    dist.all_gather_into_tensor(out, tensor.reshape(-1))
    return out.view(process_count(), *tensor.shape)


class _StackedWithGradient(torch.autograd.Function):
    """`_stacked`, and backward the sum of what all processes ask of this process' tensor.

    Backward is a message too: every process must come by here, and does, since its own anchors are in the tensor.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _stacked(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[process_rank()]


def _counts(sides: Mapping[str, Items], batch: Batch) -> list[list[int]]:
    """For each process how many rows, known ids, and things of each side it has; one message of a fixed length."""
    kinds = [
        f"{side}/{items.space}/{part}/{tuple(tensor.shape[1:])}/{tensor.dtype}"
        for side, items in sides.items()
        for part, tensor in items.tensors().items()
    ]
    sizes = [len(batch), len(batch.known.values), *map(len, sides.values())]
    message = torch.zeros(MOST_SIDES + 3, dtype=torch.long, device=batch.rows.device)
    message[: len(sizes) + 1] = torch.tensor([_hash_of(";".join(kinds)), *sizes])
    everyone = _stacked(message)
    if len(everyone[:, 0].unique()) > 1:  # before a gather of different things waits for ever
        raise ValueError(
            f"process {process_rank()} encoded {kinds}, another process something else. Every process must bring the "
            "same sides with the same parts, if need be with 0 rows."
        )
    return everyone[:, 1 : len(sizes) + 1].tolist()


def _hash_of(text: str) -> int:
    """63 bits of a text, alike in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
