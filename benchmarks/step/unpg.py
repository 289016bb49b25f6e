"""What does UNPG cost a step? One column that all faces share against a column for each pair, as published.

    python -m benchmarks.step.unpg --threads 1

512 faces, 10,000 identities, 512 dimensions; forward and backward through CosFace, the classes and the pairs. The
encoder is left out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.step.measure import arguments, peak_megabytes, seconds_together, write_table
from hardneg.losses import InfoNCE
from miners import UNPG, Block, CosFace, InBatch, Items, NegativePool, PoolMiner

FACES, CLASSES, DIMS = 512, 10_000, 512
MARGIN, WHISKER, TEMPERATURE = 0.35, 1.5, 1 / 64


def batch(faces: int, classes: int, dims: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Faces (B, d) near the centres (C, d) of their identities, both of which want a gradient, and labels (B,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dims, generator=generator)
    labels = torch.randint(classes, (faces,), generator=generator)
    vectors = centres[labels] + torch.randn(faces, dims, generator=generator)
    return vectors.requires_grad_(), centres.requires_grad_(), labels


def pooled(faces: Tensor, centres: Tensor, labels: Tensor, pairs: bool) -> Tensor:
    """Forward and backward through the pool; with ``pairs``, UNPG's one column."""
    everybody = torch.arange(len(centres))
    items = Items(faces, torch.arange(len(faces)), labels=labels, space="image")
    classes = Items(centres, everybody, labels=everybody, space="class")
    own = Block(Items(centres[labels][:, None], labels[:, None], space="class"), "positive")
    pool = NegativePool(items, own, TEMPERATURE, sides={"anchors": items, "classes": classes})
    chain: list[PoolMiner] = [CosFace(MARGIN), InBatch(), *([UNPG(WHISKER)] if pairs else [])]
    for miner in chain:
        pool = miner(pool)
    total, count = InfoNCE(TEMPERATURE)(pool)
    return _backward(total / count)


def published(faces: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """A column for each pair behind the classes' columns, the same in every row; quartiles by sorting."""
    unit = F.normalize(faces, dim=1)
    cosine = unit @ F.normalize(centres, dim=1).T
    logits = cosine - MARGIN * F.one_hot(labels, len(centres))
    one, two = torch.triu_indices(len(faces), len(faces), 1)
    pairs = (unit @ unit.T)[one, two][labels[one] != labels[two]]
    ranked = pairs.detach().sort().values
    low, high = ranked[int(0.25 * len(ranked))], ranked[int(0.75 * len(ranked))]
    reach = WHISKER * (high - low)
    kept = pairs[(pairs >= low - reach) & (pairs <= high + reach)]
    wide = torch.cat([logits, kept.expand(len(faces), -1)], dim=1)
    return _backward(F.cross_entropy(wide / TEMPERATURE, labels))


def _backward(loss: Tensor) -> Tensor:
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def main() -> None:
    options = arguments(__doc__, repeats=5)
    made = batch(FACES, CLASSES, DIMS, options.seed)
    steps = {
        "without UNPG": partial(pooled, *made, pairs=False),
        "UNPG, one column": partial(pooled, *made, pairs=True),
        "UNPG, a column for each pair": partial(published, *made),
    }
    values = {name: float(step()) for name, step in steps.items()}
    taken = seconds_together(steps, options.repeats)
    least = taken["without UNPG"]
    table = [
        (
            name,
            f"{1000 * taken[name]:.0f}",
            f"{taken[name] / least:.2f}",
            f"{peak_megabytes(step):.0f}",
            f"{values[name]:.6f}",
        )
        for name, step in steps.items()
    ]
    write_table(
        options.out or Path(__file__).with_suffix(".md"),
        f"UNPG: one step with {FACES} faces and {CLASSES:,} identities",
        f"python -m benchmarks.step.unpg --threads {options.threads} --seed {options.seed}",
        ("form", "ms per step", "ratio", "extra MB", "loss"),
        table,
        [
            f"d = {DIMS}, CosFace {MARGIN}, whisker {WHISKER}, temperature {TEMPERATURE}, float32, forward and "
            f"backward, {options.threads} thread(s), seed {options.seed}; ready embeddings, no encoder.",
            f"{FACES * (FACES - 1) // 2:,} pairs at most, less those of one identity. Milliseconds: median of "
            f"{options.repeats} steps, taken in turns. Extra MB: the most that tensors made by the step hold at once, "
            "from the profiler's record of every allocation.",
        ],
    )


if __name__ == "__main__":
    main()
