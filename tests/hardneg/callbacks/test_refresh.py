"""Fresh embeddings: when, of which weights, and for whom."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules import RetrievalData
from hardneg.callbacks import RefreshNegatives
from hardneg.callbacks.refresh import overlap_at_k
from hardneg.modules import RetrievalModule
from miners.base import Shuffled
from tests.distributed.tiny import TinyEncoder
from tests.hardneg.modules.runs import write_data

STEPS_AN_EPOCH = 5  # 50 rows, batches of 10


class Listener(Shuffled):
    """Remembers which versions it was handed, and when it arranged."""

    def __init__(self, batch_size: int = 32, drop_last: bool = False, seed: int = 0) -> None:
        super().__init__(batch_size, drop_last, seed)
        self.heard: list[tuple[str, int]] = []

    def refresh(self, stores: Any) -> None:
        self.heard.append(("refresh", stores["query"].version))
        super().refresh(stores)

    def arrange(self, rows: Tensor, epoch: int) -> Tensor:
        self.heard.append(("arrange", len(rows)))
        return super().arrange(rows, epoch)


class Slow(TinyEncoder):
    """Says in which thread it encoded whole spaces."""

    threads: ClassVar[set[str]] = set()

    def embed(self, inputs: Any, kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        if len(inputs) > 2:
            Slow.threads.add(threading.current_thread().name)
        return super().embed(inputs, kind, batch_size, progress)


def fit(
    tmp_path: Path, epochs: int = 2, learning_rate: float = 1e-3, **clock: Any
) -> tuple[Listener, RefreshNegatives]:
    data = write_data(tmp_path / "beir")
    listener, refresh = Listener(), RefreshNegatives(**clock)
    pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[refresh],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
    ).fit(
        RetrievalModule(Slow(), learning_rate=learning_rate, schedule="constant"),
        RetrievalData(str(data), batch_size=10, batch_miner=listener),
    )
    return listener, refresh


def versions(listener: Listener) -> list[int]:
    return [number for what, number in listener.heard if what == "refresh"]


def test_by_epoch_before_the_epoch_is_arranged(tmp_path: Path) -> None:
    listener, refresh = fit(tmp_path, epochs=3)
    assert listener.heard == [
        ("refresh", 0), ("arrange", 50), ("refresh", 5), ("arrange", 50), ("refresh", 10), ("arrange", 50),
    ]  # fmt: skip
    assert refresh.refreshes == 3


def test_every_second_epoch_from_a_start(tmp_path: Path) -> None:
    listener, _ = fit(tmp_path, epochs=5, every_n_epochs=2, start_epoch=1)
    assert versions(listener) == [5, 15]


def test_by_step_what_is_left_is_arranged_anew(tmp_path: Path) -> None:
    listener, _ = fit(tmp_path, epochs=2, every_n_epochs=None, every_n_steps=3)
    assert listener.heard == [
        ("refresh", 0), ("arrange", 50), ("refresh", 3), ("arrange", 20), ("arrange", 50), ("refresh", 6),
        ("arrange", 40), ("refresh", 9), ("arrange", 10),
    ]  # fmt: skip


def test_when_it_is_stale(tmp_path: Path) -> None:
    stale = {"every_n_epochs": None, "min_overlap": 0.9, "check_every_n_steps": 2, "probe": 50}
    still, refresh = fit(tmp_path / "still", learning_rate=0.0, **stale)
    assert (versions(still), refresh.overlap) == ([0], 1.0)
    moving, refresh = fit(tmp_path / "moving", learning_rate=0.05, **stale)
    assert versions(moving)[:3] == [0, 2, 4]
    assert refresh.overlap is not None
    assert refresh.overlap < 1.0


def test_in_a_thread_of_the_weights_when_it_began(tmp_path: Path) -> None:
    Slow.threads = set()
    listener, refresh = fit(
        tmp_path, epochs=2, every_n_epochs=None, every_n_steps=4, asynchronous_steps=2, learning_rate=0.05
    )
    # handed over at steps 6 and 10, made of the weights of steps 4 and 8
    assert versions(listener) == [0, 4, 8]
    assert listener.heard[2:4] == [("arrange", 50), ("refresh", 4)]
    assert any(name.startswith("refresh") for name in Slow.threads)
    assert refresh.refreshes == 3


def test_another_fit_begins_anew(tmp_path: Path) -> None:
    data, listener, refresh = write_data(tmp_path / "beir"), Listener(), RefreshNegatives()
    for _ in range(2):
        pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[refresh],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=tmp_path,
        ).fit(RetrievalModule(TinyEncoder()), RetrievalData(str(data), batch_size=10, batch_miner=listener))
    assert versions(listener) == [0, 0]


def test_overlap_at_k() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(20, 4, generator=generator), torch.randn(30, 4, generator=generator)
    assert overlap_at_k((queries, documents), (2 * queries, documents), 5) == 1.0
    moved = documents + torch.randn(30, 4, generator=generator)

    def slow(left: Tensor, right: Tensor) -> list[set[int]]:
        return [set(sorted(range(len(right)), key=lambda at: -float(right[at] @ row))[:5]) for row in left]

    by_hand = [len(a & b) / 5 for a, b in zip(slow(queries, documents), slow(queries, moved), strict=True)]
    assert overlap_at_k((queries, documents), (queries, moved), 5) == pytest.approx(sum(by_hand) / 20)
    alone = overlap_at_k((queries, queries), (queries, queries), 19)
    assert alone == 1.0  # all the others, never itself
    assert 0 < overlap_at_k((queries, queries), (queries[:, :3],) * 2, 3) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": None}, "would never refresh"),
        ({"every_n_epochs": 0}, r"every_n_epochs=0\): wants at least 1"),
        ({"every_n_steps": 0}, r"every_n_steps=0\): wants at least 1"),
        ({"min_overlap": 1.5}, r"min_overlap=1.5\): a share"),
        ({"k": 10, "probe": 10}, r"probe=10\): wants at least 11"),
        ({"asynchronous_steps": -1}, r"asynchronous_steps=-1\): wants at least 0"),
        ({"spaces": []}, "would encode nothing"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefreshNegatives(**options)
