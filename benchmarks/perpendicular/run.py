"""Question: what does `PerpendicularNegatives` win where near things share a class, and lose where one must be found?

BANKING77's questions without their intents: two random halves of a question's words are a pair, the other rows of a
batch are negatives, of which one in 77 has the same intent. A linear encoder of hashed words is trained for the same
steps, from the same weights, on the same batches. Judged on test questions: "classes" = macro-F1 of the intent of the
nearest training question; "instances" = share of questions that find their own other half among all 3,080.

    HARDNEG_DATA=... python -m benchmarks.perpendicular.run

Budget: 3 minutes on one core (30 runs). Every finished run is a line of runs.jsonl, with the options that it was made
with; the same command goes on where it stopped, and starts no run after ``--minutes``. table.md is made of the runs
with the options asked for; intervals are over seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.readers import expand, read_records
from hardneg.benchmark.statistics import estimate, judge
from hardneg.losses import InfoNCE
from miners import Block, InBatch, Items, NegativePool, PerpendicularNegatives, PoolMiner, Store, TorchIndex

CHAINS: dict[str, Sequence[PoolMiner]] = {
    "plain": (),
    "strength 0.25": (PerpendicularNegatives(0.25),),
    "strength 0.5": (PerpendicularNegatives(0.5),),
    "strength 1": (PerpendicularNegatives(1.0),),
    "strength 1 above 0.8": (PerpendicularNegatives(1.0, above=0.8),),
}
TEMPERATURES = (0.4, 0.1)
MEASURES = ("classes", "instances")
WORDS = 1 << 13
OPTIONS = ("folder", "steps", "batch_size", "dim", "learning_rate", "limit")  # that make another run of the same seed


def read(folder: str, split: str, limit: int | None) -> tuple[Tensor, np.ndarray]:
    """Counts of hashed words (N, WORDS) and intents (N,)."""
    rows = [row for _, row in read_records(expand(folder) / f"{split}.jsonl.gz")][:limit]
    counts = HashingVectorizer(n_features=WORDS, alternate_sign=False, norm=None).transform(row["text"] for row in rows)
    return torch.from_numpy(counts.toarray()).float(), np.array([row["target_ind"][0] for row in rows])


def halves(counts: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each word goes to one of two halves (N, WORDS); a question of one word goes to both."""
    first = torch.rand(counts.shape, generator=draw) < 0.5
    parts = counts * first, counts * ~first
    return tuple(torch.where(part.sum(1, keepdim=True) > 0, part, counts) for part in parts)  # type: ignore[return-value]


def train(
    chain: Sequence[PoolMiner], temperature: float, seed: int, counts: Tensor, options: argparse.Namespace
) -> nn.Module:
    """A linear encoder after so many steps."""
    torch.manual_seed(seed)
    encoder = nn.Linear(WORDS, options.dim, bias=False)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=options.learning_rate, fused=True)
    draw = torch.Generator().manual_seed(seed)
    loss = InfoNCE(temperature)
    for _ in range(options.steps):
        rows = torch.randint(len(counts), (options.batch_size,), generator=draw).unique()
        queries, documents = (encoder(part) for part in halves(counts[rows], draw))
        anchors, others = Items(queries, rows, space="query"), Items(documents, rows)
        own = Block(others.map(lambda part: part[:, None]), "positive")
        pool = NegativePool(anchors, own, temperature, sides={"anchors": anchors, "positives": others})
        for miner in (InBatch(), *chain):
            pool = miner(pool)
        total, count = loss(pool)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    return encoder


