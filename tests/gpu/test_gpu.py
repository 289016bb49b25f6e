"""What runs on a GPU gives what the CPU gives. One command: pytest -m gpu.

Needs a CUDA device, torch and this repository; the FAISS parts run where ``faiss-gpu`` is installed. With
HARDNEG_GPU_TESTS_ON=cpu the tests themselves can be tried on a machine without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.batch import Batch
from hardneg.losses import InfoNCE
from hardneg.modules import RetrievalModule
from miners import InBatch, MemoryQueue
from miners.index import FaissIndex, TorchIndex, build_index
from miners.store import Store
from tests.distributed.test_gather import CHAINS, LOSSES, cells, module_of, whole_batch
from tests.distributed.tiny import TinyEncoder
from tests.hardneg.modules.runs import fit, write_data
from tests.hardneg.modules.test_chunks import keep_activations
from tests.hardneg.modules.test_resume import assert_same

DEVICE = torch.device(os.environ.get("HARDNEG_GPU_TESTS_ON", "cuda"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def full_precision() -> None:
    torch.set_float32_matmul_precision("highest")


def step(cell: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Loss, gradients and logged numbers of the second step of a chain."""
    module = module_of(*cell, dtype).to(device)
    module._warned = True
    logged: dict[str, Tensor] = {}
    module.log = lambda name, value, **_: logged.__setitem__(name, value.detach().cpu())
    module.log_dict = lambda values, **_: logged.update({name: value.cpu() for name, value in values.items()})
    for number in range(2):
        module.zero_grad()
        module.training_step(whole_batch(number).to(device), number).backward()
        module.batches_trained += 1
        for pool in module.finished:
            for miner in module.chains[pool.direction]:
                miner.commit(pool)
    gradients = {name: one.grad.cpu() for name, one in module.named_parameters() if one.grad is not None}
    return {f"gradient/{name}": one for name, one in gradients.items()} | logged


def assert_close(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], bound: float, name: Any) -> None:
    assert set(expected) == set(found), name
    largest = max(float(value.abs().max()) for key, value in expected.items() if key.startswith("gradient/"))
    for key, value in expected.items():
        scale = largest if key.startswith("gradient/") else max(float(value.abs().max()), 1e-3)
        assert float((value - found[key]).abs().max()) <= bound * scale, (name, key)


