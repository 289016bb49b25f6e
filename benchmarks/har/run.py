"""Activity recognition with few labels: what do weighted and debiased negatives add to cross-modal pre-training?

    HARDNEG_DATA=... python -m benchmarks.har.run utd_mhad --seeds 5 --draws 5 --epochs 30 --minutes 60
    HARDNEG_DATA=... python -m benchmarks.har.run wharf --seeds 5 --draws 5 --epochs 30

Five methods: "supervised" trains encoders and classifier from scratch on the labelled part; "baseline" pre-trains
without labels on in-batch negatives; "hard", "debiased" and "both" do so with `HardnessConcentration`, `Debiased`, or
both. The last four are judged by a linear probe on frozen features. All methods of a seed start from the same weights,
see the same label draws (stratified, nested over shares, by recording) and are tested on people whom nobody was trained
on.

Every finished (method, seed) is a file in runs/; the same command goes on where it stopped, and may run beside itself
with other `--methods` or `--first-seed`. runs.parquet, table.md, plot.svg and machine.json are made of them. Intervals
and verdicts are those of `hardneg benchmark`, over seeds and draws of labels.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytorch_lightning as pl
import torch
from pyarrow import parquet
from torch import Tensor

from hardneg.benchmark.statistics import Estimate, Judgement, estimate, judge
from hardneg.cli import configs_folder
from hardneg.lightning_cli import HardnegCLI
from hardneg.metrics.classification import accuracy_and_macro_f1, evaluate_classes
from hardneg.modules.activity_classifier import fit_classifier, predict_classes

METHODS = ("supervised", "baseline", "hard", "debiased", "both")
MEASURES = ("accuracy", "macro-F1")
MARGIN = 0.01  # accuracies within it count as equivalent
TAU_PLUS = {"utd_mhad": 0.034, "wharf": 0.11}
"""Probability that two different training windows, drawn at random, show the same activity; counted."""

Row = dict[str, Any]


def chain(name: str, method: str, beta: float, tau_plus: float) -> list[dict[str, Any]]:
    """The miners of a method, as YAML names them."""
    miners: list[dict[str, Any]] = [{"class_path": "miners.InBatch"}]
    if name == "wharf":  # one modality: the negatives of both views
        miners.append({"class_path": "miners.SelfBlocks", "init_args": {"positives": False}})
    if method in ("hard", "both"):
        miners.append({"class_path": "miners.HardnessConcentration", "init_args": {"beta": beta}})
    if method in ("debiased", "both"):
        miners.append({"class_path": "miners.Debiased", "init_args": {"tau_plus": tau_plus}})
    return miners


def build(options: argparse.Namespace, method: str, seed: int) -> tuple[Any, Any]:
    """Module and data of the shipped recipe, with a method's miners; the weights depend on the seed alone."""
    recipe = configs_folder() / "recipes" / f"har_{options.set}.yaml"
    miners = chain(options.set, method, options.beta, options.tau_plus or TAU_PLUS[options.set])
    arguments = [f"--config={recipe}", f"--seed_everything={seed}", "--trainer.logger=false", "--trainer.callbacks=[]"]
    arguments += [f"--model.miners={json.dumps(miners)}", f"--trainer.accelerator={options.accelerator}"]
    arguments += options.override
    cli = HardnegCLI.start(arguments, run=False)
    return cli.model, cli.datamodule


def run(options: argparse.Namespace, method: str, seed: int) -> list[Row]:
    """All rows of one method and seed: one per label share and draw."""
    started, cpu = time.perf_counter(), time.process_time()
    module, data = build(options, method, seed)
    data.setup("fit")
    data.setup("test")
    module.encoder.measure({space: data.statistics(space) for space in data.spaces})
    if method == "supervised":
        judge, trained = supervised(options, module, data, seed), 0.0
    else:
        before = time.process_time()
        pretrain(options, module, data)
        trained = time.process_time() - before
        judge = probed(module, data)
    rows = []
    for share in options.labels:
        for draw in range(1 if share == 100 else options.draws):  # with all labels there is nothing to draw
            measures = judge(data.labelled(share / 100, draw))
            rows.append({"method": method, "seed": seed, "labels": share, "draw": draw, **measures})
    spent = {
        "epochs": options.epochs,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "pretraining_cpu_seconds": trained,
    }
    for row in rows:
        row |= spent
    return rows


def pretrain(options: argparse.Namespace, module: Any, data: Any) -> None:
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator=options.accelerator,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=data)


