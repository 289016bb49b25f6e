"""Does memory stay bounded when the corpus does not fit? One command, one line.

    python benchmarks/mining/large.py    # 2,000,000 x 384 float32 from a file (3 GB on disk), 5,000 queries, k = 50

Prints the largest RssAnon (memory that is the process's own; pages of the mapped file do not count) seen while `mine`
ran, its rise over the start, and the time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
BLOCK = 50_000


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=5_000)
    given = parser.parse_args()
    from miners.offline import RelativeMargin, mine

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.npy"
        write(path, given.corpus, given.dim)
        queries = np.array(np.load(path, mmap_mode="r")[: given.queries]) + 0.01
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
        mined = mine(queries, path, known, num_negatives=10, search_depth=50, filters=[RelativeMargin(0.05)])
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        print(
            f"{given.queries:,} queries x {given.corpus:,} x {given.dim}, k = 50: {len(mined):,} negatives, largest "
            f"RssAnon {peak:,} MB (+{peak - before:,} MB while mining), {seconds:.0f} s"
        )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
