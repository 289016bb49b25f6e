"""What does a guided step cost? InfoNCE with all four blocks of GIST, against sentence-transformers' GISTEmbedLoss.

Both get the same ready embeddings of queries, positives and negatives, from student and guide, and do forward and
backward; encoders are left out on both sides.

    python -m benchmarks.step.guided --threads 1
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from benchmarks.step.measure import Step, arguments, peak_megabytes, seconds, write_table
from hardneg.losses import InfoNCE
from miners import GIST, Block, InBatch, Items, NegativePool, PoolMiner, SelfBlocks

TEMPERATURE = 0.05


def batch(rows: int, dims: int, seed: int, guide_dims: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Student leaves and guide vectors of (query, positive, negative), (rows, dims) each.

    The student is half trained, and the guide unsure enough to drop some 5 % of the candidates.
    """
    generator = torch.Generator().manual_seed(seed)

    def three(width: int, noise: float) -> list[Tensor]:
        topic = torch.randn(rows, width, generator=generator)
        return [topic + noise * torch.randn(rows, width, generator=generator) for _ in range(3)]

    return [side.requires_grad_() for side in three(dims, 1.5)], three(guide_dims or dims, 3.0)


def pool_of(student: list[Tensor], guide: list[Tensor]) -> NegativePool:
    """The pool of (query, positive) or (query, positive, negative), with no negatives yet."""
    rows = torch.arange(len(student[0]))
    sides = {
        name: Items(vectors, rows + offset, guide=seen, space=space, rows=rows)
        for name, vectors, seen, offset, space in zip(
            ("anchors", "positives", "drawn"),
            student,
            guide,
            (0, 0, len(rows)),
            ("query", "document", "document"),
            strict=False,  # without negatives, two sides
        )
    }
    own = Block(sides["positives"].map(lambda part: part[:, None]), "positive")
    return NegativePool(sides["anchors"], own, TEMPERATURE, sides=sides)


def trained(chain: Sequence[PoolMiner], student: list[Tensor], guide: list[Tensor]) -> Tensor:
    """Forward and backward through a chain of miners; the gradient lies in the student's leaves."""
    pool = pool_of(student, guide)
    for miner in chain:
        pool = miner(pool)
    total, count = InfoNCE(TEMPERATURE)(pool)
    loss = total / count
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def ours(student: list[Tensor], guide: list[Tensor], self_blocks: bool = True) -> Tensor:
    """Forward and backward through the pool, with GIST."""
    return trained((InBatch(), *((SelfBlocks(),) if self_blocks else ()), GIST()), student, guide)


class Ready(nn.Module):
    """Stands for an encoder: hands out the embeddings that the features already hold."""

    def __init__(self, column: str) -> None:
        super().__init__()
        self.column = column
        self.max_seq_length = 1
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.column]}


def theirs(student: list[Tensor], guide: list[Tensor], self_blocks: bool = True) -> Tensor:
    """Forward and backward through sentence-transformers' loss."""
    loss_function = GISTEmbedLoss(
        Ready("student"),  # type: ignore[arg-type]
        Ready("guide"),  # type: ignore[arg-type]
        temperature=TEMPERATURE,
        contrast_anchors=self_blocks,
        contrast_positives=self_blocks,
    )
    features = [{"student": one, "guide": two} for one, two in zip(student, guide, strict=True)]
    loss: Tensor = loss_function(features, torch.empty(0))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def with_gradients(step: Step, student: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The value of a step, and the gradients that it leaves in the student's leaves."""
    for leaf in student:
        leaf.grad = None
    value = step()
    return value, [leaf.grad.clone() for leaf in student if leaf.grad is not None]


def main() -> None:
    options = arguments(__doc__)
    rows, dims = 512, 256
    student, guide = batch(rows, dims, options.seed)
    table = []
    values, gradients, taken = {}, {}, {}
    slowly = max(2, options.repeats // 5)
    for name, step, repeats in (("hardneg", ours, options.repeats), ("GISTEmbedLoss", theirs, slowly)):
        run = partial(step, student, guide)
        values[name], gradients[name] = with_gradients(run, student)
        taken[name] = seconds(run, repeats)
        peak = peak_megabytes(run)
        table.append((name, f"{1000 * taken[name]:.1f}", f"{peak:.1f}", f"{float(values[name]):.7f}"))
    ratio = taken["GISTEmbedLoss"] / taken["hardneg"]
    apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients.values(), strict=True))
    differ = abs(float(values["hardneg"] - values["GISTEmbedLoss"]))
    write_table(
        options.out or Path(__file__).with_suffix(".md"),
        "Guided InfoNCE: one step with all four GIST blocks",
        f"python -m benchmarks.step.guided --threads {options.threads} --seed {options.seed}",
        ("loss", "ms per step", "extra MB", "value"),
        table,
        [
            f"B = {rows}, d = {dims} for student and guide, one negative per row, float32, temperature {TEMPERATURE}, "
            f"forward and backward, {options.threads} thread(s), seed {options.seed}; ready embeddings, no encoder.",
            f"{ratio:.0f} times as fast; values differ by {differ:.1e}, gradients by {apart:.1e} of the largest.",
            "Milliseconds: median of the timed steps. Extra MB: the most that tensors made by the step hold at once, "
            "from the profiler's record of every allocation.",
        ],
        packages=["sentence-transformers"],
    )


if __name__ == "__main__":
    main()
