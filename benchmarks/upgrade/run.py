"""Question: does focal distillation break fewer answers when a model is replaced, at no loss of recall?

The first two layers of all-MiniLM-L6-v2 on the packaged sample of WordNet senses, one encoder with four sets of
weights for each seed: "old" has been trained on seed s. Those that may replace it start from the same layers and see
other batches (seed s + 100): "plain" by InfoNCE, "distilled" by `FocalDistillation` with old as its guide, "unfocused"
by the same with focus 0, which tells whether the focus on what old got right matters. All are trained on NGAME's
clusters of similar queries, so that a row's candidates, on which both models are compared, are near ones
(``--random``: random batches, whose candidates are rarely those that matter in a search). Ranks are those of the test
split in the whole corpus; intervals and verdicts are over seeds and queries, as in ``hardneg benchmark``.

    python -m benchmarks.upgrade.run

Budget: 15 minutes on 2 cores for 3 seeds (12 runs of 80 steps of 32 rows). Every finished run is a file in runs/, with
the options that it was made with; the same command goes on where it stopped, starts no run after ``--minutes``, and
refuses runs of other options. table.md, audit.txt (what ``hardneg audit --against`` says of seed 0) and flips.html, its
page, are made of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn.functional import normalize

from datamodules import RetrievalData
from hardneg.benchmark.statistics import Judgement, estimate, judge
from hardneg.callbacks import RefreshNegatives
from hardneg.cli import main as hardneg
from hardneg.encoders import Encoder, TextEncoder
from hardneg.losses import FocalDistillation, InfoNCE, PoolLoss
from hardneg.metrics import NegativeFlipRate, first_relevant
from hardneg.mining.inputs import read_beir
from hardneg.modules import RetrievalModule
from miners import NGAME, Store

NEW = ("plain", "distilled", "unfocused")
METHODS = ("old", *NEW)
MODEL = "packaged:all-MiniLM-L6-v2"
TEMPERATURE = 0.05
DEPTH = 100
OPTIONS = ("folder", "steps", "batch_size", "learning_rate", "layers", "random")  # that make another run of a seed
OF_DISTILLATION = ("weight", "focus", "softening")
MARGIN = 0.01  # differences in found@k within it count as equal

Ranks = Mapping[tuple[int, str], np.ndarray]  # (seed, method) -> (Q,)


def encoder(model: str, layers: int | None) -> Encoder:
    """The start of every run, or a checkpoint."""
    return TextEncoder(model, num_layers=layers, max_seq_length=64, dropout=0.0)


def loss_of(method: str, options: argparse.Namespace) -> PoolLoss:
    """What a method is trained by."""
    if method in ("old", "plain"):
        return InfoNCE(TEMPERATURE)
    focus = options.focus if method == "distilled" else 0.0
    return FocalDistillation(TEMPERATURE, weight=options.weight, focus=focus, softening=options.softening)


def train(method: str, seed: int, options: argparse.Namespace) -> Encoder:
    """One fit; the encoder is also written below ``work``."""
    torch.manual_seed(seed)
    loss, where = loss_of(method, options), options.work / str(seed)
    module = RetrievalModule(
        encoder(MODEL, options.layers),
        loss,
        guide=encoder(str(where / "old"), None) if loss.needs else None,
        guide_folder=str(where / "guide") if loss.needs else None,
        learning_rate=options.learning_rate,
        seed=seed if method == "old" else seed + 100,
    )
    clusters = None if options.random else NGAME(cluster_size=options.batch_size)
    data = RetrievalData(options.folder, batch_size=options.batch_size, batch_miner=clusters, seed=module.seed)
    trainer = pl.Trainer(
        max_epochs=-1,
        max_steps=options.steps,
        callbacks=[] if options.random else [RefreshNegatives(every_n_epochs=1, spaces=["query"])],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        default_root_dir=options.work,
    )
    trainer.fit(module, data)
    module.save_pretrained(str(where / method))
    return module.encoder


def ranks_of(model: Encoder, folder: str) -> list[int]:
    """Rank of each test query's best relevant document; beyond `DEPTH` where it is not found."""
    inputs = read_beir(folder, "test")
    queries = normalize(model.embed(list(inputs.queries), "query"), dim=1)
    corpus = Store(normalize(model.embed(list(inputs.corpus), "document"), dim=1), space="document")
    return first_relevant(queries, corpus, inputs.known, DEPTH)[0].tolist()


