"""Which negatives help, on which data, at what cost.

A suite is a YAML file: data sets x models x chains of miners x seeds, each from the overlays of `hardneg fit`, under
one budget of steps or seconds that mining is counted into.

  hardneg benchmark run suites/smoke.yaml --dry-run                # its cells, and how long they will take
  hardneg benchmark run suites/smoke.yaml --folder runs/smoke      # stopped? The same line goes on
  hardneg benchmark report runs/smoke                              # the pages again, from the tables
  hardneg benchmark compare runs/before runs/after                 # the same chains of two suites
  hardneg benchmark compare runs/smoke::in-batch runs/smoke::ngame # two chains

In the folder: runs.parquet, scores.parquet (every query), curves.parquet, report.md and report.html.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from hardneg.benchmark.cell import CURVES, find_overlay
from hardneg.benchmark.compare import between
from hardneg.benchmark.report import Table, as_markdown, p_value, spoken, write_reports
from hardneg.benchmark.run import CELLS, choices, estimate, make_plan, quiet, read_records, run_suite
from hardneg.benchmark.suite import Suite, read_suite
from hardneg.benchmark.tables import read_results
from hardneg.plain import plain
from hardneg.report.words import duration, signed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hardneg benchmark``."""
    commands = parser.add_subparsers(dest="what", required=True)
    run_ = commands.add_parser("run", help="run what is not finished of a suite, and write tables and report")
    run_.add_argument("suite", help="YAML file; here, or one that ships with hardneg (suites/smoke.yaml)")
    run_.add_argument("--folder", type=Path, help="where results go; runs/<name of the suite> if left out")
    run_.add_argument(
        "--processes", type=int, default=1, help="cells at a time; times compare only where each has its cores"
    )
    run_.add_argument("--dry-run", action="store_true", help="print cells and an estimate, run nothing")
    report = commands.add_parser("report", help="make report.md and report.html again")
    report.add_argument("folder", type=Path, help="where a suite's tables are")
    compare = commands.add_parser("compare", help="what B has more than A, chain by chain")
    compare.add_argument("a", help="folder of results, or folder::chain")
    compare.add_argument("b", help="folder of results, or folder::chain")


def run(args: argparse.Namespace) -> None:
    """Run, report or compare.

    Raises:
        ValueError, OSError, ImportError: mistakes in suites, overlays or tables; each text stands alone.
        RuntimeError: cells that failed.
    """
    if args.what == "report":
        _report(args.folder)
    elif args.what == "compare":
        print(plain(comparison(args.a, args.b)))
    else:
        if args.processes < 1:
            raise ValueError(f"--processes {args.processes}: wants at least 1.")
        suite = read_suite(find_overlay(args.suite), find_overlay)
        folder = args.folder or Path("runs") / suite.name
        if args.dry_run:
            print(forecast(suite, folder, args.processes))
            return
        quiet()
        logging.getLogger("hardneg.benchmark").setLevel(logging.INFO)
        try:
            run_suite(suite, folder, args.processes)
        except RuntimeError:  # cells that failed; the others are reported
            _report_tables(folder)
            raise
        _report_tables(folder)


def forecast(suite: Suite, folder: Path, processes: int) -> str:
    """The cells of a suite, which are finished, and how long the rest will take."""
    cells = folder / CELLS
    trials, done = suite.trials(), read_records(cells)
    if all(trial.key in done for trial in trials):
        final = suite.runs(choices(trials, done, suite.measure))
        undecided = ""
    else:  # which option the runs will use, nobody knows yet
        final = suite.runs({(trial.data, trial.model, trial.chain): 0 for trial in trials})
        undecided = " (the runs' options are chosen when the trials are over)"
    plan = make_plan([*suite.start_cells(), *trials, *final], cells)
    lines = [f"{suite.name}: {len(plan.kept) + len(plan.missing)} cells, {len(plan.kept)} finished{undecided}"]
    lines += [f"  kept     {cell.key}  {cell.label}" for cell in plan.kept]
    for cell in plan.missing:
        word = "changed" if cell.label in plan.changed else "to run"
        what = f" ({plan.changed[cell.label]})" if word == "changed" else ""
        lines.append(f"  {word:<8} {cell.key}  {cell.label}{what}")
    seconds, unknown = estimate(suite, plan, cells)
    unsaid = f", and {unknown} cells of unknown length (set expect_seconds)" if unknown else ""
    lines.append(f"about {duration(seconds / processes)} with {processes} at a time{unsaid}")
    return "\n".join(lines)


def comparison(a: str, b: str) -> str:
    """What B has more than A, as Markdown."""
    (folder_a, _, chain_a), (folder_b, _, chain_b) = a.partition("::"), b.partition("::")
    first, second = read_results(Path(folder_a)), read_results(Path(folder_b))
    rows = tuple(
        (
            f"{each.data} / {each.model} / {each.chain}",
            signed(each.judgement.estimate.mean, 4),
            f"{signed(each.judgement.low, 4)} to {signed(each.judgement.high, 4)}",
            p_value(each.judgement.p_difference),
            spoken(each.judgement.verdict, second.about),
            f"{each.judgement.detectable:.4f}",
        )
        for each in between(first, second, chain_a or None, chain_b or None)
    )
    what = f"{second.about['measure']} on {second.split}: B - A"
    return f"A: {a}\nB: {b}\n\n" + as_markdown(
        Table("", "", (what, "difference", "interval", "p", "verdict of B", "detectable"), rows)
    )


def _report_tables(folder: Path) -> None:
    if (folder / CURVES).exists():  # there is none where every cell failed
        _report(folder)


def _report(folder: Path) -> None:
    for file in write_reports(folder):
        print(file)
