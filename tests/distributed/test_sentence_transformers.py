"""Two processes in sentence-transformers' trainer see the batches of one, and end with its weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from miners import GIST, NGAME, InBatch, MemoryQueue, NoDuplicates
from miners.base import process_count
from tests.distributed.processes import in_processes
from tests.hardneg.interop.conftest import WORDS, make_model, texts

ROWS, BATCH = 24, 8


def fitted(folder: str, student: str, guide: str) -> dict[str, Tensor]:
    """Weights after two epochs, the learned temperature among them."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    from hardneg.interop.sentence_transformers import ChainLoss, MinerBatches, RefreshNegatives
    from hardneg.losses import InfoNCE

    if process_count() > 1:  # what a launcher would say; the processes know each other already
        os.environ |= {"WORLD_SIZE": str(process_count()), "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    every = texts(2 * ROWS, seed=7)
    data = Dataset.from_dict({"anchor": every[:ROWS], "positive": every[ROWS:]})
    model = SentenceTransformer(student, device="cpu")
    model[0].auto_model.pooler.requires_grad_(False)  # no vector depends on it
    chain = [InBatch(), GIST(), MemoryQueue(16)]
    loss = ChainLoss(
        model,
        chain,
        InfoNCE(learn_temperature=True),
        SentenceTransformer(guide, device="cpu"),
        gather_across_devices=True,
    )
    batches = MinerBatches(NoDuplicates(NGAME(cluster_size=4)))
    arguments = SentenceTransformerTrainingArguments(
        folder,
        batch_sampler=batches,
        per_device_train_batch_size=BATCH // process_count(),
        num_train_epochs=2,
        optim="sgd",  # Adam would make steps of the noise in gradients that are 0
        learning_rate=0.1,
        use_cpu=True,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    refresh = RefreshNegatives(batches, every_n_steps=2, loss=loss)
    SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=loss, callbacks=[refresh]).train()
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return weights | {"temperature": loss.loss.logit_scale.detach(), "refreshes": torch.tensor(refresh.refreshes)}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    student = str(make_model(tmp_path / "student", 0, WORDS))
    guide = str(make_model(tmp_path / "guide", 1, WORDS, 12))
    alone = fitted(str(tmp_path / "alone"), student, guide)
    for answer in in_processes(2, fitted, tmp_path / "two", str(tmp_path / "out"), student, guide):
        assert int(answer["refreshes"]) == int(alone["refreshes"]) == 5
        for name, weight in alone.items():
            torch.testing.assert_close(answer[name], weight, rtol=1e-4, atol=1e-5)