@torch.no_grad()
def measure(
    encoder: nn.Module, train_set: tuple[Tensor, np.ndarray], test_set: tuple[Tensor, np.ndarray]
) -> dict[str, float]:
    """Both measures of `MEASURES`."""
    known, asked = (F.normalize(encoder(counts), dim=1) for counts, _ in (train_set, test_set))
    nearest = TorchIndex(Store(known), device="cpu").search(asked, 1)[1][:, 0]
    classes = f1_score(test_set[1], train_set[1][nearest.numpy()], average="macro")
    first, second = (
        F.normalize(encoder(part), dim=1) for part in halves(test_set[0], torch.Generator().manual_seed(0))
    )
    found = TorchIndex(Store(second), device="cpu").search(first, 1)[1][:, 0]
    return {"classes": float(classes), "instances": float((found == torch.arange(len(found))).double().mean())}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Means over seeds; each chain against plain of the same temperature, judged over seeds, all together."""
    value = {(row["temperature"], row["chain"], row["seed"], name): row[name] for row in rows for name in MEASURES}
    seeds = sorted({row["seed"] for row in rows})
    cells = [
        (temperature, chain)
        for temperature in TEMPERATURES
        for chain in CHAINS
        if all((temperature, chain, seed, "classes") in value for seed in seeds)
        and all((temperature, "plain", seed, "classes") in value for seed in seeds)
    ]

    def by_seed(temperature: float, chain: str, name: str) -> np.ndarray:
        return np.array([value[temperature, chain, seed, name] for seed in seeds])

    compared = [(*cell, name) for cell in cells if cell[1] != "plain" for name in MEASURES]
    found = judge([estimate((by_seed(t, c, name) - by_seed(t, "plain", name))[:, None]) for t, c, name in compared])
    verdicts = dict(zip(compared, found, strict=True))
    lines = [
        "| temperature | chain | classes | against plain | instances | against plain |",
        "|---:|---|---:|---|---:|---|",
    ]
    for temperature, chain in cells:
        told = []
        for name in MEASURES:
            told.append(f"{by_seed(temperature, chain, name).mean():.3f}")
            one = verdicts.get((temperature, chain, name))
            told.append(
                "" if one is None else f"{one.estimate.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f}) {one.verdict}"
            )
        lines.append(f"| {temperature:g} | {chain} | " + " | ".join(told) + " |")
    return lines


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="$HARDNEG_DATA/intent_banking77")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--limit", type=int, help="so many questions of each split; all if left out")
    parser.add_argument("--minutes", type=float, default=10, help="start no run after so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, within the budget; print and write the table of what is there."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "runs.jsonl"
    made_with = {"words": WORDS} | {name: getattr(options, name) for name in OPTIONS}
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    rows = [row for row in rows if row.get("options") == made_with and row["seed"] < options.seeds]
    done = {(row["seed"], row["temperature"], row["chain"]) for row in rows}
    left = [
        (seed, temperature, chain)
        for seed in range(options.seeds)
        for temperature in TEMPERATURES
        for chain in CHAINS
        if (seed, temperature, chain) not in done
    ]
    began = time.perf_counter()
    if left:
        known, asked = (read(options.folder, split, options.limit) for split in ("train", "test"))
    for number, (seed, temperature, chain) in enumerate(left):
        if time.perf_counter() - began > 60 * options.minutes:
            print(
                f"{options.minutes:g} minutes are over; {len(left) - number} runs are left: the same command goes on."
            )
            break
        encoder = train(CHAINS[chain], temperature, seed, known[0], options)
        row = {"seed": seed, "temperature": temperature, "chain": chain} | measure(encoder, known, asked)
        row["options"] = made_with
        rows.append(row)
        with kept.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(row, flush=True)
    if not rows:
        return 0
    number = len({row["seed"] for row in rows})
    command = " ".join(["python -m benchmarks.perpendicular.run", *(sys.argv[1:] if arguments is None else arguments)])
    lines = [
        "# Perpendicular negatives: classes against instances",
        "",
        f"{options.folder}, {WORDS} hashed words, a linear encoder of {options.dim} dims, {options.steps} steps of "
        f"{options.batch_size} rows at {options.learning_rate:g}, {number} seed(s), torch {torch.__version__}, "
        f"{options.threads} thread(s), {platform.processor() or platform.machine()}. Made by `{command}`.",
        "",
        *table(rows),
        "",
        "Classes: macro-F1 of the intent of the nearest training question. Instances: share of test questions whose "
        "own other half is nearest. Intervals over seeds; verdicts corrected for all comparisons.",
    ]
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
