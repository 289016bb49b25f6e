"""Question: does refreshing when embeddings are measured to be stale beat refreshing every n steps?

The quickstart's data and recipe with NGAME's clusters (arXiv 2207.04452), three seeds. The fixed clock refreshes every
42 of 170 steps; the measured one when fewer than ``--overlap`` of a probe's ten nearest neighbours are still right,
looked at every five steps. Both take the first embeddings before step 0. Same steps, same data, same seeds.

    python -m benchmarks.refresh.staleness
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from datamodules import RetrievalData
from hardneg.benchmark.statistics import estimate, judge
from hardneg.callbacks import RefreshNegatives
from hardneg.encoders import TextEncoder
from hardneg.losses import InfoNCE
from hardneg.modules import RetrievalModule
from miners import NGAME

MEASURES = ("nDCG@10", "MRR@10", "Recall@100")


class When(pl.Callback):
    """Remembers at which steps somebody refreshed, and what overlap was measured."""

    def __init__(self, refresh: RefreshNegatives) -> None:
        self.refresh = refresh
        self.made: list[int] = []
        self.overlaps: list[str] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if len(self.made) < self.refresh.refreshes:
            self.made += [trainer.global_step] * (self.refresh.refreshes - len(self.made))
        if self.refresh.overlap is not None and trainer.global_step % self.refresh.check_every_n_steps == 0:
            self.overlaps.append(f"{self.refresh.overlap:.2f}")


def run(clock: dict[str, Any], seed: int, steps: int, layers: int | None) -> dict[str, Any]:
    """One fit and one test."""
    refresh = RefreshNegatives(every_n_epochs=None, **clock)
    when = When(refresh)
    module = RetrievalModule(
        TextEncoder("packaged:all-MiniLM-L6-v2", num_layers=layers), InfoNCE(0.05), learning_rate=1e-4, seed=seed
    )
    data = RetrievalData("sample:wordnet_senses", batch_size=32, batch_miner=NGAME(cluster_size=32), seed=seed)
    trainer = pl.Trainer(
        max_epochs=-1,
        max_steps=steps,
        callbacks=[refresh, when],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tempfile.gettempdir(),
    )
    started = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - started
    trainer.test(module, data, verbose=False)
    return {"seconds": seconds, "refreshes": when.made[1:], "overlaps": when.overlaps, **module.measures.means}


def verdict(means: dict[str, list[float]]) -> str:
    """The measured clock, the last, against each other one: nDCG@10 by seed, judged as `hardneg benchmark` does."""
    *others, (last, measured) = means.items()
    found = judge([estimate(np.array(measured)[:, None] - np.array(rows)[:, None]) for _, rows in others])
    lines = [
        "Mean nDCG@10: " + "; ".join(f"{name} {statistics.mean(rows):.4f}" for name, rows in means.items()) + ".\n"
    ]
    for (name, rows), one in zip(others, found, strict=True):
        by_seed = ", ".join(f"{a - b:+.4f}" for a, b in zip(measured, rows, strict=True))
        lines.append(
            f"- {last}, against {name}: {one.estimate.mean:+.4f} (by seed {by_seed}; 95 % over seeds {one.low:+.4f} to "
            f"{one.high:+.4f}): {one.verdict}."
        )
    return "\n".join(lines)


def main() -> int:
    """Run both clocks with each seed, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=170)
    parser.add_argument("--layers", type=int, default=None, help="keep so many layers of the encoder; all if left out")
    parser.add_argument("--every", type=int, default=42, help="steps of the fixed clock")
    parser.add_argument("--overlap", type=float, default=0.8, help="threshold of the measured clock")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    clocks: dict[str, dict[str, Any]] = {
        "never again": {"every_n_steps": 10**9},
        f"every {options.every} steps": {"every_n_steps": options.every},
        f"overlap@10 < {options.overlap}": {"min_overlap": options.overlap, "check_every_n_steps": 5},
    }
    lines = [
        "# Refreshing when stale, against every n steps",
        "",
        f"Sample of WordNet senses, MiniLM-L6{f' cut to {options.layers} layers' if options.layers else ''}, NGAME "
        f"clusters of 32, {options.steps} steps of 32 rows, torch {torch.__version__}, {options.threads} threads, "
        f"{platform.processor() or platform.machine()}. Made by",
        f"`python -m benchmarks.refresh.staleness {' '.join(sys.argv[1:])}`.",
        "",
        "| clock | seed | " + " | ".join(MEASURES) + " | refreshes after the first, at steps | overlap measured | s |",
        "|---|---|" + "---|" * len(MEASURES) + "---|---|---|",
    ]
    means: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for name, clock in clocks.items():
            found = run(clock, seed, options.steps, options.layers)
            means.setdefault(name, []).append(found["nDCG@10"])
            cells = [name, str(seed), *(f"{found[measure]:.4f}" for measure in MEASURES)]
            cells += [", ".join(map(str, found["refreshes"])) or "-", " ".join(found["overlaps"]) or "-"]
            lines.append("| " + " | ".join([*cells, f"{found['seconds']:.0f}"]) + " |")
            print(lines[-1], flush=True)
    lines += ["", verdict(means)]
    options.out.write_text("\n".join(lines) + "\n")
    print(lines[-1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
