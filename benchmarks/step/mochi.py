"""What do MoCHi's mixes cost? The lean form against mixes that are made, and both against the queue's own product.

Ready unit embeddings of 256 queries, their keys and a queue, d = 128; MoCHi (1024, 256, 128). The naive form makes the
mixes, (B, s + s', d), and compares them; both forms mix the same negatives with the same shares.

    python -m benchmarks.step.mochi --threads 1
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.step.guided import with_gradients
from benchmarks.step.measure import Step, arguments, peak_megabytes, seconds_together, write_table
from hardneg.losses import InfoNCE
from miners import Block, Items, MoCHi, NegativePool

TEMPERATURE = 0.2
QUEUES, ROWS, DIMS = (16_384, 65_536), 256, 128
SETTING = {"num_hard": 1024, "num_pairs": 256, "num_with_anchor": 128}
PRODUCT, ALONE, LEAN, NAIVE = "queries x queue", "queue", "queue, MoCHi", "queue, naive mixes"


@dataclass(frozen=True)
class Problem:
    """Queries (B, d) that want a gradient, their keys, a queue (K, d), and a miner past its warm-up."""

    queries: Tensor
    keys: Tensor
    queue: Tensor
    miner: MoCHi

    @classmethod
    def random(cls, rows: int, dims: int, queue: int, seed: int, **setting: int) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        parts = [F.normalize(torch.randn(n, dims, generator=generator), dim=1) for n in (rows, rows, queue)]
        return cls(parts[0].requires_grad_(), parts[1], parts[2], MoCHi(**setting, warmup_epochs=0))

    def pool(self) -> NegativePool:
        rows, there = torch.arange(len(self.queries)), torch.arange(len(self.queue)) + len(self.queries)
        own = Items(self.keys[:, None], rows[:, None], space="image")
        pool = NegativePool(Items(self.queries, rows, space="image"), Block(own, "positive"), TEMPERATURE)
        return pool.add(Block(Items(self.queue, there, space="image"), "queue"))

    def product(self) -> Tensor:
        """The similarities of queries and queue, without gradient."""
        return self.queries.detach() @ self.queue.T

    def alone(self) -> Tensor:
        return _trained(self.pool())

    def lean(self) -> Tensor:
        return _trained(self.miner(self.pool()))

    def naive(self) -> Tensor:
        """The same mixes, made: constants (B, s + s', d), with the queries multiplied."""
        pool = self.pool()
        with torch.no_grad():
            _, valid, where = pool.hardest(self.miner.num_hard)
            draws = self.miner.draw(pool, valid.sum(1, keepdim=True))
            hard = where[:, :, 1]
            first, second, single = (
                self.queue[hard.gather(1, place)] for place in (draws.first, draws.second, draws.single)
            )
            share, anchor_share = draws.share[:, :, None], draws.anchor_share[:, :, None]
            pairs = F.normalize(share * first + (1 - share) * second, dim=2)
            singles = F.normalize(anchor_share * self.queries[:, None] + (1 - anchor_share) * single, dim=2)
        mixes = Items(torch.cat([pairs, singles], 1), space="image")
        return _trained(pool.add(Block(mixes, "mixed", real=False)))

    def steps(self) -> dict[str, Step]:
        return {PRODUCT: self.product, ALONE: self.alone, LEAN: self.lean, NAIVE: self.naive}


def _trained(pool: NegativePool) -> Tensor:
    """Forward and backward; the gradient lies in the queries."""
    total, count = InfoNCE(TEMPERATURE)(pool)
    loss = total / count
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def main() -> None:
    options = arguments(__doc__)
    table, notes = [], []
    for queue in QUEUES:
        problem = Problem.random(ROWS, DIMS, queue, options.seed, **SETTING)
        steps = problem.steps()
        taken = seconds_together(steps, options.repeats)
        for name, step in steps.items():
            added = (taken[name] - taken[ALONE]) / taken[PRODUCT]
            more = f"{added:.1f}" if name in (LEAN, NAIVE) else "-"
            table.append((f"{queue:,}", name, f"{1000 * taken[name]:.1f}", more, f"{peak_megabytes(step):.0f}"))
        values, gradients = zip(*(with_gradients(partial(s), [problem.queries]) for s in (steps[LEAN], steps[NAIVE])))
        apart = float((gradients[0][0] - gradients[1][0]).abs().max() / gradients[1][0].abs().max())
        notes.append(
            f"Queue of {queue:,}: values of the two forms differ by {abs(float(values[0] - values[1])):.1e}, gradients "
            f"by {apart:.1e} of the largest."
        )
    write_table(
        options.out or Path(__file__).with_suffix(".md"),
        "MoCHi: mixes that are made, and mixes that are not",
        f"python -m benchmarks.step.mochi --threads {options.threads} --repeats {options.repeats} "
        f"--seed {options.seed}",
        ("queue", "step", "ms", "added, x the product", "extra MB"),
        table,
        [
            f"B = {ROWS}, d = {DIMS}, {SETTING}, float32, {options.threads} thread(s), seed {options.seed}; ready unit "
            "embeddings, no encoder. The product is one matrix product without gradient; all other steps are forward "
            "and backward of InfoNCE, identity masks included.",
            *notes,
            "ms: median of the timed steps, which were taken in turns. Added: what mixing adds to the step with the "
            "queue alone, in multiples of the product. Extra MB: the most that tensors made by the step hold at once.",
        ],
    )


if __name__ == "__main__":
    main()
