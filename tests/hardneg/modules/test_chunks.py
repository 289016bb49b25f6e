"""Gradient caching gives the gradients of the whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.batch import Batch
from hardneg.losses import InfoNCE
from hardneg.modules import RetrievalModule
from hardneg.modules.chunks import _end_to_end, _part, encode_in_chunks
from miners import GIST, InBatch, Items, MemoryQueue, Ragged, SelfBlocks
from miners.store import Store
from tests.distributed.test_gather import DOCUMENTS, whole_batch
from tests.distributed.tiny import TinyEncoder


def module_of(dtype: torch.dtype = torch.float32, dropout: float = 0.0, **options: Any) -> RetrievalModule:
    module = RetrievalModule(
        TinyEncoder(dropout=dropout),
        InfoNCE(0.1, learn_temperature=True),
        [InBatch(), SelfBlocks(), MemoryQueue(size=12), GIST(margin=0.2)],
        directions=("query_to_document", "document_to_query"),
        guide=TinyEncoder(seed=1),
        **options,
    ).to(dtype)
    generator = torch.Generator().manual_seed(6)
    for space, many in (("query", 100), ("document", DOCUMENTS)):
        module.guide_stores[space] = Store(torch.randn(many, 4, generator=generator), space=space)
    module._warned = True
    module.log = module.log_dict = lambda *_, **__: None
    return module


def two_steps(module: RetrievalModule, scale: float = 1.0, autocast: bool = False) -> dict[str, Tensor]:
    """Loss and gradients of the second of two steps, when the queue is not empty any more."""
    for step in range(2):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            loss = module.training_step(whole_batch(step), step)
        (scale * loss).backward()
        for pool in module.finished:
            for miner in module.chains[pool.direction]:
                miner.commit(pool)
        module.batches_trained += 1
    gradients = {name: one.grad / scale for name, one in module.named_parameters() if one.grad is not None}
    return {"loss": loss.detach()} | gradients


def assert_close(first: Mapping[str, Tensor], second: Mapping[str, Tensor], bound: float) -> None:
    assert set(first) == set(second)
    largest = max(float(value.abs().max()) for value in first.values())
    for name, value in first.items():
        assert float((value - second[name]).abs().max()) <= bound * largest, name


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_the_gradients_of_the_whole_batch(size: int) -> None:
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        assert_close(two_steps(module_of(dtype)), two_steps(module_of(dtype, chunk_size=size)), bound)


def test_with_a_slow_copy_and_scaled_losses() -> None:
    plain = two_steps(module_of(momentum=0.5), scale=1024.0)
    assert_close(plain, two_steps(module_of(momentum=0.5, chunk_size=3), scale=1024.0), 1e-6)


def keep_activations(encode: Any, batch: Batch, chunk_size: int, device: torch.device) -> dict[str, Items]:
    """The same chunks, with a graph for all of them; autocast keeps no copies of weights that would sum in half."""
    kind = device.type
    half = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)
    sides: dict[str, Items] = {}
    for side, items in batch.items.items():
        starts = range(0, max(len(items), 1), chunk_size)
        with half:
            parts = [encode(_part(batch, side, slice(start, start + chunk_size))) for start in starts]
        sides |= {name: _end_to_end([part[name] for part in parts]) for name in parts[0]}
    return sides


@pytest.mark.parametrize("autocast", [False, True])
def test_dropout_draws_the_same_again(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same chunks with all activations kept."""
    cached = two_steps(module_of(dropout=0.5, chunk_size=3), autocast=autocast)
    monkeypatch.setattr("hardneg.modules.base.encode_in_chunks", keep_activations)
    kept = two_steps(module_of(dropout=0.5, chunk_size=3), autocast=autocast)
    assert_close(kept, cached, 1e-6)
    other = two_steps(module_of(dropout=0.5, chunk_size=3, seed=1), autocast=autocast)
    assert float((kept["loss"] - other["loss"]).abs()) > 1e-3  # dropout is on


