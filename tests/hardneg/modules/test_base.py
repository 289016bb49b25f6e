"""The training step that families share: counts, the slow copy, and what a step draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from datamodules import RetrievalData
from hardneg.losses import InfoNCE
from hardneg.modules import RetrievalModule
from miners import InBatch, MemoryQueue
from tests.distributed.test_gather import whole_batch
from tests.distributed.tiny import TinyEncoder
from tests.hardneg.modules.runs import write_data


class Watched(RetrievalModule):
    """Keeps the encoder's and the slow copy's weights as each step finds them."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = getattr(self, "seen", [])

    def on_before_backward(self, loss: Tensor) -> None:
        copy = nn.utils.parameters_to_vector(self.slow.module.parameters()).detach().clone()
        self.seen.append((nn.utils.parameters_to_vector(self.encoder.parameters()).detach().clone(), copy))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "beir")


def fit(module: RetrievalModule, data: Path, folder: Path, **options: Any) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options = {"max_epochs": 1, "limit_val_batches": 0, **options}
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options)
    trainer.fit(module, RetrievalData(str(data), batch_size=10))
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_slow_copy_follows_once_per_optimiser_step(data: Path, tmp_path: Path, accumulate: int) -> None:
    module = Watched(TinyEncoder(), momentum=0.75, learning_rate=0.05, schedule="constant", warmup_share=0.0)
    fit(module, data, tmp_path, accumulate_grad_batches=accumulate)
    expected = module.seen[0][0]
    for number, (encoder, copy) in enumerate(module.seen):
        if number and number % accumulate == 0:
            expected = 0.75 * expected + 0.25 * encoder
        torch.testing.assert_close(copy, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(module.seen[-1][0], module.seen[-1][1])
    assert all(one.grad is None and not one.requires_grad for one in module.slow.parameters())


def test_evaluation_moves_neither_copy_nor_queue(data: Path, tmp_path: Path) -> None:
    module = RetrievalModule(TinyEncoder(), miners=[InBatch(), MemoryQueue(size=8)], momentum=0.9)
    trainer = fit(module, data, tmp_path)
    before = module.state_dict()
    before = {name: value.clone() if isinstance(value, Tensor) else value for name, value in before.items()}
    trainer.validate(module, RetrievalData(str(data), batch_size=10), verbose=False)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) if isinstance(value, Tensor) else True
    queue = module.chains["query_to_document"][1]
    assert queue._ring.ids.tolist() == before["chains.query_to_document.1._extra_state"]["ring"]["ids"].tolist()


def test_candidates_come_from_the_slow_copy_without_gradient() -> None:
    module = RetrievalModule(TinyEncoder(), InfoNCE(0.1), momentum=0.9, directions=("query_to_document",))
    module.log = module.log_dict = lambda *_, **__: None
    with torch.no_grad():
        module._follow()
        for one in module.slow.parameters():
            one.mul_(1.1)
    module._followed = module.global_step
    module.training_step(whole_batch(0), 0)
    (pool,) = module.finished
    batch = whole_batch(0)
    assert torch.equal(pool.positives.items.embeddings[:, 0], module.slow(batch.inputs["document"], "document"))
    assert torch.equal(pool.negatives[1].items.embeddings, module.slow(batch.inputs["drawn"], "document"))
    assert torch.equal(pool.anchors.embeddings, module.encoder(batch.inputs["query"], "query"))
    assert not pool.positives.items.embeddings.requires_grad
    assert pool.anchors.embeddings.requires_grad


def test_what_a_step_draws_depends_on_seed_and_batch_alone() -> None:
    def loss(seed: int = 0, trained: int = 0) -> float:
        module = RetrievalModule(TinyEncoder(dropout=0.5), seed=seed)
        module._warned, module.batches_trained = True, trained
        module.log = module.log_dict = lambda *_, **__: None
        torch.rand(torch.randint(5, ()).item())  # whatever was drawn before
        return float(module.training_step(whole_batch(0), 0).detach())

    assert loss() == loss()
    assert len({loss(), loss(seed=1), loss(trained=1)}) == 3


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 3}, 15),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 9),
        ({"max_epochs": 3, "limit_train_batches": 2}, 6),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 6),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 7}, 7),
    ],
)
def test_the_schedule_ends_with_the_last_step(data: Path, tmp_path: Path, options: Any, steps: int) -> None:
    module = RetrievalModule(TinyEncoder(), warmup_share=0.0)
    trainer = fit(module, data, tmp_path, **options)
    assert trainer.global_step == steps
    assert module._total_steps() == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