def test_every_chain_loss_and_direction_trains_as_on_the_cpu() -> None:
    assert {cell[0] for cell in cells()} == set(CHAINS)
    assert {cell[1] for cell in cells()} == set(LOSSES)
    for cell in cells():
        for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            assert_close(step(cell, torch.device("cpu"), dtype), step(cell, DEVICE, dtype), bound, cell)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_gradient_caching_draws_the_same_dropout_again(
    dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients() -> dict[str, Tensor]:
        module = RetrievalModule(TinyEncoder(dropout=0.5), InfoNCE(0.1, True), [InBatch()], chunk_size=3).to(DEVICE)
        module._warned = True
        module.log = module.log_dict = lambda *_, **__: None
        with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
            loss = module.training_step(whole_batch(0).to(DEVICE), 0)
        (256 * loss).backward()
        return {f"gradient/{name}": one.grad.cpu() for name, one in module.named_parameters()} | {
            "loss": loss.detach().cpu()
        }

    cached = gradients()
    monkeypatch.setattr("hardneg.modules.base.encode_in_chunks", keep_activations)
    assert_close(gradients(), cached, 1e-5, dtype)


def test_gradient_caching_keeps_memory_flat() -> None:
    if DEVICE.type != "cuda":
        pytest.skip("torch counts memory on CUDA only")

    class Wide(TinyEncoder):
        def forward(self, inputs: Any, kind: str) -> Tensor:
            hidden = super().forward(inputs, kind).repeat(1, 4096)
            for _ in range(8):
                hidden = hidden.sin()
            return hidden[:, : self.dim]

    def peak(rows: int, chunk_size: int | None) -> int:
        module = RetrievalModule(Wide(), chunk_size=chunk_size).to(DEVICE)
        module._warned = True
        module.log = module.log_dict = lambda *_, **__: None
        small = whole_batch(0)
        many = -(-rows // len(small))
        items = {side: small.items[side].take(torch.arange(8).repeat(many)) for side in ("query", "document")}
        inputs = {side: list(small.inputs[side]) * many for side in items}
        batch = Batch(inputs, items, small.known.select(torch.arange(8).repeat(many)), torch.arange(8 * many))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        module.training_step(batch.to(DEVICE), 0).backward()
        return torch.cuda.max_memory_allocated() - before

    assert peak(1024, 32) < 1.5 * peak(32, None)


@pytest.mark.parametrize("rows", [10, 500])
def test_torch_index_finds_what_the_cpu_finds(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    store = Store(torch.nn.functional.normalize(torch.randn(30_000, 96, generator=generator), dim=1))
    queries = torch.randn(rows, 96, generator=generator)
    expected = TorchIndex(store, device="cpu").search(queries, 50)
    for found in (
        TorchIndex(store, device=str(DEVICE)).search(queries, 50),
        TorchIndex(store, device=str(DEVICE)).search(queries.to(DEVICE), 50),
    ):
        assert torch.equal(found[1].cpu(), expected[1])
        assert torch.equal(found[0].cpu(), expected[0])


@pytest.mark.parametrize("factory", ["Flat", "IVF64,Flat"])
def test_faiss_on_the_gpu(factory: str) -> None:
    faiss = pytest.importorskip("faiss")
    if DEVICE.type == "cuda" and not (hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus()):
        pytest.skip("faiss-gpu is not installed")
    generator = torch.Generator().manual_seed(0)
    store = Store(torch.nn.functional.normalize(torch.randn(20_000, 64, generator=generator), dim=1))
    queries = store.vectors[:100] + 0.01 * torch.randn(100, 64, generator=generator)
    index = FaissIndex(store, factory, device=DEVICE.type)
    _, ids = index.search(queries.to(DEVICE), 20)
    assert ids.device.type == DEVICE.type
    assert ids[:, 0].tolist() == list(range(100))
    expected = TorchIndex(store, device="cpu").search(queries, 20)[1]
    shared = torch.stack(
        [torch.isin(one, other).float().mean() for one, other in zip(ids.cpu(), expected, strict=True)]
    )
    assert float(shared.mean()) > (0.999 if factory == "Flat" else 0.1)
    assert build_index(factory, store, "auto").search(queries, 20)[1].shape == (100, 20)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fit_goes_on_exactly(tmp_path: Path, precision: str) -> None:
    data = write_data(tmp_path / "beir")
    trainer = {"accelerator": "gpu" if DEVICE.type == "cuda" else "cpu", "devices": 1, "precision": precision}
    trainer |= {"limit_val_batches": 0, "deterministic": "warn"}
    whole = fit(data, tmp_path / "whole", workers=2, epochs=2, every=1, trainer=trainer)
    for at in (3, 7, 10):
        resume = tmp_path / "whole" / "checkpoints" / f"step={at}.ckpt"
        rest = fit(data, tmp_path / f"{at}", workers=2, epochs=2, every=None, resume=resume, trainer=trainer)
        assert_same(rest.cpu(), whole.cpu())


def test_a_queue_moves_between_devices() -> None:
    cell = ("MemoryQueue", "InfoNCE", ("query_to_document",), "plain")
    module = module_of(*cell, torch.float32).to(DEVICE)
    module._warned = True
    module.log = module.log_dict = lambda *_, **__: None
    queue = next(miner for miner in module.chains["query_to_document"] if isinstance(miner, MemoryQueue))
    module.training_step(whole_batch(0).to(DEVICE), 0)
    queue.commit(module.finished[0])
    other = module_of(*cell, torch.float32)
    other._warned = True
    other.log = other.log_dict = lambda *_, **__: None
    state = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in module.state_dict().items()}
    other.load_state_dict(state)
    assert bool(other.training_step(whole_batch(1), 1).isfinite())  # a queue of CUDA tensors serves a model on the CPU
    assert len(other.finished[0].negatives) == 3
