"""What do neighbour tables cost? Seconds and memory of GeoTable and SimilarityTable, and of an epoch's order.

    python -m benchmarks.geo.tables                       # all of tables.md
    python -m benchmarks.geo.tables --rows 2000           # whether it runs

Places: 300 cities spread over a country, 128 neighbours of each place. Embeddings: 384 dims, as many queries as
references. Each part runs in a process of its own; its memory is the most that the process holds beyond what it held
with data and packages loaded, so that embeddings do not count and the index's copy of them does. On a machine that
others use too, the processor's seconds say more than the clock's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.step.measure import write_table
from miners import GeoTable, NeighbourBatches, Places, Ragged, SimilarityTable, Store, TrainingTable

DEPTH = 128
PARTS = ("GeoTable", "SimilarityTable", "order of an epoch by place")


def training_table(rows: int, seed: int) -> TrainingTable:
    """A query and a reference for each of ``rows`` places in 300 cities."""
    draw = np.random.default_rng(seed)
    cities = draw.uniform([25, -120], [48, -70], (300, 2))
    places = Places(torch.from_numpy(cities[draw.integers(300, size=rows)] + draw.normal(0, 0.1, (rows, 2))))
    known = Ragged(torch.arange(rows + 1), torch.arange(rows))
    return TrainingTable(torch.arange(rows), known, document_places=places)


def unit_vectors(rows: int, dim: int, seed: int) -> torch.Tensor:
    """(rows, dim) float32; no second copy is left behind."""
    vectors = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return vectors.div_(vectors.norm(dim=1, keepdim=True))


def work(part: str, rows: int, dim: int, seed: int) -> Callable[[], object]:
    """What is measured; whatever it starts from is there when this returns."""
    table = training_table(rows, seed)
    if part == "GeoTable":
        import scipy.spatial  # noqa: F401

        places = GeoTable()
        places.attach(table, DEPTH)
        return places.prepare
    if part == "SimilarityTable":
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        similar = SimilarityTable(first_epoch=0)
        similar.attach(table, DEPTH)
        anchors = Store(unit_vectors(rows, dim, seed), space="query")
        similar.refresh({"query": anchors, "document": Store(unit_vectors(rows, dim, seed + 1))}, 0)
        return similar.prepare
    miner = NeighbourBatches([GeoTable()], DEPTH // 2, DEPTH, batch_size=DEPTH, drop_last=True)
    miner.attach(table)
    miner.tables[0].prepare()
    return lambda: miner.arrange(torch.arange(rows), 0)


def measure(part: str, rows: int, dim: int, seed: int) -> dict[str, float]:
    """Seconds by the clock and of the processor, and megabytes beyond what was held before."""
    step = work(part, rows, dim, seed)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, clock, processor = _kilobytes("VmRSS"), time.perf_counter(), time.process_time()
    step()
    taken = time.perf_counter() - clock, time.process_time() - processor
    return {"clock": taken[0], "processor": taken[1], "megabytes": (_kilobytes("VmHWM") - before) / 1e3}


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--similar-rows", type=int, help="of SimilarityTable; default: as many as the others")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--part", choices=PARTS, help="measure one here and print it as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.part is not None:
        print(json.dumps(measure(options.part, options.rows, options.dim, options.seed)))
        return
    similar = options.rows if options.similar_rows is None else options.similar_rows
    given = [f"--{name}={getattr(options, name)}" for name in ("dim", "threads", "seed")]
    table = []
    for part in PARTS:
        rows = similar if part == "SimilarityTable" else options.rows
        command = [sys.executable, "-m", "benchmarks.geo.tables", f"--rows={rows}", *given, f"--part={part}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        size = f"{rows:,} x {options.dim}" if part == "SimilarityTable" else f"{rows:,} places"
        table.append((part, size, f"{found['clock']:.1f}", f"{found['processor']:.1f}", f"{found['megabytes']:.0f}"))
    write_table(
        options.out,
        "Neighbour tables of Sample4Geo's batches",
        f"python -m benchmarks.geo.tables --rows={options.rows} --similar-rows={similar} {' '.join(given)}",
        ("part", "size", "seconds", "processor's seconds", "MB"),
        table,
        [
            f"{DEPTH} neighbours of each row; batches of {DEPTH} with {DEPTH // 2} neighbours of an anchor; "
            f"{options.threads} thread(s), on a machine that others used too.",
            "MB: the most held beyond data and packages; the index's copy of the references is in it. All distances of "
            "100,000 places are 80,000 MB, all their similarities 40,000 MB.",
        ],
        ["numpy", "scipy", "faiss-cpu"],
    )


if __name__ == "__main__":
    main()
