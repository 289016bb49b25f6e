"""Encode in several processes: each makes its own encoder, and takes chunks as it finishes others."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardneg.encoders.base import Encoder

AHEAD = 2  # chunks per process that wait or are being encoded: what a crash may cost

_encoder: Encoder  # of a worker process

MakeEncoder = Callable[[str], Encoder]
"""Makes the encoder on a device; it must be a function of a module (or a `functools.partial` of one)."""


class Workers:
    """N processes with an encoder each, as a context.

    They are spawned, so a script that uses them needs the usual ``if __name__ == "__main__":``. With GPUs each process
    takes the next one of those that are visible; on CPUs they share this process' threads between them.

    Args:
        make: makes the encoder.
        device: "cpu", "cuda" or "mps".
        processes: how many.
        fingerprint: kind and fingerprint that each encoder must have: all must have the weights that the cache is
            filed under.
    """

    def __init__(self, make: MakeEncoder, device: str, processes: int, fingerprint: tuple[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        places: Any = context.Queue()
        for number in range(processes):
            places.put(f"cuda:{number % torch.cuda.device_count()}" if device == "cuda" else device)
        threads = max(1, torch.get_num_threads() // processes)
        self.processes = processes
        self._pool = ProcessPoolExecutor(
            processes, context, initializer=begin, initargs=(make, places, threads, fingerprint)
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def encode(self, chunks: Iterable[Any], kind: str, batch_size: int) -> Iterator[Tensor]:
        """Yield the vectors of each chunk in order; only a few chunks are drawn ahead of what is taken.

        Raises:
            OSError: a process ended, most often for want of memory.
        """
        waiting: deque[Future[np.ndarray]] = deque()
        try:
            for chunk in chunks:
                waiting.append(self._pool.submit(embed, chunk, kind, batch_size))
                if len(waiting) >= AHEAD * self.processes:
                    yield torch.from_numpy(waiting.popleft().result())
            while waiting:
                yield torch.from_numpy(waiting.popleft().result())
        except BrokenProcessPool as error:
            raise OSError(
                f"one of {self.processes} encoding processes ended or could not begin; its message stands above. If "
                "memory ran out, use fewer --processes or a smaller --batch-size. Finished chunks are kept."
            ) from error


def begin(make: MakeEncoder, places: Any, threads: int, fingerprint: tuple[str, str]) -> None:
    """Make this process' encoder."""
    global _encoder
    threading.Thread(target=leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _encoder = make(places.get())
    kind, expected = fingerprint
    if _encoder.fingerprint(kind) != expected:
        raise ValueError("the encoder made in a process of its own has other weights than the first one.")


def leave_with_parent() -> None:
    """End when the parent does: one that is killed cannot tell its workers, and they would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def embed(inputs: Any, kind: str, batch_size: int) -> np.ndarray:
    """Encode one chunk with this process' encoder."""
    return _encoder.embed(inputs, kind, batch_size=batch_size).float().cpu().numpy()
