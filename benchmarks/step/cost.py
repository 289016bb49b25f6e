"""What does each pool miner add to a step? Multiples of InfoNCE over one block, and sentence-transformers' GIST loss.

Ready embeddings, no encoder, forward and backward. The steps are timed in turns, so that ratios hold on a machine that
is not quite alone.

    python -m benchmarks.step.cost --threads 1
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import miners
from benchmarks.step.guided import batch, ours, pool_of, theirs, trained, with_gradients
from benchmarks.step.measure import Step, arguments, seconds, seconds_together, write_table
from miners import InBatch, MoCHi, PoolMiner, Store

PROVIDED = {"embeddings", "sides", "own_positive", "guide", "one_space"}
ONE_BLOCK, FOUR_BLOCKS = "InBatch (one block)", "InBatch, SelfBlocks, GIST (four blocks)"
SIZES, DIMS = (256, 512), 384


def ready_miners() -> dict[str, PoolMiner]:
    """Every public pool miner that needs neither a corpus nor classes, with its own defaults.

    Without MoCHi, which mixes nothing of so few candidates: see ``mochi.py``.
    """
    found = {}
    for name in miners.__all__:
        kind = getattr(miners, name)
        if inspect.isclass(kind) and issubclass(kind, PoolMiner) and not inspect.isabstract(kind):
            found[name] = kind
    options: dict[str, dict[str, Any]] = {
        "CET": {"origins": None},  # by default it weighs what sources drew, which is not here
        "ClusterWeights": {"num_clusters": (2, 3)},
    }
    return {
        name: kind(**options.get(name, {}))
        for name, kind in found.items()
        if kind not in (InBatch, MoCHi) and kind.needs <= PROVIDED
    }


def steps_of(rows: int, seed: int) -> dict[str, Step]:
    """The steps that are compared, by name; the first is the yardstick."""
    student, guide = batch(rows, DIMS, seed)
    pairs = student[:2], guide[:2]
    steps: dict[str, Step] = {ONE_BLOCK: partial(trained, [InBatch()], *pairs)}
    for name, miner in ready_miners().items():
        pool = pool_of(*pairs)
        miner.refresh(
            {of.space: Store(student[side].detach(), space=of.space) for side, of in enumerate(pool.sides.values())}
        )
        miner.commit(pool)  # a queue is filled, so that its block is there
        steps[f"InBatch, {name}"] = partial(trained, [InBatch(), miner], *pairs)
    return steps | {FOUR_BLOCKS: partial(ours, student, guide)}


def main() -> None:
    options = arguments(__doc__, repeats=50)
    taken = {rows: seconds_together(steps_of(rows, options.seed), options.repeats) for rows in SIZES}
    table = []
    for name in taken[SIZES[0]]:
        cells = [(taken[rows][name], taken[rows][name] / taken[rows][ONE_BLOCK]) for rows in SIZES]
        table.append((name, *(text for time, x in cells for text in (f"{1000 * time:.2f}", f"{x:.2f}"))))
    rows = SIZES[-1]
    student, guide = batch(rows, DIMS, options.seed)
    value, gradients = with_gradients(partial(ours, student, guide), student)
    peer = partial(theirs, student, guide)
    expected, others = with_gradients(peer, student)  # counts as the warm-up
    slower = seconds(peer, max(1, options.repeats // 25)) / taken[rows][FOUR_BLOCKS]
    apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(gradients, others, strict=True))
    write_table(
        options.out or Path(__file__).with_suffix(".md"),
        "What a pool miner adds to a step",
        f"python -m benchmarks.step.cost --threads {options.threads} --repeats {options.repeats} --seed {options.seed}",
        ("chain", *(f"B = {rows}: {unit}" for rows in SIZES for unit in ("ms", "x"))),
        table,
        [
            f"d = {DIMS} for student and guide, float32, temperature 0.05, forward and backward, {options.threads} "
            f"thread(s), seed {options.seed}; ready embeddings, no encoder. Four blocks: q-p, q-q, p-p and one drawn "
            "negative per row; all others: B x B, and what the miner adds with its own defaults.",
            "ms: median of the timed steps, which were taken in turns; x: multiples of one block.",
            f"sentence-transformers' GISTEmbedLoss at B = {rows}, the same four blocks: {slower:.0f} times as slow; "
            f"values differ by {abs(float(value - expected)):.1e}, gradients by {apart:.1e} of the largest.",
        ],
        packages=["sentence-transformers"],
    )


if __name__ == "__main__":
    main()