def probed(module: Any, data: Any) -> Callable[[Tensor], dict[str, float]]:
    """A judge that probes frozen features, which are computed once."""
    train, test = data.labelled(1.0, 0), data.queries("test")[0]
    features = {space: module.features(data, torch.cat([train, test]), space) for space in data.spaces}
    place = torch.full((len(data.windows),), -1).index_copy_(0, train, torch.arange(len(train)))

    def judge(rows: Tensor) -> dict[str, float]:
        known = {space: of[: len(train)][place[rows]] for space, of in features.items()}
        queries = {space: of[len(train) :] for space, of in features.items()}
        names = data.names(data.spaces[0])
        return dict(evaluate_classes(known, rows, data.labels, queries, test, names).means)

    return judge


def supervised(options: argparse.Namespace, module: Any, data: Any, seed: int) -> Callable[[Tensor], dict[str, float]]:
    """A judge that trains encoders and classifier on the labelled windows alone."""
    test = data.queries("test")[0]
    device = "cuda" if options.accelerator in ("auto", "gpu") and torch.cuda.is_available() else "cpu"

    def judge(rows: Tensor) -> dict[str, float]:
        model = fit_classifier(
            module.encoder.to(device),
            data,
            rows,
            augmentations=module.augmentations,
            epochs=options.supervised_epochs or options.epochs,
            encoder_learning_rate=1e-3,
            seed=seed,
            device=device,
        )
        accuracy, f1 = accuracy_and_macro_f1(data.labels[test], predict_classes(model, data, test))
        return {"accuracy": accuracy, "macro-F1": f1}

    return judge


# ---- what comes of it ------------------------------------------------------------------------------------------------


def scores(rows: Iterable[Row], measure: str) -> dict[tuple[str, float], pd.DataFrame]:
    """(method, labels) -> a table of seeds (rows) and label draws (columns), which all methods share."""
    found = pd.DataFrame([row for row in rows if row.get(measure) is not None])
    return {
        (str(method), float(share)): cell.pivot(index="seed", columns="draw", values=measure)  # type: ignore[arg-type]
        for (method, share), cell in (found.groupby(["method", "labels"]) if len(found) else ())  # type: ignore[misc]
    }


def summary(rows: Iterable[Row], measure: str) -> dict[tuple[str, float], tuple[float, float]]:
    """(method, labels) -> mean, and half of its 95 % interval over seeds and draws (NaN with one seed)."""
    found = {}
    for cell, values in scores(rows, measure).items():
        one = estimate(values.to_numpy())
        found[cell] = (one.mean, one.half_width(0.05) if one.seeds > 1 else float("nan"))
    return found


def against_baseline(rows: Sequence[Row]) -> dict[tuple[str, str, float], Judgement]:
    """(measure, method, labels) -> what a method has more than "baseline", seed by seed and draw by draw.

    Verdicts are those of `hardneg benchmark`: corrected for all comparisons that a table shows.
    """
    estimates: dict[tuple[str, str, float], Estimate] = {}
    for measure in MEASURES:
        found = scores(rows, measure)
        for (method, share), values in found.items():
            base = found.get(("baseline", share))
            if method == "baseline" or base is None:
                continue
            difference = (values - base).dropna(how="all").dropna(axis=1, how="all")  # what both have
            if difference.size and not difference.isna().any(axis=None):
                estimates[measure, method, share] = estimate(difference.to_numpy())
    return dict(zip(estimates, judge(list(estimates.values()), MARGIN), strict=True))


def table(rows: Sequence[Row]) -> str:
    """Markdown: a table for each measure, and one of the differences."""
    shares = sorted({row["labels"] for row in rows})
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    seeds, draws = (len({row[name] for row in rows}) for name in ("seed", "draw"))
    judged = against_baseline(rows)
    head = f"| labels | {' | '.join(f'{share:g} %' for share in shares)} |\n|{'---|' * (len(shares) + 1)}"
    parts = [
        f"Test split; {seeds} seeds, {draws} draws of the labels. ± half of the 95 % interval over seeds and draws. "
        f"Differences are paired by seed and draw; their verdicts are corrected (Holm) for all {len(judged)} "
        f"comparisons below; equivalent: within {MARGIN:g}.\n"
    ]

    def add(title: str, cells: Mapping[tuple[str, float], str]) -> None:
        lines = [
            f"| {method} | " + " | ".join(cells.get((method, share), "") for share in shares) + " |"
            for method in methods
            if any((method, share) in cells for share in shares)
        ]
        if lines:
            parts.append("\n".join([f"**{title}**\n", head, *lines, ""]))

    for measure in MEASURES:
        add(measure, {cell: _cell(*value) for cell, value in summary(rows, measure).items()})
        differences = {
            (method, share): f"{_cell(found.estimate.mean, (found.high - found.low) / 2, signed=True)} {found.verdict}"
            for (of, method, share), found in judged.items()
            if of == measure
        }
        add(f"{measure}, difference to baseline", differences)
    alone = sorted({name.removeprefix("accuracy ") for row in rows for name in row if name.startswith("accuracy ")})
    for name in alone:
        found = summary(rows, f"accuracy {name}")
        add(f"accuracy with {name} alone at test time", {cell: _cell(*value) for cell, value in found.items()})
    return "\n".join(parts)


