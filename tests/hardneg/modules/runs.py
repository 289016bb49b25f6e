"""Real fits of a tiny model, in this process or in one that is going to be killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from datamodules import RetrievalData
from hardneg.callbacks import RefreshNegatives
from hardneg.losses import InfoNCE
from hardneg.modules import RetrievalModule
from miners import NGAME, Draw, InBatch, MemoryQueue, NegativeSource, NoDuplicates, SelfBlocks
from miners.draws import RowGenerator
from tests.distributed.tiny import TinyEncoder

QUERIES, DOCUMENTS = 50, 70


class Nearest(NegativeSource):
    """Draws from the documents that the last refresh found nearest: its draws age with its table."""

    def __init__(self) -> None:
        self.table: Tensor | None = None

    def refresh(self, stores: Any) -> None:
        if {"query", "document"} <= set(stores):
            queries, documents = stores["query"], stores["document"]
            self.table = (queries.vectors @ documents.vectors.T).topk(8).indices

    def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
        if self.table is None:
            return Draw(torch.full((len(rows), 2), -1), torch.zeros(len(rows), 2, dtype=torch.bool), "nearest")
        chosen = (generator.uniform(rows, 2) * 8).long()
        ids = self.table[rows].gather(1, chosen)
        usable = (ids != positives[:, None]) & (rows[:, None] % 3 != 0)
        return Draw(ids.where(usable, -1), usable, "nearest")


class KillAt(pl.Callback):
    """SIGKILL this process, workers and all, when a step begins: nothing is flushed, nothing is closed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def write_data(folder: Path) -> Path:
    """Queries and documents that share words; a second positive here and there."""
    (folder / "qrels").mkdir(parents=True)
    words = [[f"w{(7 * i + j * j) % 40}" for j in range(4)] for i in range(DOCUMENTS)]
    corpus = [json.dumps({"_id": f"d{i}", "text": " ".join(words[i])}) for i in range(DOCUMENTS)]
    queries = [json.dumps({"_id": f"q{i}", "text": f"about {words[i][0]} {words[i][2]}"}) for i in range(QUERIES)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    pairs = [(i, i) for i in range(QUERIES)] + [(i, i + 15) for i in range(0, QUERIES, 4)]
    for split, kept in (("train", pairs), ("dev", pairs[:10]), ("test", pairs[10:20])):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{query}\td{document}\t1" for query, document in kept)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines))
    return folder


def parts(data_folder: Path, workers: int, **refresh: Any) -> tuple[RetrievalModule, RetrievalData, RefreshNegatives]:
    """A module with every kind of memory there is: dropout, a queue, a slow copy, clusters, tables, a learned scale."""
    module = RetrievalModule(
        TinyEncoder(dropout=0.3),
        InfoNCE(0.1, learn_temperature=True),
        [InBatch(), SelfBlocks(), MemoryQueue(size=20)],
        directions=("query_to_document", "document_to_query"),
        learning_rate=0.02,
        momentum=0.8,
        chunk_size=4,
        seed=1,
    )
    data = RetrievalData(
        str(data_folder),
        batch_size=8,
        num_workers=workers,
        batch_miner=NoDuplicates(NGAME(cluster_size=4)),
        sources=[Nearest()],
        seed=1,
    )
    return module, data, RefreshNegatives(**{"every_n_steps": 5, "spaces": ("query", "document"), **refresh})


def fit(
    data: Path,
    folder: Path,
    workers: int = 0,
    epochs: int = 3,
    resume: Path | None = None,
    kill_at: int | None = None,
    every: int | None = 3,
    refresh: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
) -> RetrievalModule:
    """Train; a checkpoint ``every`` so many steps goes to ``folder``/checkpoints, logs to ``folder``/logs."""
    module, datamodule, callback = parts(data, workers, **(refresh or {}))
    callbacks: list[pl.Callback] = [callback]
    if kill_at is not None:
        callbacks.append(KillAt(kill_at))
    if every is not None:
        callbacks.append(ModelCheckpoint(folder / "checkpoints", "{step}", every_n_train_steps=every, save_top_k=-1))
    options: dict[str, Any] = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_checkpointing": every is not None,
        "logger": CSVLogger(folder / "logs", name=None, flush_logs_every_n_steps=1),
        "default_root_dir": folder,
    }
    pl.Trainer(callbacks=callbacks, **(options | (trainer or {}))).fit(
        module, datamodule, ckpt_path=resume, weights_only=True
    )
    return module


def logs(folder: Path) -> dict[tuple[str, int], str]:
    """(name, step) -> value, as written; of several versions the newest that has it."""
    found: dict[tuple[str, int], str] = {}
    for file in sorted((folder / "logs").glob("version_*/metrics.csv"), key=lambda file: int(file.parent.name[8:])):
        for row in csv.DictReader(file.open()):
            found |= {
                (name, int(row["step"])): value
                for name, value in row.items()
                if value and name not in ("step", "epoch")
            }
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    found = list((folder / "checkpoints").glob("*.ckpt"))
    return max(found, key=lambda file: int(file.stem.removeprefix("step=").split("-")[0]), default=None)


if __name__ == "__main__":  # python -m tests.hardneg.modules.runs '{"data": ..., "folder": ..., "kill_at": 7}'
    torch.set_num_threads(1)
    order = json.loads(sys.argv[1])
    paths = {name: Path(order.pop(name)) for name in ("data", "folder", "resume") if order.get(name)}
    trained = fit(**paths, **{name: value for name, value in order.items() if name != "resume"})
    torch.save(trained.state_dict(), paths["folder"] / "final.pt")
