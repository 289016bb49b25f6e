"""Who should meet in a batch, in extreme classification? The suite suites/xc.yaml, and a table of its three stages.

    python -m benchmarks.extreme.run                                                    # all, as in results.md
    python -m benchmarks.extreme.run --folder runs/try --data xc_onet_dwa --steps 4 --seeds 1    # whether it runs

NGAME, random batches, and an index mined anew before every epoch (as ANCE does). Half of the steps train the encoder
(stage 1), half the classifiers (stage 2), and both scores are fused (stage 3). A finished cell is kept: a run that was
stopped goes on after its last one. Verdicts are those of `hardneg benchmark`: over seeds and queries, each measure by
itself, with differences below 0.01 counting as equivalent.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.step.measure import environment
from hardneg.benchmark.cell import find_overlay
from hardneg.benchmark.compare import against_baseline
from hardneg.benchmark.report import Table, as_markdown
from hardneg.benchmark.run import quiet, run_suite
from hardneg.benchmark.suite import Suite, read_suite
from hardneg.benchmark.tables import Results, read_results

STAGES = {"1: encoder": " encoder", "2: classifiers": " classifier", "3: fused": ""}
MEASURES = ("P@1", "P@5", "PSP@1", "PSP@5")


def chosen(options: argparse.Namespace) -> Suite:
    """The suite, cut down to what was asked for."""
    suite = read_suite(find_overlay(options.suite), find_overlay)
    if unknown := sorted(set(options.data or ()) - set(suite.data)):
        raise SystemExit(f"--data {unknown[0]}: the suite has {', '.join(suite.data)}.")
    return replace(
        suite,
        data={name: overlays for name, overlays in suite.data.items() if name in (options.data or suite.data)},
        seeds=tuple(range(options.seeds)) if options.seeds else suite.seeds,
        budget={"steps": options.steps} if options.steps else suite.budget,
        threads=options.threads,
    )


def tables(results: Results) -> Iterable[Table]:
    """One table per data set: stages and chains down, measures across, in per cent."""
    runs = results.runs[results.runs.purpose == "run"]
    verdicts = {}
    for measure in MEASURES:
        for ending in STAGES.values():
            of_it = replace(results, about={**results.about, "measure": f"{measure}{ending}"})
            for one in against_baseline(of_it):
                verdicts[one.data, one.chain, f"{measure}{ending}"] = one.judgement.verdict
    for data in results.about["data"]:
        start = results.runs[(results.runs.purpose == "start") & (results.runs.data == data)]
        untrained = (f"{100 * start[f'{results.split}/{measure}'].mean():.2f}" for measure in MEASURES)
        rows = [("start", "untrained", *untrained, "0")]
        for stage, ending in STAGES.items():
            for chain in results.about["chains"]:
                mine = runs[(runs.data == data) & (runs.chain == chain)]
                cells = []
                for measure in MEASURES:
                    values = 100 * mine[f"{results.split}/{measure}{ending}"]
                    spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
                    verdict = verdicts.get((data, chain, f"{measure}{ending}"), "")
                    cells.append(f"{values.mean():.2f}{spread}" + (f", {verdict}" if verdict else ""))
                rows.append((stage, chain, *cells, f"{mine.seconds.mean():.0f}"))
        head = ("stage", "chain", *(f"{measure} (%)" for measure in MEASURES), "seconds of training, both stages")
        yield Table(data, "", head, tuple(rows))


def page(results: Results, command: str) -> str:
    """The tables, and what is needed to make them again."""
    about = results.about
    seeds = results.runs[results.runs.purpose == "run"].seed.nunique()
    parts = [f"# {about['name']}", f"`{command}`"]
    for table in tables(results):
        parts += [f"## {table.title}", as_markdown(table)]
    queries = "; ".join(f"{data} {count[results.split]:,}" for data, count in about["queries"].items())
    parts.append(
        f"- Split {results.split} ({queries} queries); mean over {seeds} seed(s) ± standard deviation.\n"
        f"- Verdicts against {about['baseline']}: margin {about['margin']}, level {about['level']}, corrected for the "
        "comparisons of one measure.\n"
        f"- {about['budget']['steps']:,} steps for both stages together, {about['threads']} thread(s).\n"
        f"- {environment('torch', 'scikit-learn', 'sentence-transformers')}"
    )
    return "\n\n".join(parts) + "\n"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/xc"), help="of the cells; a later call goes on there")
    parser.add_argument("--suite", default="suites/xc.yaml")
    parser.add_argument("--data", nargs="+", help="of the suite's data sets; default: all")
    parser.add_argument("--seeds", type=int, help="how many; default: the suite's")
    parser.add_argument("--steps", type=int, help="of both stages together; default: the suite's")
    parser.add_argument("--threads", type=int, default=1, help="of one cell")
    parser.add_argument("--processes", type=int, default=1, help="cells at a time")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.md"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    quiet()
    logging.getLogger("hardneg.benchmark").setLevel(logging.INFO)
    run_suite(chosen(options), options.folder, options.processes)
    asked = {
        name: value for name, value in vars(options).items() if value is not None and name not in ("folder", "out")
    }
    words = (
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in asked.items()
    )
    text = page(read_results(options.folder), f"python -m benchmarks.extreme.run {' '.join(words)}")
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
