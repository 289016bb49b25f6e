"""Does memory stay bounded when the corpus does not fit? One command, one table.

    python benchmarks/mining/large.py    # 2,000,000 x 384 float32 from a file (3 GB on disk), 5,000 queries, k = 50

Writes large.md: the largest RssAnon (memory that is the process's own; pages of the mapped file do not count) seen
while `mine` ran, its rise over the start, the time, and whether a sample of queries has the documents that a search of
all of them in float64 gives.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
BLOCK, NEGATIVES, MARGIN = 50_000, 10, 0.05


def write(path: Path, rows: int, dim: int) -> None:
    """Write unit vectors to a ``.npy`` file, block by block."""
    draw = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
    for start in range(0, rows, BLOCK):
        block = draw.standard_normal((min(BLOCK, rows - start), dim), dtype=np.float32)
        file[start : start + BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    file.flush()


def anonymous() -> int:
    """RssAnon of this process in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) >> 10


def right(mined: Any, queries: np.ndarray, path: Path, sample: int) -> float:
    """Share of the first queries' negatives that stand where a float64 search of the whole file puts them."""
    corpus = np.load(path, mmap_mode="r")
    scores = np.empty((sample, len(corpus)), dtype=np.float32)
    for start in range(0, len(corpus), BLOCK):
        block = corpus[start : start + BLOCK].astype(np.float64)
        scores[:, start : start + BLOCK] = queries[:sample].astype(np.float64) @ block.T
    table = mined.table.slice(0, sample * NEGATIVES)
    found = table["doc_id"].to_numpy().reshape(sample, NEGATIVES)
    positive = scores[np.arange(sample), np.arange(sample)].copy()  # query i was made from document i
    floor = positive - abs(positive) * np.float32(MARGIN)
    scores[(scores > floor[:, None])] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :NEGATIVES]
    return float((best == found).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=int, default=2_000_000, help="number of documents")
    parser.add_argument("--dim", type=int, default=384, help="length of a vector")
    parser.add_argument("--queries", type=int, default=5_000, help="number of queries")
    parser.add_argument("--sample", type=int, default=20, help="queries that are searched again in float64")
    parser.add_argument("--folder", help="where the file of vectors is made; the system's own place if left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("large.md"), help="table to write")
    given = parser.parse_args()
    import torch

    from benchmarks.mining.run import setup
    from miners.offline import RelativeMargin, mine

    if given.folder:
        Path(given.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "corpus.npy"
        write(path, given.corpus, given.dim)
        noise = np.random.default_rng(1).standard_normal((given.queries, given.dim), dtype=np.float32)
        queries = np.array(np.load(path, mmap_mode="r")[: given.queries]) + noise * (0.8 / given.dim**0.5)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        known = (np.arange(given.queries + 1), np.arange(given.queries))
        before = peak = anonymous()
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.02):
                peak = max(peak, anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        rules = [RelativeMargin(MARGIN)]
        mined = mine(queries, path, known, num_negatives=NEGATIVES, search_depth=50, filters=rules)
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        share = right(mined, queries, path, given.sample)
    row = (
        f"| {given.queries:,} | {given.corpus:,} | {given.dim} | {len(mined):,} | {seconds:.0f} | {peak:,} | "
        f"{peak - before:,} | {share:.4f} |"
    )
    lines = [
        "# Mining a file that is larger than its share of memory",
        "",
        f"{setup(torch.get_num_threads())}. Load when it ended: {os.getloadavg()[0]:.1f}.",
        f"k = 50, {NEGATIVES} negatives, relative margin {MARGIN}. Made by `python benchmarks/mining/large.py`.",
        "",
        f"agreement = share of the negatives of {given.sample} queries that a float64 search of the whole file puts in",
        "the same place.",
        "",
        "| queries | documents | dims | negatives | s | largest RssAnon, MB | rise while mining, MB | agreement |",
        "|---|---|---|---|---|---|---|---|",
        row,
    ]
    given.out.write_text("\n".join(lines) + "\n")
    print(row)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