def missing(options: argparse.Namespace) -> list[tuple[int, str]]:
    """Runs without a file; an old model that others still need and whose weights are gone is run again."""
    wanted = [(seed, method) for seed in range(options.seeds) for method in METHODS]
    left = [(seed, method) for seed, method in wanted if not place(options, seed, method).exists()]
    lost = {
        (seed, "old") for seed, method in left if method != "old" and not (options.work / str(seed) / "old").exists()
    }
    return [run for run in wanted if run in left or run in lost]


def made_with(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """The options that matter to a method."""
    names = OPTIONS if method in ("old", "plain") else (*OPTIONS, *OF_DISTILLATION)
    return {name: getattr(options, name) for name in names if name != "focus" or method == "distilled"}


def check_runs(options: argparse.Namespace) -> None:
    """Compare the runs that are there with what is asked for.

    Raises:
        ValueError: one was made with other options; its models and audit are of no use here either.
    """
    for path in sorted((options.out / "runs").glob("*.json")):
        row = json.loads(path.read_text())
        made, wanted = row.get("options", {}), made_with(options, row["method"])
        if other := next((name for name in wanted if made.get(name) != wanted[name]), None):
            raise ValueError(
                f"{path} was made with {other}={made.get(other)}, and {wanted[other]} is asked for. Set --out and "
                "--work to other folders, or remove these."
            )


def place(options: argparse.Namespace, seed: int, method: str) -> Path:
    """The file of a finished run."""
    return options.out / "runs" / f"{seed}-{method}.json"


def read(options: argparse.Namespace) -> tuple[Ranks, dict[str, float]]:
    """All finished runs, of seeds that are whole, and mean seconds by method."""
    found = {}
    for path in sorted((options.out / "runs").glob("*.json")):
        row = json.loads(path.read_text())
        if row["seed"] < options.seeds:
            found[row["seed"], row["method"]] = row
    whole = {seed for seed, _ in found if all((seed, method) in found for method in METHODS)}
    kept = {run: row for run, row in found.items() if run[0] in whole}
    seconds = {
        method: float(np.mean([row["seconds"] for (_, of), row in kept.items() if of == method] or [np.nan]))
        for method in METHODS
    }
    return {run: np.array(row["ranks"]) for run, row in kept.items()}, seconds


def differences(ranks: Ranks, cutoffs: Sequence[int]) -> dict[tuple[str, str, int], Judgement]:
    """(measure, method, k) -> what can be said of the method against plain; flips are counted so that more is better.

    Flips and recall are one family of comparisons each, since they have two margins.
    """
    seeds = sorted({seed for seed, _ in ranks})
    by_measure: dict[str, dict[tuple[str, str, int], Any]] = {"fewer flips": {}, "found": {}}
    for method in NEW[1:]:
        for k in cutoffs:
            right = {
                of: np.stack([ranks[seed, of] <= k for seed in seeds]) for of in ("old", "plain", method)
            }  # (S, Q) bool
            broken = {of: right["old"] & ~right[of] for of in ("plain", method)}
            flips = broken["plain"].astype(float) - broken[method]
            by_measure["fewer flips"]["fewer flips", method, k] = estimate(flips)
            by_measure["found"]["found", method, k] = estimate(right[method].astype(float) - right["plain"])
    found: dict[tuple[str, str, int], Judgement] = {}
    for of in by_measure.values():
        found |= dict(zip(of, judge(list(of.values()), MARGIN), strict=True))
    return found


def table(ranks: Ranks, seconds: Mapping[str, float], cutoffs: Sequence[int]) -> list[str]:
    """Means over seeds by method, then differences from plain."""
    seeds = sorted({seed for seed, _ in ranks})
    columns = [f"{name}@{k}" for k in cutoffs for name in ("found", "flips", "mended", "relative")]
    lines = ["| model | " + " | ".join([*columns, "seconds"]) + " |", "|---|" + "---:|" * (len(columns) + 1)]
    for method in METHODS:
        cells = []
        for k in cutoffs:
            flips = [
                NegativeFlipRate.of_ranks(*(torch.from_numpy(ranks[seed, of]) for of in ("old", method)), k)
                for seed in seeds
            ]
            cells.append(f"{np.mean([one.new for one in flips]):.4f}")
            if method == "old":
                cells += ["", "", ""]
                continue
            relative = [one.relative for one in flips if one.relative is not None]
            cells += [f"{np.mean([one.rate for one in flips]):.4f}", f"{np.mean([one.mended for one in flips]):.4f}"]
            cells.append(f"{np.mean(relative):.2f}" if relative else "-")
        lines.append("| " + " | ".join([method, *cells, f"{seconds[method]:.0f}"]) + " |")
    lines += ["", "Against plain:", ""]
    for (measure, method, k), one in differences(ranks, cutoffs).items():
        sign = -1 if measure == "fewer flips" else 1  # told as a change of the rate itself
        low, high = sorted((sign * one.low, sign * one.high))
        name = "flips" if sign < 0 else "found"
        mean = sign * one.estimate.mean
        lines.append(f"- {method}, {name}@{k}: {mean:+.4f} (95 % from {low:+.4f} to {high:+.4f}): {one.verdict}.")
    return lines


def audited(options: argparse.Namespace) -> str:
    """What ``hardneg audit --against`` says of seed 0; kept, since its models need not be."""
    kept = options.out / "audit.txt"
    where = options.work / "0"
    if kept.exists() or not all((where / method).exists() for method in METHODS[:3]):
        return kept.read_text() if kept.exists() else ""
    said = io.StringIO()
    for method in ("plain", "distilled"):
        arguments = [f"--checkpoint={where / method}", f"--against={where / 'old'}", f"--folder={options.folder}"]
        arguments += [f"--cache={options.work / 'cache'}"]
        arguments += [f"--html={options.out / 'flips.html'}"] if method == "plain" else []
        with contextlib.redirect_stdout(said):
            status = hardneg(["audit", *arguments])
        assert status == 0, "hardneg audit has said why on stderr"

    def shortened(text: str) -> str:  # where models lay is nobody's business
        return text.replace(f"{where}/", "").replace(f"{options.out}/", "")

    page, text = options.out / "flips.html", shortened(said.getvalue())
    page.write_text(shortened(page.read_text()))
    kept.write_text(text)
    return text


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="sample:wordnet_senses", help="BEIR folder with the splits train and test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--layers", type=int, default=2, help="of MiniLM that the encoder keeps")
    parser.add_argument("--random", action="store_true", help="random batches in place of NGAME's clusters")
    parser.add_argument("--weight", type=float, default=10.0, help="of the distillation")
    parser.add_argument("--focus", type=float, default=5.0)
    parser.add_argument("--softening", type=float, default=5.0)
    parser.add_argument("--cutoffs", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--minutes", type=float, default=15, help="start no run after so many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/upgrade"), help="where models are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, within the budget; print and write the table of what is there."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    check_runs(options)
    began = time.perf_counter()
    left = missing(options)
    for number, (seed, method) in enumerate(left):
        if time.perf_counter() - began > 60 * options.minutes:
            print(
                f"{options.minutes:g} minutes are over; {len(left) - number} runs are left: the same command goes on."
            )
            break
        started = time.perf_counter()
        model = train(method, seed, options)
        seconds = time.perf_counter() - started
        row = {"seed": seed, "method": method, "seconds": round(seconds, 1), "ranks": ranks_of(model, options.folder)}
        row["options"] = made_with(options, method)
        place(options, seed, method).write_text(json.dumps(row) + "\n")
        print(f"seed {seed}, {method}: {seconds:.0f} s", flush=True)
    ranks, seconds_of = read(options)
    if not ranks:
        print("no seed is whole yet: nothing to compare.")
        return 0
    number = len({seed for seed, _ in ranks})
    command = " ".join(["python -m benchmarks.upgrade.run", *(sys.argv[1:] if arguments is None else arguments)])
    lines = [
        "# Replacing a model: what plain training breaks, and what distillation keeps",
        "",
        f"{options.folder}, MiniLM-L6 cut to {options.layers} layers, {options.steps} steps of "
        f"{options.batch_size} rows ({'random' if options.random else 'clusters of NGAME'}) at "
        f"{options.learning_rate:g}, distillation of weight {options.weight:g}, focus "
        f"{options.focus:g}, softening {options.softening:g}; {number} seed(s), {len(next(iter(ranks.values())))} "
        f"test queries, torch {torch.__version__}, {options.threads} threads, "
        f"{platform.processor() or platform.machine()}. Made by "
        f"`{command}`.",
        "",
        "flips: share of test queries that old found among the first k and the new model does not; mended: the "
        "reverse; relative: flips over what two independent models of these recalls would have. Means over seeds.",
        "",
        *table(ranks, seconds_of, options.cutoffs),
        "",
        f"Verdicts are corrected for all comparisons of a kind; equivalent: surely within {MARGIN}.",
    ]
    if said := audited(options):
        lines += ["", "What `hardneg audit --against` says of seed 0:", "", "```text", said.rstrip(), "```"]
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
