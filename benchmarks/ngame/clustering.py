"""How long does NGAME's balanced clustering take, and how does it grow? Against NumPy forms and FAISS k-means.

    python -m benchmarks.ngame.clustering --threads 2               # all sizes of clustering.md
    python -m benchmarks.ngame.clustering --compared 2000 --rows 2000 --repeats 1     # whether it runs

The NumPy forms split a cluster at a time, as the published code does, with products by BLAS and one argsort per pass;
the second sums halves by BLAS too, where the first gathers their rows. All three draw the same starting rows. Before
anything is timed, all must have found the same clusters in float64; the share of rows that float32 leaves in the same
cluster is a column. FAISS' k-means is another algorithm, whose clusters differ in size; it is there to compare times.
Growth: clusters of about 98 rows each, so that N log2 K is the whole work; the last column should stay as it is.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.mining.run import embeddings
from benchmarks.step.measure import Step, seconds_together, write_table
from miners.ngame import _halves, _starts, balanced_clusters

OURS, SPLITS, BLAS, KMEANS = "balanced_clusters", "NumPy", "NumPy, halves summed by BLAS", "FAISS k-means"
ROWS_PER_CLUSTER, ITERATIONS = 97.65625, 20  # 100,000 in 1,024; k-means has no tolerance, its passes are fixed


def ours(vectors: np.ndarray, clusters: int, seed: int) -> torch.Tensor:
    """(n,) rows, cluster after cluster."""
    return balanced_clusters(torch.from_numpy(vectors), clusters, torch.Generator().manual_seed(seed))[0]


def numpy_form(vectors: np.ndarray, clusters: int, seed: int, blas_sums: bool = False) -> torch.Tensor:
    """(n,) the same, a cluster at a time."""
    generator = torch.Generator().manual_seed(seed)
    x = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    parts, sizes = [np.arange(len(x))], torch.tensor([len(x)])
    while len(parts) < clusters:
        starts = _starts(sizes, generator).numpy()
        parts = [half for rows, pair in zip(parts, starts, strict=True) for half in split(x, rows, pair, blas_sums)]
        sizes = _halves(sizes)
    return torch.from_numpy(np.concatenate(parts))


def split(x: np.ndarray, rows: np.ndarray, starts: np.ndarray, blas_sums: bool) -> tuple[np.ndarray, np.ndarray]:
    """Balanced 2-means of one cluster: its two halves, rising."""
    points = x[rows]
    first, best = (len(rows) + 1) // 2, -2.0
    one, other = points[starts]
    while True:
        order = np.argsort(points @ (other - one), kind="stable")
        if blas_sums:
            chosen = np.zeros(len(rows), x.dtype)
            chosen[order[:first]] = 1
            sums = chosen @ points, (1 - chosen) @ points
        else:
            sums = points[order[:first]].sum(0), points[order[first:]].sum(0)
        lengths = [np.linalg.norm(part) for part in sums]
        objective = sum(lengths) / len(rows)
        if objective - best < 1e-4:
            return rows[np.sort(order[:first])], rows[np.sort(order[first:])]
        best, (one, other) = objective, (part / max(length, 1e-12) for part, length in zip(sums, lengths, strict=True))


def k_means(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """(n,) the cluster of each row: spherical k-means with as many passes as FAISS' users give it."""
    import faiss

    training = faiss.Kmeans(
        vectors.shape[1], clusters, niter=ITERATIONS, seed=seed, spherical=True, max_points_per_centroid=len(vectors)
    )
    training.train(vectors)
    return training.index.search(vectors, 1)[1][:, 0]


def same(one: torch.Tensor, other: torch.Tensor, clusters: int) -> float:
    """Share of rows that two orders put into the same cluster."""
    sizes = torch.tensor([len(one)])
    while len(sizes) < clusters:
        sizes = _halves(sizes)
    labels = torch.arange(clusters).repeat_interleave(sizes)
    placed = [torch.empty_like(labels).scatter_(0, order, labels) for order in (one, other)]
    return float((placed[0] == placed[1]).float().mean())