def _cell(mean: float, half: float, signed: bool = False) -> str:
    return f"{mean:{'+' if signed else ''}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def plot(rows: Sequence[Row], file: Path, title: str) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axis, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
        found = summary(rows, measure)
        for number, method in enumerate(METHODS):
            shares = sorted(share for name, share in found if name == method)
            if shares:
                means, halves = np.array([found[method, share] for share in shares]).T
                axis.errorbar(
                    shares, means, np.nan_to_num(halves), label=method, marker="o", capsize=2, color=f"C{number}"
                )
        axis.set_xscale("log")
        axis.set_xticks(ticks := sorted({row["labels"] for row in rows}), [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("labelled recordings (%)")
        axis.set_title(f"{measure}, {title}", loc="left", fontsize=9)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize=8)
    with file.open("w", encoding="utf-8") as out:
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})


def machine(options: argparse.Namespace) -> dict[str, Any]:
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "lightning": pl.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "options": {name: value for name, value in vars(options).items() if name != "out"},
    }


def read(folder: Path) -> list[Row]:
    """All rows of a folder, in the order of seeds and methods."""
    by_run: dict[tuple[str, int], list[Row]] = {}
    for file in [*folder.glob("runs.parquet"), *folder.glob("runs/*.parquet")]:
        found = parquet.read_table(file).to_pylist()
        by_run |= {(row["method"], row["seed"]): [] for row in found}
        for row in found:
            by_run[row["method"], row["seed"]].append(row)
    rows = [row for run in by_run.values() for row in run]
    return sorted(rows, key=lambda row: (row["seed"], METHODS.index(row["method"]), row["labels"], row["draw"]))


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Leave the rows of one method and seed; a run beside this one never sees half a file."""
    place = folder / "runs" / f"{rows[0]['method']}-{rows[0]['seed']}.parquet"
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_suffix(".part")
    parquet.write_table(pa.Table.from_pylist(list(rows)), part)
    part.replace(place)


def summarise(options: argparse.Namespace) -> str:
    """Make everything that is made of the rows so far; returns the table."""
    rows, folder = read(options.out), options.out
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    parquet.write_table(pa.table(columns), folder / "runs.parquet")
    text = table(rows)
    (folder / "table.md").write_text(text)
    (folder / "machine.json").write_text(json.dumps(machine(options), indent=1) + "\n")
    plot(rows, folder / "plot.svg", options.set)
    return text


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=sorted(TAU_PLUS))
    parser.add_argument("--seeds", type=int, default=5, help="from --first-seed up to, not including, this")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=5, help="of labels, for each share below 100 %%")
    parser.add_argument("--labels", type=float, nargs="+", default=[1, 5, 10, 25, 50, 100], help="per cent")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--supervised_epochs", type=int, help="of training from scratch; default: --epochs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--beta", type=float, default=0.2, help="0.2 / temperature 0.1 is HCL's best, 1 / 0.5")
    parser.add_argument("--tau_plus", type=float, help="default: counted on the training split")
    parser.add_argument("--minutes", type=float, help="start nothing new after so many")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--out", type=Path, help="default: benchmarks/har/<set>")
    parser.add_argument(
        "--override", action="append", default=[], help="of the recipe: --override=--data.batch_size=32"
    )
    options = parser.parse_args(arguments)
    options.out = options.out or Path(__file__).parent / options.set
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    started = time.perf_counter()
    for seed in range(options.first_seed, options.seeds):
        for method in options.methods:
            minutes = (time.perf_counter() - started) / 60
            if any((row["method"], row["seed"]) == (method, seed) for row in read(options.out)):
                continue
            if options.minutes is not None and minutes > options.minutes:
                print(f"stopped after {minutes:.1f} minutes, before {method}, seed {seed}", flush=True)
                return
            rows = run(options, method, seed)
            write(options.out, rows)
            summarise(options)
            best = max(rows, key=lambda row: float(row["labels"]))
            print(
                f"{method}, seed {seed}: {best['seconds']:.0f} s ({best['cpu_seconds']:.0f} s of CPU), of which "
                f"pre-training {best['pretraining_cpu_seconds'] / options.epochs:.2f} s of CPU per epoch; accuracy "
                f"with {best['labels']:g} % of the labels {best['accuracy']:.3f}",
                flush=True,
            )
    print(summarise(options))


if __name__ == "__main__":
    main()
