"""Whole fits by Lightning: two processes under DDP, and one with a batch twice as large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from datamodules import RetrievalData
from hardneg.callbacks import RecordNegatives, RefreshNegatives
from hardneg.losses import InfoNCE
from hardneg.modules import RetrievalModule
from miners import NGAME, InBatch, MemoryQueue, SelfBlocks
from miners.base import process_count
from tests.distributed.processes import in_processes
from tests.distributed.tiny import TinyEncoder
from tests.hardneg.modules.runs import Nearest, logs, write_data

OPTIONS: dict[str, dict[str, Any]] = {
    "fresh": {"ngame": {"embeddings": "fresh"}},
    "buffer": {"ngame": {"embeddings": "buffer"}},
    "asynchronous": {"refresh": {"every_n_steps": 3, "asynchronous_steps": 2}},
    "staleness": {"refresh": {"every_n_epochs": None, "min_overlap": 0.9, "check_every_n_steps": 2, "probe": 40}},
}


def fit(data: str, folder: str, name: str, resume: str | None = None) -> dict[str, Any]:
    """Two epochs; weights, logged numbers, and what each process knows at the end."""
    encoder = TinyEncoder()
    module = RetrievalModule(
        encoder,
        InfoNCE(0.1, learn_temperature=True),
        [InBatch(), SelfBlocks(), MemoryQueue(size=30)],
        directions=("query_to_document", "document_to_query"),
        learning_rate=0.02,
        guide=TinyEncoder(seed=1),
        guide_folder=str(Path(folder) / "guide"),
        chunk_size=3,
    )
    options = OPTIONS[name]
    datamodule = RetrievalData(
        data,
        batch_size=8 // process_count(),
        batch_miner=NGAME(cluster_size=4, **options.get("ngame", {})),
        sources=[Nearest()],
        eval_batch_size=3,
    )
    refresh = RefreshNegatives(**{"spaces": ("query", "document"), **options.get("refresh", {})})
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=process_count(),
        strategy="ddp" if process_count() > 1 else "auto",
        callbacks=[
            refresh,
            RecordNegatives(every_n_steps=4),
            ModelCheckpoint(Path(folder) / "checkpoints", "{step}", every_n_train_steps=5, save_top_k=-1),
            ModelCheckpoint(Path(folder) / "best", monitor="val/nDCG@10", mode="max"),
        ],
        logger=CSVLogger(folder, name="logs"),
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule, ckpt_path=resume, weights_only=True)
    measures = dict(module.measures.means)
    embedded = module.embed("document").vectors
    return {
        "weights": {key: value for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)},
        "queue": module.chains["query_to_document"][2].state_dict()["_extra_state"]["ring"]["ids"],
        "measures": measures,
        "embedded": embedded,
        "encoded": encoder.encoded,
        "refreshes": refresh.refreshes,
    }


def in_lightning(data: str, folder: str, name: str) -> dict[str, Any]:
    """A fit, and another that goes on from the middle of the first."""
    whole = fit(data, folder, name)
    torch.distributed.barrier()
    rest = fit(data, f"{folder}/rest", name, resume=f"{folder}/checkpoints/step=5.ckpt")
    return {"whole": whole, "rest": rest}


def all_fits(data: str, folder: str) -> dict[str, Any]:
    return {name: in_lightning(data, f"{folder}/{name}", name) for name in OPTIONS}


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    root = tmp_path_factory.mktemp("fits")
    data = str(write_data(root / "beir"))
    alone = {name: fit(data, str(root / "alone" / name), name) for name in OPTIONS}
    return alone, in_processes(2, all_fits, root / "processes", data, str(root / "together")), root


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_fit_like_one(fits: Any, name: str) -> None:
    """50 rows in batches of 8: the last batch gives each process one row; float32 over 14 steps of AdamW."""
    alone, together, root = fits
    for process in together:
        found = process[name]["whole"]
        for key, value in alone[name]["weights"].items():
            difference = float((found["weights"][key] - value).abs().max())
            assert difference <= 2e-4 + 2e-3 * float(value.abs().max()), key
        assert found["queue"].tolist() == alone[name]["queue"].tolist()  # the same batches in the same order
        assert found["measures"] == pytest.approx(alone[name]["measures"], abs=1e-6)
        torch.testing.assert_close(found["embedded"], alone[name]["embedded"], rtol=1e-2, atol=2e-3)
        assert found["refreshes"] == alone[name]["refreshes"]
        # half the work each; gradient caching gives the first chunk of every process and side a graph twice
        assert found["encoded"] * 2 == pytest.approx(alone[name]["encoded"], rel=0.3)
    one, two = logs(root / "alone" / name), logs(root / "together" / name)
    assert set(one) == set(two)
    for key, value in one.items():
        assert float(two[key]) == pytest.approx(float(value), rel=2e-2, abs=2e-3), key


@pytest.mark.parametrize("name", OPTIONS)
def test_processes_hold_the_same_weights_and_go_on_exactly(fits: Any, name: str) -> None:
    first, second = (process[name] for process in fits[1])
    for key, value in first["whole"]["weights"].items():
        assert torch.equal(value, second["whole"]["weights"][key])
        for process in (first, second):
            assert torch.equal(value, process["rest"]["weights"][key]), key
