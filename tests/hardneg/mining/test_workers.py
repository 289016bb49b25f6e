"""Several processes encode what one encodes, and none outlives the one that began them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hardneg.mining import EmbeddingCache
from tests.hardneg.mining.test_cli import Flattened, hardneg_mine

pytestmark = pytest.mark.slow  # a process needs seconds to begin
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two processes share this one's threads, and a product rounds by the number of its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(device: str) -> Flattened:
    return Flattened()


def make_other(device: str) -> Flattened:
    return Flattened(seed=1)


class Fatal(Flattened):
    """Ends its process at the first text that says so."""

    def forward(self, inputs, kind):  # type: ignore[no-untyped-def]
        if "die" in inputs:
            os._exit(3)
        return super().forward(inputs, kind)


def make_fatal(device: str, seed: int = 0) -> Fatal:
    return Fatal(seed=seed)


def test_windows_of_a_mapped_file_are_the_same_as_from_one_process(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("hardneg.mining.cache.CHUNK", 10)
    np.save(tmp_path / "windows.npy", np.random.default_rng(0).normal(size=(45, 6, 5)).astype(np.float32))
    windows: Any = np.load(tmp_path / "windows.npy", mmap_mode="r")
    one = EmbeddingCache(None).encode(Flattened(), windows, "document")
    seen: list[tuple[int, int]] = []
    here = Flattened()
    many = EmbeddingCache(tmp_path / "cache", processes=2).encode(
        here, windows, "document", make=make, seen=lambda at, vectors: seen.append((at, len(vectors)))
    )
    assert here.calls == 0
    assert torch.equal(many.vectors, one.vectors)
    assert seen == [(0, 10), (10, 10), (20, 10), (30, 10), (40, 5)]


def test_a_process_with_other_weights_and_one_that_dies(monkeypatch: pytest.MonkeyPatch, capfd) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("hardneg.mining.cache.CHUNK", 1)
    cache = EmbeddingCache(None, processes=2)
    with pytest.raises(OSError, match="one of 2 encoding processes ended or could not begin"):
        cache.encode(Flattened(), ["a", "b"], "document", make=make_other)
    assert "has other weights than the first one" in capfd.readouterr().err
    with pytest.raises(OSError, match="use fewer --processes"):
        cache.encode(Fatal(), ["a", "die"], "document", make=partial(make_fatal, seed=0))


def test_the_command_gives_the_same_file(tmp_path: Path, sample_folder: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("hardneg.mining.cache.CHUNK", 6)  # all six queries here, the corpus of twelve in two processes
    for name, more in (("one", ()), ("two", ("--processes", 2))):
        out = ("--out", tmp_path / f"{name}.parquet", "--cache", tmp_path / name)
        hardneg_mine(sample_folder, "--encoder", "tests.hardneg.mining.test_cli.Flattened", *out, *more)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


KILLED = """
import sys, time
from hardneg.mining.workers import Workers
from tests.hardneg.mining.test_workers import make
if __name__ == "__main__":
    with Workers(make, "cpu", 2, ("document", make("cpu").fingerprint("document"))) as workers:
        next(workers.encode([["a"], ["b"], ["c"], ["d"]], "document", 2))
        print(*workers._pool._processes, flush=True)
        time.sleep(60)
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE, text=True, env=environment)
    assert run.stdout is not None
    children = [int(one) for one in run.stdout.readline().split()]
    assert len(children) == 2
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 10
    while any(alive(one) for one in children):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
