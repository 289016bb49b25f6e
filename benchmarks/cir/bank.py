"""Question: what does a step against a bank of 100,000 rows hold in memory?

A batch of 64 queries of 384 numbers, InfoNCE over the whole bank, forward and backward: scored at once, and in chunks.
The bar: in chunks, a step holds what a step against a bank of one chunk holds, and at most one chunk of everything more
(scores, what the softmax keeps of them, the chunk's own rows at length 1). A bank that is mapped from its file is read
in chunks; the process' own memory must not grow by more than that either, though the file is larger than it.

    python -m benchmarks.cir.bank
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.step.measure import arguments, peak_megabytes, seconds, write_table
from hardneg.losses import InfoNCE
from miners import Block, Items, NegativePool, StaticBank
from miners.store import Store

QUERIES, DIM, ROWS, CHUNK = 64, 384, 100_000, 8192
MAPPED = 1_000_000  # rows of the bank on disk: 1.5 GB
ALLOWED = 500  # MB that the process may ask for when the file is mapped: a copy of the file is three times that


def make_step(store: Store, chunk_size: int | None, queries: int = QUERIES, judges: tuple = ()):
    """A step of queries, whose targets are the first rows of the store."""
    miner = StaticBank(chunk_size=chunk_size)
    miner.refresh({"image": store})
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(queries, store.dim, generator=generator).requires_grad_()
    ids = torch.arange(queries)

    def step() -> torch.Tensor:
        anchors = Items(vectors, ids, space="query")
        own = Items(store.rows(ids)[:, None], ids[:, None], space="image")
        pool = miner(NegativePool(anchors, Block(own, "positive"), 0.02))
        for judge in judges:
            pool = judge(pool)
        total, count = InfoNCE(0.02)(pool)
        (total / count).backward()
        vectors.grad = None
        return total.detach()

    return step


def random_store(rows: int, dim: int = DIM, seed: int = 0) -> Store:
    """Rows of random numbers."""
    return Store(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), space="image")


def chunk_megabytes(queries: int = QUERIES, dim: int = DIM, chunk: int = CHUNK) -> float:
    """What one chunk may hold at once: its rows, their unit vectors, and six numbers for each score."""
    return 4 * (2 * chunk * dim + 6 * queries * chunk) / 1e6


def mapped_growth(folder: Path, rows: int) -> tuple[float, float]:
    """MB of the file, and by how many MB the process' own (not file-backed) memory grew at most in a step."""
    file = folder / "bank.npy"
    write_rows(file, rows)
    code = f"import benchmarks.cir.bank as b; b.report_growth({str(file)!r})"
    # or malloc keeps what chunks have given back, between small things that live on: 333 MB instead of a few chunks
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return file.stat().st_size / 1e6, float(done.stdout)


def write_rows(file: Path, rows: int) -> None:
    """A .npy file of random rows, written block by block."""
    import numpy as np

    out = np.lib.format.open_memmap(file, "w+", np.float32, (rows, DIM))
    generator = np.random.default_rng(0)
    for start in range(0, rows, CHUNK):
        out[start : start + CHUNK] = generator.standard_normal((min(CHUNK, rows - start), DIM), dtype=np.float32)
    out.flush()


def report_growth(file: str) -> None:
    """Print by how many MB the process' own memory grew at most in a step against a mapped bank."""
    import resource
    import threading

    torch.set_num_threads(1)
    store = Store(file, space="image")
    make_step(random_store(QUERIES), CHUNK)()  # what torch itself needs
    step, most, stop = make_step(store, CHUNK), [_megabytes("RssAnon")], threading.Event()
    before = most[0]
    limit = int(1e6 * (_megabytes("VmData") + ALLOWED))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def watch() -> None:
        while not stop.wait(0.005):
            most[0] = max(most[0], _megabytes("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    stop.set()
    watcher.join()
    print(most[0] - before)


def _megabytes(name: str) -> float:
    """MB of this process: "RssAnon" what is in memory and in no file, "VmData" what it has asked for."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return float(lines[name].split()[0]) * 1024 / 1e6


def main() -> int:
    """Measure, print and write the table; status 1 where the bar is missed."""
    options = arguments(__doc__, repeats=3)
    bank, one = random_store(ROWS), random_store(CHUNK)
    alone = peak_megabytes(make_step(one, CHUNK))
    rows, missed = [], False
    for name, store, chunk_size in (
        ("one chunk's bank, at once", one, None),
        ("one chunk's bank, in chunks", one, CHUNK),
        ("the whole bank, at once", bank, None),
        ("the whole bank, in chunks", bank, CHUNK),
    ):
        step = make_step(store, chunk_size)
        peak = peak_megabytes(step)
        if store is bank and chunk_size is not None:
            missed |= peak > alone + chunk_megabytes()
        spent = 1000 * seconds(step, options.repeats)
        rows.append((name, f"{len(store):,}", f"{peak:.0f}", f"{spent:.0f}"))
        print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        size, grown = mapped_growth(Path(folder), MAPPED)
    missed |= grown > alone + chunk_megabytes()
    rows.append(("a mapped file, in chunks", f"{MAPPED:,}", f"{grown:.0f} (of the process)", "not timed"))
    write_table(
        options.out or Path(__file__).with_suffix(".md"),
        "StaticBank: memory of a step",
        "python -m benchmarks.cir.bank",
        ("bank", "rows", "MB at once", "ms per step"),
        rows,
        (
            f"{QUERIES} queries, {DIM} numbers, chunks of {CHUNK:,}, InfoNCE, forward and backward, {options.threads} "
            "thread(s).",
            f"The bar for the whole bank: {alone:.0f} MB and one chunk of everything, {chunk_megabytes():.0f} MB.",
            f"The mapped file has {size:,.0f} MB; the process may ask for {ALLOWED} MB once it is mapped.",
        ),
    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
