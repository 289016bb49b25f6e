"""Run a function in several processes that can talk to each other (gloo, CPU)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(count: int, work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """``work(*arguments)`` in ``count`` processes; what each returned (tensors and plain values), by rank.

    An exception in one of them is raised here, with its traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_start, (count, work, str(folder), arguments), nprocs=count)
    return [torch.load(folder / f"answer-{rank}.pt", weights_only=True) for rank in range(count)]


def _start(rank: int, count: int, work: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["LOCAL_RANK"] = os.environ["RANK"] = str(rank)  # or Lightning would start processes of its own
    store = dist.FileStore(f"{folder}/rendezvous", count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    try:
        torch.save(work(*arguments), f"{folder}/answer-{rank}.pt")
    finally:
        dist.destroy_process_group()
    # Left without Python's clean-up: a gloo thread that lets go of its last tensor while Python 3.11 finalises is
    # ended by force in the middle of C++, and the process aborts ("terminate called without an active exception").
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
