"""What a suite showed, as Markdown and as one HTML page; both are made of its three tables and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hardneg.benchmark.compare import ALL, Compared, against_baseline, ranks, unlike_weights
from hardneg.benchmark.suite import START
from hardneg.benchmark.tables import Results, read_results
from hardneg.report.pictures import Line, Panel, Picture, colour, draw, sketch
from hardneg.report.run import Curve
from hardneg.report.words import run_colour, signed
from miners.transaction import write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MARKDOWN, PAGE = "report.md", "report.html"
VERDICTS = ("better", "worse", "equivalent", "inconclusive")


@dataclass(frozen=True)
class Table:
    """A table of the report; the first column names the row."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_reports(folder: Path) -> tuple[Path, Path]:
    """Make report.md and report.html from the tables in a folder.

    Raises:
        FileNotFoundError: a table is missing.
        ImportError: the extra "train" is not installed.
    """
    results = read_results(folder)
    compared = against_baseline(results)
    tables, words = all_tables(results, compared), lead(results, compared)
    write_text(folder / MARKDOWN, markdown(results, tables, words))
    write_text(folder / PAGE, page(results, tables, words))
    return folder / MARKDOWN, folder / PAGE


def markdown(results: Results, tables: Sequence[Table], words: str) -> str:
    """The report as Markdown: all but the pictures."""
    parts = [f"# {results.about['name']}", words, as_markdown(Table("", "", ("", ""), facts(results)))]
    for table in tables:
        parts += [f"## {table.title}", table.note, as_markdown(table)]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_markdown(table: Table) -> str:
    """One table, numbers to the right."""
    lines = [table.head, ("---", *["---:"] * (len(table.head) - 1)), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page(results: Results, tables: Sequence[Table], words: str) -> str:
    """The report as a page that loads nothing and runs nothing."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError(f"the report needs {error.name}: pip install 'hardneg[train]'") from None
    ours, shared = Path(__file__).parent, Path(__file__).parent.parent / "report"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([ours, shared]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("benchmark.html").render(
        title=results.about["name"],
        css=Markup((shared / "page.css").read_text(encoding="utf-8")),
        lead=words,
        facts=facts(results),
        tables=tables,
        sections=pictures(results),
        verdicts=VERDICTS,
    )


# ---- words and tables ------------------------------------------------------------------------------------------------


def lead(results: Results, compared: Sequence[Compared]) -> str:
    """The verdicts in two or three sentences: over all data sets where there are several."""
    about = results.about
    together = [each for each in compared if each.data == ALL] or list(compared)
    together = [each for each in together if each.chain != START]
    several = len({(each.data, each.model) for each in together}) > 1
    said = []
    for verdict in VERDICTS:
        names = [
            f"{each.chain}{f' ({each.data}, {each.model})' if several else ''} ({signed(each.judgement.estimate.mean)})"
            for each in together
            if each.judgement.verdict == verdict
        ]
        if names:
            said.append(f"{spoken(verdict, about)}: {', '.join(names)}")
    where = f" over {len(about['data'])} data sets" if together and together[0].data == ALL else ""
    if not said:
        return f"No chain was compared with {about['baseline']}."
    return (
        f"Against {about['baseline']}, {about['measure']} on {results.split}{where}. "
        + ". ".join(text[0].upper() + text[1:] for text in said)
        + "."
    )


def spoken(verdict: str, about: Mapping[str, Any]) -> str:
    """A verdict as the tables say it."""
    return f"equivalent within {about['margin']:g}" if verdict == "equivalent" else verdict


def facts(results: Results) -> tuple[tuple[str, str], ...]:
    """What was run, and what a reader must know before believing it."""
    about = results.about
    ((unit, amount),) = about["budget"].items()
    queries = "; ".join(f"{d}: {', '.join(f'{n} of {s}' for s, n in of.items())}" for d, of in about["queries"].items())
    machines = "; ".join(", ".join(f"{name} {value}" for name, value in each.items()) for each in about["machines"])
    found = {
        "budget of a run": f"{amount:g} {unit} of training on {about['threads']} threads, mining included",
        "judged by": f"{about['measure']} on {results.split}, against {about['baseline']}",
        "queries": queries,
        "options": f"{max((len(o) for o in about['options'].values()), default=0)} tried for each chain, on dev alone",
        "test split": f"read {about['test_reads']} times, by all runs ever made in this folder",
        "machine": machines,
    }
    if about["failed"]:
        found["failed, and missing below"] = "; ".join(f"{who}: {why}" for who, why in about["failed"].items())
    if unlike := unlike_weights(results):
        found["NOT THE SAME INITIAL WEIGHTS"] = f"{'; '.join(unlike)}. Seed the encoder in its own constructor."
    return tuple(found.items())


def all_tables(results: Results, compared: Sequence[Compared]) -> list[Table]:
    """Verdicts for each data set and model, then over all, then what the runs cost and what was chosen."""
    about = results.about
    tables = []
    for data in (*about["data"], ALL):
        for model in about["models"]:
            judged = {each.chain: each for each in compared if (each.data, each.model) == (data, model)}
            rows = _verdict_rows(results, data, model, judged)
            if rows and (data != ALL or judged):
                tables.append(Table(_title(results, data, model), _VERDICT_NOTE.format(**about), _VERDICT_HEAD, rows))
    for data in about["data"]:
        for model in about["models"]:
            if rows := _cost_rows(results, data, model):
                title = f"What it cost: {_title(results, data, model)}"
                tables.append(Table(title, _COST_NOTE.format(**about), _COST_HEAD, rows))
    if rows := _choice_rows(results):
        tables.append(Table("What dev chose", _CHOICE_NOTE, ("chain", "option", about["measure"], "chosen"), rows))
    return tables


_VERDICT_HEAD = ("chain", "seeds", "measure", "difference", "interval", "p", "verdict", "detectable")
_VERDICT_NOTE = (
    "Difference from {baseline}, with its interval at level {level:g} over seeds and queries. p and verdict are "
    "corrected (Holm) for all comparisons of this report: with {level:g} at most, any “better” or “worse” of it is "
    "false. Equivalent: surely within {margin:g}. Detectable: the smallest difference that four of five such suites "
    "would find."
)
_COST_HEAD = (
    "chain",
    "steps",
    "anchors",
    "seconds",
    "times baseline",
    "before step 1",
    "refreshing",
    "reaches the baseline",
)
_COST_NOTE = (
    "Means over seeds of the time of training without evaluations; what a guide, a store or a table of negatives costs "
    "is in it, before step 1 or as refreshing. The last column: median seconds after which a run has on dev what "
    "{baseline} has in the end with the same seed, the median of the multiples of that run's time, and how many runs "
    "get there; between evaluations dev is taken for a straight line."
)
_CHOICE_NOTE = "One seed that no run uses; every chain has as many options."


def _verdict_rows(
    results: Results, data: str, model: str, judged: Mapping[str, Compared]
) -> tuple[tuple[str, ...], ...]:
    about, runs = results.about, results.runs
    column = f"{results.split}/{about['measure']}"
    rows = []
    for chain in (*about["references"], START, *about["chains"]):
        who = (chain, START) if chain in about["references"] else (model, chain)
        mine = runs[(runs.model == who[0]) & (runs.chain == who[1]) & (runs.purpose != "tune")]
        mine = mine if data == ALL else mine[mine.data == data]
        if not len(mine):
            continue
        mean = mine.groupby("data")[column].mean().mean()  # data sets count alike, however many seeds they have
        row: tuple[str, ...] = (chain, str(mine.seed.nunique()), f"{mean:.4f}")
        if chain in judged:
            found = judged[chain].judgement
            row += (
                signed(found.estimate.mean, 4),
                f"{signed(found.low, 4)} to {signed(found.high, 4)}",
                p_value(found.p_difference),
                spoken(found.verdict, about),
                f"{found.detectable:.4f}",
            )
        else:
            said = {about["baseline"]: "baseline"} | dict.fromkeys(about["references"], "as it comes")
            row += (said.get(chain, ""), "", "", "", "")
        rows.append(row)
    return tuple(rows)


def _cost_rows(results: Results, data: str, model: str) -> tuple[tuple[str, ...], ...]:
    about = results.about
    runs = results.of("run")
    runs = runs[(runs.data == data) & (runs.model == model)]
    base = runs[runs.chain == about["baseline"]].seconds.mean()
    rows = []
    for chain in about["chains"]:
        mine = runs[runs.chain == chain]
        if not len(mine):
            continue
        reached = np.array(_reaching(results, runs, chain)).reshape(-1, 2)
        there, times = np.median(reached, axis=0) if len(reached) else (math.nan, math.nan)
        rows.append(
            (
                chain,
                f"{mine.steps.mean():,.0f}",
                f"{mine.samples.mean():,.0f}",
                f"{mine.seconds.mean():.1f}",
                f"{mine.seconds.mean() / base:.2f}" if base > 0 else "",
                f"{mine.seconds_before_training.mean():.1f}",
                f"{mine.refresh_seconds.mean():.1f}",
                f"{there:.1f} s, {times:.2f} x ({len(reached)} of {len(mine)})"
                if len(reached)
                else f"0 of {len(mine)}",
            )
        )
    return tuple(rows)


def _reaching(results: Results, runs: pd.DataFrame, chain: str) -> list[tuple[float, float]]:
    """(seconds until dev is what the baseline's is in the end, the same as a multiple of the baseline's own seconds).

    Between two evaluations dev is taken for a straight line; training begins where the untrained model stands. Runs
    that never get there are left out.
    """
    name = f"dev/{results.about['measure']}"
    dev = results.curves[results.curves.name == name]
    by_key = dict(list(dev.groupby("key")))
    base = runs[runs.chain == results.about["baseline"]].set_index("seed").key
    start = results.of("start").set_index(["data", "model"])[name]
    found = []
    for run in runs[runs.chain == chain].to_dict("records"):
        if run["seed"] not in base.index or run["key"] not in by_key or base[run["seed"]] not in by_key:
            continue
        goal = by_key[base[run["seed"]]].iloc[-1]
        seconds = [run["seconds_before_training"], *by_key[run["key"]].seconds]
        values = [start.get((run["data"], run["model"]), -math.inf), *by_key[run["key"]].value]
        at = next((at for at, value in enumerate(values) if value >= goal.value), None)
        if at is None:
            continue
        there = seconds[at]
        if at and math.isfinite(values[at - 1]):
            share = (goal.value - values[at - 1]) / (values[at] - values[at - 1])
            there = seconds[at - 1] + share * (seconds[at] - seconds[at - 1])
        found.append((float(there), float(there / goal.seconds)))
    return found


def _choice_rows(results: Results) -> tuple[tuple[str, ...], ...]:
    measure = f"dev/{results.about['measure']}"
    return tuple(
        (
            f"{row['chain']} ({row['data']}, {row['model']})",
            flat(results.about["options"][row["chain"]][row["option"]]) or "as it is",
            f"{row[measure]:.4f}",
            "yes" if row["chosen"] else "",
        )
        for row in results.of("tune").to_dict("records")
    )


def flat(option: Any, at: str = "") -> str:
    """An overlay as one line: cluster_size=16, margin=0.1."""
    if not isinstance(option, Mapping):
        return f"{at}={option}"
    return ", ".join(flat(value, str(name)) for name, value in option.items())


def p_value(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _title(results: Results, data: str, model: str) -> str:
    return data if len(results.about["models"]) == 1 else f"{data}, {model}"


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(results: Results) -> list[tuple[str, str, list[Picture]]]:
    """Sections of the page: heading, how to read it, pictures; those with nothing to show are left out."""
    measure = results.about["measure"]
    axes = (("step", "optimiser steps"), ("seconds", "seconds of training"), ("samples", "anchors seen"))
    quality = [_dev_picture(results, column, words) for column, words in axes]
    watched = [
        _step_picture(results, "hardness_max", "Hardness", "similarity of the hardest negative"),
        _step_picture(results, "dropped_share", "Dropped by miners", "share of the candidates"),
        _step_picture(results, "loss", "Loss", "loss"),
    ]
    sections = [
        ("Which to choose", "Up and to the left is better; the line joins chains that no other beats in both.", [
            _pareto_picture(results)
        ]),
        ("Ranks", "Mean rank over data sets, 1 = best. A bar joins chains that were not shown to differ.", [
            _rank_picture(results)
        ]),
        ("While it learned", f"{measure} on dev, means over seeds, evaluations not counted as time.", quality),
        ("What it learned from", "Means over seeds. Losses compare only between chains with like negatives.", watched),
    ]  # fmt: skip
    kept = [(title, how, [each for each in drawn if each is not None]) for title, how, drawn in sections]
    return [section for section in kept if section[2]]


def _dev_picture(results: Results, column: str, words: str) -> Picture | None:
    name = f"dev/{results.about['measure']}"
    curves = results.curves[results.curves.name == name]

    def curve(data: str, model: str, chain: str) -> Curve | None:
        runs = _of(results, data, model, chain)
        mine = curves[curves.key.isin(runs.key)]
        if not len(mine):
            return None
        order = mine.groupby("key").cumcount()
        shortest = mine.groupby("key").size().min()
        means = mine.assign(order=order)[order < shortest].groupby("order")[[column, "value"]].mean()
        steps, values = means[column].to_numpy(float), means.value.to_numpy(float)
        start = _of(results, data, model, START)
        if len(start):
            steps, values = np.append(0.0, steps), np.append(start[name].iloc[0], values)
        return Curve(steps, values)

    panels = _panels(results, curve)
    title = f"Against {words}"
    return draw(title, panels, results.about["measure"], x_label=words, one_scale=False) if panels else None


def _step_picture(results: Results, name: str, title: str, label: str) -> Picture | None:
    curves = results.curves[results.curves.name == name]
    if name == "dropped_share" and not (curves.value > 0).any():
        return None

    def curve(data: str, model: str, chain: str) -> Curve | None:
        mine = curves[curves.key.isin(_of(results, data, model, chain).key)].dropna()
        if not len(mine):
            return None
        means = mine.groupby("step").value.mean()
        return Curve(means.index.to_numpy(float), means.to_numpy(float))

    panels = _panels(results, curve)
    return draw(title, panels, label, one_scale=False) if panels else None


def _panels(results: Results, curve: Callable[[str, str, str], Curve | None]) -> list[Panel]:
    """One panel for each data set and model, one line for each chain."""
    panels = []
    for data in results.about["data"]:
        for model in results.about["models"]:
            lines = [
                Line(chain, found, run_colour(number), dashed=number > 6)
                for number, chain in enumerate(results.about["chains"], 1)
                if (found := curve(data, model, chain)) is not None
            ]
            if lines:
                panels.append(Panel(_title(results, data, model), lines))
    return panels


def _pareto_picture(results: Results) -> Picture | None:
    about = results.about
    column = f"{results.split}/{about['measure']}"
    blocks = []
    for data in about["data"]:
        for model in about["models"]:
            runs = results.of("run")
            runs = runs[(runs.data == data) & (runs.model == model)]
            means = runs.groupby("chain")[["seconds", column]].mean().reindex(about["chains"]).dropna()
            if len(means) > 1:
                blocks.append((_title(results, data, model), means))
    if not blocks:
        return None

    def paint(figure: Figure) -> None:
        columns = min(len(blocks), 3)
        axes = figure.subplots(-(-len(blocks) // columns), columns, squeeze=False).ravel()
        for axis, (title, means) in zip(axes, blocks, strict=False):
            for number, chain in enumerate(about["chains"], 1):
                if chain in means.index:
                    marker = "o" if number <= 6 else "s"
                    axis.plot(*means.loc[chain], marker, color=colour(run_colour(number)), markersize=7)
            front = means[[is_front(means.to_numpy(), row) for row in range(len(means))]].sort_values("seconds")
            axis.plot(front.seconds, front[column], color=colour("muted"), linewidth=0.8, zorder=0)
            axis.set_title(title)
            axis.set_xlabel("seconds of training")
            axis.margins(0.12)
        axes[0].set_ylabel(column)
        for axis in axes[len(blocks) :]:
            axis.remove()

    legend = tuple((c, run_colour(n), "disc" if n <= 6 else "square") for n, c in enumerate(about["chains"], 1))
    return sketch("Quality and cost", paint, legend, height=2.9 * math.ceil(len(blocks) / 3))


def is_front(means: np.ndarray, row: int) -> bool:
    """Whether no other row of (cost, quality) is at least as good in both and better in one."""
    cost, quality = means[row]
    better = (means[:, 0] <= cost) & (means[:, 1] >= quality) & ((means[:, 0] < cost) | (means[:, 1] > quality))
    return not bool(better.any())


def _rank_picture(results: Results) -> Picture | None:
    found = ranks(results)
    if found is None:
        return None
    mean_ranks, p_values = found
    names = list(results.about["chains"])
    colours = {name: colour(run_colour(names.index(name) + 1)) for name in mean_ranks}

    def paint(figure: Figure) -> None:
        from scikit_posthocs import critical_difference_diagram

        axis = figure.subplots()
        axis.grid(False)
        critical_difference_diagram(
            mean_ranks,
            p_values,
            alpha=results.about["level"],
            ax=axis,
            color_palette=colours,
            crossbar_props={"color": colour("ink"), "marker": None},
        )

    return sketch("Mean ranks", paint, height=0.9 + 0.28 * len(mean_ranks))


def _of(results: Results, data: str, model: str, chain: str) -> pd.DataFrame:
    runs = results.runs
    return runs[(runs.data == data) & (runs.model == model) & (runs.chain == chain) & (runs.purpose != "tune")]