def methods(vectors: np.ndarray, clusters: int, seed: int) -> dict[str, Step]:
    """What is timed, by name."""
    return {
        OURS: partial(ours, vectors, clusters, seed),
        SPLITS: partial(numpy_form, vectors, clusters, seed),
        BLAS: partial(numpy_form, vectors, clusters, seed, blas_sums=True),
        KMEANS: partial(k_means, vectors, clusters, seed),
    }


def check(vectors: np.ndarray, clusters: int, seed: int) -> None:
    """Compare the clusters of all forms in float64, where no rounding comes between them.

    Raises:
        SystemExit: they differ; nothing may be timed then.
    """
    exact = vectors.astype(np.float64)
    expected = numpy_form(exact, clusters, seed)
    others = {OURS: ours(exact, clusters, seed), BLAS: numpy_form(exact, clusters, seed, blas_sums=True)}
    for name, order in others.items():
        if not torch.equal(order, expected):
            share = same(order, expected, clusters)
            raise SystemExit(
                f"{name}: {100 * share:.3f} % of {len(exact)} rows are in the clusters that {SPLITS} finds."
            )


def against_others(rows: int, options: argparse.Namespace) -> list[Sequence[str]]:
    """One size, all methods."""
    clusters = 2 ** math.ceil(math.log2(rows / ROWS_PER_CLUSTER))
    vectors = embeddings(1, rows, options.dim)[1]
    check(vectors, clusters, options.seed)
    steps = methods(vectors, clusters, options.seed)
    taken = seconds_together(steps, options.repeats)
    expected, label = steps[SPLITS](), f"{rows:,} x {options.dim}, K = {clusters:,}"
    table = []
    for name, step in steps.items():
        factor = f"{taken[name] / taken[OURS]:.1f}"
        if name == KMEANS:
            sizes = np.bincount(step(), minlength=clusters)  # type: ignore[arg-type]
            found = f"other clusters: {sizes.min()} to {sizes.max()} rows"
        else:
            found = f"{100 * same(step(), expected, clusters):.3f} %"
        table.append((label, name, f"{taken[name]:.2f}", factor, found))
    return table


def growth(options: argparse.Namespace) -> list[Sequence[str]]:
    """Our clustering alone, at every size."""
    table = []
    for rows in options.rows:
        clusters = 2 ** math.ceil(math.log2(rows / ROWS_PER_CLUSTER))
        vectors = embeddings(1, rows, options.dim)[1]
        taken = seconds_together({OURS: partial(ours, vectors, clusters, options.seed)}, options.repeats)[OURS]
        label = f"{rows:,} x {options.dim}, K = {clusters:,}"
        per_work = f"{1e9 * taken / (rows * math.log2(clusters)):.0f} ns per row and level"
        table.append((label, OURS, f"{taken:.2f}", "", per_work))
    return table


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 100_000, 300_000], help="of growth")
    parser.add_argument("--compared", type=int, default=100_000, help="rows at which all methods are timed")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    import faiss

    options = parse(arguments)
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        table = against_others(options.compared, options) + growth(options)
    write_table(
        options.out,
        "NGAME's balanced clusters",
        f"python -m benchmarks.ngame.clustering --compared {options.compared} --rows "
        f"{' '.join(map(str, options.rows))} --dim {options.dim} --threads {options.threads} --repeats "
        f"{options.repeats} --seed {options.seed}",
        ("size", "method", "seconds", "x", "same cluster as NumPy, float32"),
        table,
        [
            f"Seconds: median of {options.repeats}, taken in turns; {options.threads} thread(s). x: multiples of "
            f"{OURS}.",
            "In float64 all forms but k-means have found the same clusters, or nothing would have been timed.",
            f"FAISS k-means: spherical, {ITERATIONS} passes, all rows.",
        ],
        ["numpy", "faiss-cpu"],
    )


if __name__ == "__main__":
    main()
