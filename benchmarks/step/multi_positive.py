"""What does a step with hundreds of positives per anchor hold in memory? InfoNCE, every classmate a positive.

Compared at a small batch with pytorch-metric-learning's NTXentLoss, which is the same loss (each positive against all
other classes) and needs (pairs of positives) x (negatives) numbers: 8 TB at the size of the large batch.

    python -m benchmarks.step.multi_positive --threads 1
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor

from benchmarks.step.measure import arguments, peak_megabytes, seconds, write_table
from hardneg.losses import InfoNCE
from miners import Block, InBatch, Items, NegativePool

TEMPERATURE = 0.1
CLASSES = 8


def batch(rows: int, dims: int, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings (rows, dims) that want a gradient, and balanced classes (rows,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    centres = torch.randn(CLASSES, dims, generator=generator)
    return (centres[labels] + 3 * torch.randn(rows, dims, generator=generator)).requires_grad_(), labels


def ours(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Forward and backward through the pool: positives are shared, (B, d) with a mask."""
    rows = torch.arange(len(labels))
    items = Items(embeddings, rows, labels=labels, space="signal")
    classmates = (labels[:, None] == labels[None]).fill_diagonal_(False)
    positives = Block(items, "positive", usable=classmates)
    pool = NegativePool(items, positives, TEMPERATURE, sides={"positives": items})
    total, count = InfoNCE(TEMPERATURE)(InBatch()(pool))
    loss = total / count
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def theirs(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Forward and backward through pytorch-metric-learning's loss."""
    loss: Tensor = NTXentLoss(TEMPERATURE)(embeddings, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def main() -> None:
    options = arguments(__doc__, repeats=5)
    dims, table = 256, []
    for name, step, rows in (("hardneg", ours, 128), ("NTXentLoss", theirs, 128), ("hardneg", ours, 2048)):
        embeddings, labels = batch(rows, dims, options.seed)
        run = partial(step, embeddings, labels)
        value, taken, peak = run(), seconds(run, options.repeats), peak_megabytes(run)
        pairs = rows * (rows // CLASSES - 1)
        table.append((name, f"{rows}", f"{pairs:,}", f"{1000 * taken:.1f}", f"{peak:.1f}", f"{float(value):.7f}"))
    write_table(
        options.out or Path(__file__).with_suffix(".md"),
        "Multi-positive InfoNCE: one step with 8 classes",
        f"python -m benchmarks.step.multi_positive --threads {options.threads} --seed {options.seed}",
        ("loss", "B", "positive pairs", "ms per step", "extra MB", "value"),
        table,
        [
            f"d = {dims}, {CLASSES} balanced classes, float32, temperature {TEMPERATURE}, forward and backward, "
            f"{options.threads} thread(s), seed {options.seed}; ready embeddings, no encoder.",
            "Milliseconds: median of the timed steps. Extra MB: the most that tensors made by the step hold at once, "
            "from the profiler's record of every allocation; a (B, B) mask takes 4 and a (B, B) product 17 of them.",
        ],
        packages=["pytorch-metric-learning"],
    )


if __name__ == "__main__":
    main()
