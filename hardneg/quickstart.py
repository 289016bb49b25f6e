"""Train the same model twice on the same data, with random batches and with mined ones, and compare on the test split.

Data: a sample of WordNet senses that ships with hardneg (a word in a sentence -> its definition). Model: the packaged
all-MiniLM-L6-v2. Both runs take the same number of steps; the time of mining is counted in.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardneg.metrics.retrieval import MEASURES
from hardneg.report import save_evaluation, write_report

log = logging.getLogger(__name__)

CHAINS = {
    "in-batch": ["recipes/quickstart.yaml", "miners/in_batch.yaml"],
    "mined": ["recipes/quickstart.yaml", "recipes/quickstart_mined.yaml"],
}
HEADLINE = "nDCG@10"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write results.json, table.md and report.html."""
    parser = argparse.ArgumentParser(prog="python -m hardneg.quickstart", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds; from 2 on the table has intervals")
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"), help="where everything goes")
    parser.add_argument("--steps", type=int, default=None, help="optimiser steps of each run; the recipe's if left out")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: wants at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "sentence_transformers", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    options.folder.mkdir(parents=True, exist_ok=True)
    runs = [start(options.folder)]
    for seed in range(options.seeds):
        for name, configs in CHAINS.items():
            log.info("\n== %s, seed %d", name, seed)
            runs.append(train(name, configs, seed, options.folder, options.steps))
    rows = summary(runs)
    (options.folder / "results.json").write_text(json.dumps({"runs": runs, "table": rows}, indent=1))
    (options.folder / "table.md").write_text(markdown(rows))
    page = write_report(options.folder, "Quickstart: the same model with random and with mined batches")
    show(rows)
    log.info("the page: %s", page)
    return 0


def start(folder: Path) -> dict[str, Any]:
    """Test the model as it comes."""
    cli = _cli(["test", *_arguments(CHAINS["in-batch"], 0, folder)])
    save_evaluation(folder, "start", cli.model.measures, cli.datamodule, cli.datamodule.test_split)
    return _record("start", 0, 0.0, 0, cli.model)


def train(name: str, configs: Sequence[str], seed: int, folder: Path, steps: int | None) -> dict[str, Any]:
    """Fit one chain and test it once."""
    where = folder / f"seed_{seed}" / name
    arguments = ["fit", *_arguments(configs, seed, where), "--evaluate_start=false"]
    if steps is not None:
        arguments.append(f"--trainer.max_steps={steps}")
    began = time.perf_counter()
    cli = _cli(arguments)
    log.info("trained in %.0f s, model loading included", time.perf_counter() - began)
    run, steps_done = cli.trainer.log_dir, cli.trainer.global_step
    cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    data = cli.datamodule
    save_evaluation(run, "final", cli.model.measures, data, data.test_split, cli.seconds, steps_done)
    return _record(name, seed, cli.seconds, steps_done, cli.model)


def _cli(arguments: Sequence[str]) -> Any:
    from hardneg.cli import find_configs
    from hardneg.lightning_cli import HardnegCLI

    return HardnegCLI.start(find_configs(arguments))


def _arguments(configs: Sequence[str], seed: int, folder: Path) -> list[str]:
    named = [part for config in configs for part in ("--config", config)]
    return [*named, f"--seed_everything={seed}", f"--folder={folder}"]


def _record(name: str, seed: int, seconds: float, steps: int, model: Any) -> dict[str, Any]:
    return {
        "chain": name,
        "seed": seed,
        "seconds": round(seconds, 1),
        "steps": steps,
        "means": dict(model.measures.means),
        "by_query": {HEADLINE: dict(model.measures.by_query[HEADLINE])},
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per chain: means over seeds, a 95 % t-interval of the headline measure over seeds where there are two."""
    from scipy import stats

    rows = []
    for name in dict.fromkeys(run["chain"] for run in runs):
        mine = [run for run in runs if run["chain"] == name]
        headline = [run["means"][HEADLINE] for run in mine]
        row: dict[str, Any] = {
            "chain": name,
            "seeds": len(mine),
            "seconds": statistics.mean(run["seconds"] for run in mine),
            "steps": mine[0]["steps"],
            **{measure: statistics.mean(run["means"][measure] for run in mine) for measure in MEASURES},
        }
        if len(mine) > 1:
            half = stats.sem(headline) * stats.t.ppf(0.975, len(mine) - 1)
            row["interval"] = [row[HEADLINE] - half, row[HEADLINE] + half]
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    head = ["chain", *MEASURES, f"{HEADLINE} 95 % over seeds", "steps", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cells) + " |" for cells in _cells(rows)]
    return "\n".join(lines) + "\n"


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="WordNet senses, test split: the whole corpus ranked for every query")
    for column in ("chain", *MEASURES, f"{HEADLINE} 95 %", "steps", "seconds"):
        table.add_column(column, justify="left" if column == "chain" else "right")
    for cells in _cells(rows):
        table.add_row(*cells)
    Console(width=120).print(table)


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    out = []
    for row in rows:
        low_high = "{:.4f} - {:.4f}".format(*row["interval"]) if "interval" in row else ""
        measures = [f"{row[measure]:.4f}" for measure in MEASURES]
        out.append([row["chain"], *measures, low_high, str(row["steps"]), f"{row['seconds']:.0f}"])
    return out


if __name__ == "__main__":
    raise SystemExit(main())