def test_each_thing_is_encoded_twice_and_activations_of_one_chunk_are_alive() -> None:
    alive, most = 0, 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x.clone())
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            nonlocal alive, most
            (saved,) = ctx.saved_tensors
            alive += len(saved)  # what backward holds of this chunk
            most = max(most, len(saved))
            return gradient * 2

    calls: list[int] = []
    weight = torch.ones(4, requires_grad=True)

    def encode(batch: Batch) -> dict[str, Items]:
        ((side, items),) = batch.items.items()
        calls.append(len(items))
        return {side: Items(Counted.apply(batch.inputs[side] * weight), items.ids)}

    rows = torch.arange(10)
    batch = Batch({"one": torch.randn(10, 4)}, {"one": Items(ids=rows)}, Ragged.empty(10), rows)
    sides = encode_in_chunks(encode, batch, 4, torch.device("cpu"))
    assert calls == [4, 4, 2]
    assert sides["one"].ids.tolist() == rows.tolist()
    sides["one"].embeddings.sum().backward()
    assert calls == [4, 4, 2, 4, 4, 2]  # once more each
    assert (alive, most) == (10, 4)
    assert weight.grad.tolist() == pytest.approx((2 * batch.inputs["one"].sum(0)).tolist(), rel=1e-5)


def test_inputs_of_several_parts_are_cut_together_and_empty_sides_stay() -> None:
    seen = []

    def encode(batch: Batch) -> dict[str, Items]:
        ((side, items),) = batch.items.items()
        seen.append({name: len(part) for name, part in batch.inputs[side].items()})
        return {side: Items(torch.zeros(len(items), 2), items.ids)}

    inputs = {
        "one": {"text": ["a"] * 3, "picture": torch.zeros(3, 2)},
        "none": {"text": [], "picture": torch.zeros(0, 2)},
    }
    items = {"one": Items(ids=torch.arange(3)), "none": Items(ids=torch.arange(0))}
    sides = encode_in_chunks(encode, Batch(inputs, items, Ragged.empty(3), torch.arange(3)), 2, torch.device("cpu"))
    assert seen == [{"text": 2, "picture": 2}, {"text": 1, "picture": 1}, {"text": 0, "picture": 0}]
    assert [len(sides[name]) for name in ("one", "none")] == [3, 0]


@pytest.mark.parametrize("options", [{"chunk_size": 0}, {"momentum": 1.0}, {"momentum": 0.0}])
def test_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="=" + str(next(iter(options.values())))):
        RetrievalModule(TinyEncoder(), **options)


def test_a_weights_gradient_arrives_once_and_whole() -> None:
    """DDP and gradient scalers look at a gradient when it arrives."""
    module = module_of(chunk_size=2, momentum=0.5)
    arrived: list[str] = []
    for name, weight in module.encoder.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    module.training_step(whole_batch(0), 0).backward()
    assert sorted(arrived) == sorted(name for name, _ in module.encoder.named_parameters())


def test_frozen_sides_and_slow_copies_are_encoded_once() -> None:
    module = module_of(chunk_size=2, momentum=0.5)
    calls: list[str] = []
    module.slow.register_forward_hook(lambda *_: calls.append("slow"))
    loss = module.training_step(whole_batch(0), 0)
    before = len(calls)
    loss.backward()
    assert (before, len(calls) - before) == (12, 8)  # the slow vectors of a side with anchors are made again with them


def test_a_reentrant_checkpoint_says_what_to_do() -> None:
    weight = torch.ones(4, requires_grad=True)

    def encode(batch: Batch) -> dict[str, Items]:
        inputs = batch.inputs["one"].clone().requires_grad_()
        return {"one": Items(torch.utils.checkpoint.checkpoint(lambda x: x * weight, inputs, use_reentrant=True))}

    batch = Batch({"one": torch.randn(3, 4)}, {"one": Items(ids=torch.arange(3))}, Ragged.empty(3), torch.arange(3))
    with pytest.raises(ValueError, match="Set use_reentrant=False"):
        encode_in_chunks(encode, batch, 2, torch.device("cpu"))
