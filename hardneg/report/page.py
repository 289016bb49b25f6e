"""The page: tables, pictures and texts of one run, or of several side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hardneg.report.evaluation import Evaluation, read_evaluations, write_whole
from hardneg.report.run import Curve, Record, Run, read_runs
from hardneg.report.selection import changes, early_and_late

if TYPE_CHECKING:
    from hardneg.report.pictures import Picture

HERE = Path(__file__).parent
START, FINAL = "start", "final"
MEANINGS = {
    "positive": "it is the anchor's own positive",
    "known": "it is known to be right for the anchor as well",
    "self": "it is the anchor itself",
    "same_content": "it has the same text as the anchor or its positive",
    "same_label": "it is of the anchor's class",
    "gist": "the guide finds it closer than the positive",
    "positive_aware": "it scores about as high as the positive, so it is probably right too",
}
"""Why a candidate is no negative; other reasons are named by the miner that judged."""


@dataclass(frozen=True)
class Column:
    """An evaluation under the name it has on the page; ``colour`` is that of its run in the pictures."""

    label: str
    evaluation: Evaluation
    colour: str


@dataclass(frozen=True)
class Difference:
    """Mean paired difference over queries, and half the width of its 95 % interval (normal approximation)."""

    mean: float
    half_width: float | None

    @property
    def verdict(self) -> str:
        """ "up" or "down" where the interval leaves zero out, else ""."""
        if self.half_width is None or abs(self.mean) <= self.half_width:
            return ""
        return "up" if self.mean > 0 else "down"


@dataclass(frozen=True)
class Scale:
    """A common axis for dots: where a value lies on it, in per cent."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], step: float) -> Scale:
        """The range of the values, widened to whole steps."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = math.floor(min(finite) / step) * step, math.ceil(max(finite) / step) * step
        return cls(low, high if high > low else low + step)

    def at(self, value: float) -> str:
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%" if math.isfinite(value) else "0%"

    @property
    def ticks(self) -> list[float]:
        return [self.low + (self.high - self.low) * quarter / 4 for quarter in range(5)]


def write_report(folder: str | Path, title: str | None = None, out: str | Path | None = None) -> Path:
    """Write a self-contained ``report.html`` of a run's folder: no network, no script, no other file.

    The folder holds metrics.csv (a CSVLogger's), negatives.jsonl (`RecordNegatives`) and evaluation.json
    (`save_evaluation`); the page says how to get what is missing. A folder that holds no run itself is read as a
    comparison of all runs below it; its own evaluation.json may hold the start that they share.

    Args:
        folder: of the run, or of several.
        title: heading; None = the folder's name.
        out: file to write; None = report.html in the folder.

    Returns:
        The file.

    Raises:
        FileNotFoundError: no folder, or no run in it.
        ValueError: a file of the run is broken; names file and line.
        ImportError: the extra "train" is not installed.
    """
    folder = Path(folder)
    runs = read_runs(folder)
    page = render(runs, read_evaluations(folder), title or folder.resolve().name)
    file = Path(out) if out is not None else folder / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, page)
    return file


def render(runs: Sequence[Run], shared: Sequence[Evaluation], title: str) -> str:
    """The page of runs as HTML; ``shared`` are evaluations of the folder above several runs."""
    try:
        import jinja2
        import matplotlib  # noqa: F401
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError(f"the report needs {error.name}: pip install 'hardneg[train]'") from None
    columns = evaluation_columns(runs, shared)
    base = columns[0] if columns and columns[0].evaluation.name == START else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": _signed, "duration": _duration, "spoken": _spoken, "count": _count}
    return environment.get_template("page.html").render(
        title=title,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        runs=runs,
        facts=_facts(runs),
        columns=columns,
        base=base,
        table=_table(columns, base),
        versus=_versus(columns, base),
        ruler=_ruler(columns),
        hardness=_hardness_picture(runs),
        hardness_rows=_hardness_rows(runs),
        progress=_progress_pictures(runs),
        reasons=_reasons(runs),
        dropped=_dropped_picture(runs),
        shares=[_mean(run, "dropped_share") for run in runs],
        empty=[_mean(run, "empty_rows") for run in runs],
        empty_picture=_empty_picture(runs),
        lessons=_lessons(runs),
        moved=[
            (column, changes(base.evaluation, column.evaluation))
            for column in columns
            if base is not None and column is not base and _comparable(base, column)
        ],
        text_of=lambda evaluation, name: evaluation.documents[name],
    )


def evaluation_columns(runs: Sequence[Run], shared: Sequence[Evaluation]) -> list[Column]:
    """The evaluations as columns: the start first, once where all runs share it; a run's "final" bears its name."""
    several = len(runs) > 1
    columns = [Column(each.name, each, "muted") for each in shared] if several else []
    for number, run in enumerate(runs, 1):
        for each in run.evaluations:
            known = [c.evaluation.means for c in columns if c.evaluation.name == START == each.name]
            if each.means in known:
                continue
            label = each.name if not several else run.name if each.name == FINAL else f"{run.name}: {each.name}"
            columns.append(Column(label, each, _run_colour(number)))
    return sorted(columns, key=lambda column: column.evaluation.name != START)


def difference(before: Evaluation, after: Evaluation, measure: str) -> Difference | None:
    """How much a measure rose, query by query; None where the two were not asked the same."""
    if before.split != after.split or measure not in before.means or measure not in after.means:
        return None
    mean = after.means[measure] - before.means[measure]
    then = dict(zip(before.query_names, before.by_query.get(measure, ()), strict=False))
    now = dict(zip(after.query_names, after.by_query.get(measure, ()), strict=False))
    if then.keys() != now.keys():
        return None
    if len(then) < 2:
        return Difference(mean, None)
    each = np.array([now[query] - then[query] for query in then])
    return Difference(mean, float(1.96 * each.std(ddof=1) / math.sqrt(len(each))))


# ---- before and after ------------------------------------------------------------------------------------------------


def _table(columns: Sequence[Column], base: Column | None) -> list[dict[str, Any]]:
    measures = dict.fromkeys(measure for column in columns for measure in column.evaluation.means)
    rows = []
    for measure in measures:
        values = [column.evaluation.means.get(measure) for column in columns]
        best = max((value for value in values if value is not None), default=None)
        rows.append(
            {
                "measure": measure,
                "cells": [
                    {
                        "value": value,
                        "best": value == best and len(columns) > 1,
                        "difference": None
                        if base is None or column is base
                        else difference(base.evaluation, column.evaluation, measure),
                    }
                    for value, column in zip(values, columns, strict=True)
                ],
            }
        )
    return rows


def _versus(columns: Sequence[Column], base: Column | None) -> dict[str, Any] | None:
    """The last run against the first, where exactly two were trained: what mining added to the same training."""
    trained = [column for column in columns if column is not base]
    if base is None or len(trained) != 2:
        return None
    first, last = trained
    found = {m: difference(first.evaluation, last.evaluation, m) for m in last.evaluation.means}
    return {"first": first, "last": last, "differences": {m: d for m, d in found.items() if d is not None}}


def _comparable(one: Column, other: Column) -> bool:
    return one.evaluation.split == other.evaluation.split


def _ruler(columns: Sequence[Column]) -> dict[str, Any] | None:
    """The first measure of every column as a dot on one scale."""
    if not columns or not columns[0].evaluation.means:
        return None
    measure = next(iter(columns[0].evaluation.means))
    shown = [(column, column.evaluation.means[measure]) for column in columns if measure in column.evaluation.means]
    return {"measure": measure, "dots": shown, "scale": Scale.of([value for _, value in shown], 0.1)}


def _facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Facts by row, one value per run; a single one where all runs agree."""
    names = dict.fromkeys(name for run in runs for name in run.facts)
    rows = []
    for name in names:
        values = [run.facts.get(name, "–") for run in runs]
        rows.append((name, values[:1] if len(set(values)) == 1 else values))
    return rows


# ---- curves ----------------------------------------------------------------------------------------------------------


def _hardness_picture(runs: Sequence[Run]) -> Picture | None:
    from hardneg.report.pictures import Line, Panel, draw

    panels = []
    for run, direction in _panels(runs):
        lines = []
        if (positives := recorded_positives(run.records, direction)) is not None:
            lines.append(Line("positive (of the recorded anchors)", positives, "positive", dots=True))
        if (hardest := run.curve("hardness_max", direction)) is not None:
            lines.append(Line("hardest negative of each anchor", hardest, "negative"))
        if (mean := run.curve("hardness_mean", direction)) is not None:
            lines.append(Line("all negatives", mean, "negative", dashed=True))
        panels.append(Panel(_panel_title(runs, run, direction), lines))
    panels = [panel for panel in panels if panel.lines]
    return draw("Hardness over time", panels, "similarity to the anchor") if panels else None


def recorded_positives(records: Sequence[Record], direction: str) -> Curve | None:
    """Mean score of the recorded anchors' positives at each recorded step; ``""`` takes every direction."""
    of = [record for record in records if direction in ("", record.direction) and math.isfinite(record.positive.score)]
    if not of:
        return None
    steps, place = np.unique([record.step for record in of], return_inverse=True)
    totals = np.bincount(place, weights=[record.positive.score for record in of])
    return Curve(steps.astype(np.float64), totals / np.bincount(place))


def _hardness_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Similarities in the first and in the last tenth of the logged steps."""
    rows = []
    for run, direction in _panels(runs):
        curves = {
            "positive": recorded_positives(run.records, direction),
            "hardest negative": run.curve("hardness_max", direction),
            "all negatives": run.curve("hardness_mean", direction),
        }
        ends = {name: _ends(curve) for name, curve in curves.items() if curve is not None and len(curve.values)}
        if ends:
            rows.append({"label": _panel_title(runs, run, direction), "ends": ends})
    return rows


def _progress_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Loss, and beside it the validation measure where it was taken more than once."""
    from hardneg.report.pictures import Line, Panel, draw

    wanted = {"Loss": ("train/loss", "loss"), "Validation": (_validation_column(runs), None)}
    found = []
    for title, (name, unit) in wanted.items():
        lines = [
            Line(_spoken(run.name) if len(runs) > 1 else name, run.curves[name], _run_colour(number))
            for number, run in enumerate(runs, 1)
            if name in run.curves
        ]
        if lines and (title == "Loss" or any(len(line.curve.steps) > 1 for line in lines)):
            found.append((title, lines, unit or name))
    width = 5.1 if len(found) == 2 else 10.4
    return [draw(title, [Panel("", lines)], label, width) for title, lines, label in found]


def _validation_column(runs: Sequence[Run]) -> str:
    names = [name for run in runs for name in run.curves if name.startswith("val/")]
    return next((name for name in names if name == "val/nDCG@10"), min(names, default=""))


def _dropped_picture(runs: Sequence[Run]) -> Picture | None:
    """What miners judged to be no negative; identities are counted in the table alone, they never change."""
    from hardneg.report.pictures import Line, Panel, draw
    from miners.pool import IDENTITY

    reasons = [r for r in dict.fromkeys(chain(*(run.reasons() for run in runs))) if r not in IDENTITY]
    # not the runs' colours: here every run has its own panel
    colours = {reason: ("negative", "run-4", "run-5", "run-6")[at % 4] for at, reason in enumerate(reasons)}
    panels = []
    for run, direction in _panels(runs):
        curves = {reason: run.curve(f"dropped/{reason}", direction) for reason in reasons}
        lines = [Line(reason, curve, colours[reason]) for reason, curve in curves.items() if curve is not None]
        if lines:
            panels.append(Panel(_panel_title(runs, run, direction), lines))
    return draw("Candidates dropped by miners", panels, "candidates per step", floor=True) if panels else None


def _empty_picture(runs: Sequence[Run]) -> Picture | None:
    from hardneg.report.pictures import Line, Panel, draw

    panels = []
    for run, direction in _panels(runs):
        curve = run.curve("empty_rows", direction)
        if curve is not None and np.nansum(curve.values) > 0:
            line = Line("anchors without negatives", curve, "negative")
            panels.append(Panel(_panel_title(runs, run, direction), [line]))
    return draw("Anchors left without negatives", panels, "anchors per step", floor=True) if panels else None


def _reasons(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Mean number of candidates that each reason took in a step, directions added, for each run."""
    rows = []
    for reason in sorted({reason for run in runs for reason in run.reasons()}):
        meaning = MEANINGS.get(reason, f"judged by the miner '{reason}'")
        rows.append({"reason": reason, "meaning": meaning, "means": [_mean(r, f"dropped/{reason}") for r in runs]})
    return rows


def _mean(run: Run, name: str) -> float | None:
    """Mean of a column over steps; added over directions, but a share is averaged."""
    curves = [curve for direction in run.directions if (curve := run.curve(name, direction)) is not None]
    means = [float(np.nanmean(curve.values)) for curve in curves if not np.isnan(curve.values).all()]
    if not means:
        return None
    return sum(means) / (len(means) if name.endswith("_share") else 1)


def _panels(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    return [(run, direction) for run in runs for direction in run.directions]


def _panel_title(runs: Sequence[Run], run: Run, direction: str) -> str:
    parts = [_spoken(run.name)] if len(runs) > 1 else []
    return " · ".join(parts + ([_spoken(direction)] if direction else []))


def _ends(curve: Curve) -> tuple[float, float]:
    tenth = max(len(curve.values) // 10, 1)
    return float(np.mean(curve.values[:tenth])), float(np.mean(curve.values[-tenth:]))


# ---- texts -----------------------------------------------------------------------------------------------------------


def _lessons(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run with records: anchors early and late, on one scale of similarity."""
    lessons = []
    for run in runs:
        rows = early_and_late(run.records)
        shown = [record for row in rows for record in row if record is not None]
        scores = [scored.score for record in shown for scored in (record.positive, *record.negatives)]
        if shown:
            lessons.append({"run": run, "rows": rows, "scale": Scale.of(scores, 0.2), "shares": _above(run.records)})
    return lessons


def _above(records: Sequence[Record]) -> Mapping[str, float]:
    """Share of recorded anchors whose hardest negative scored above the positive, in the first and last third."""
    first, last = min(record.step for record in records), max(record.step for record in records)
    third = (last - first) / 3
    thirds = {
        "first": [record for record in records if record.step <= first + third],
        "last": [record for record in records if record.step >= last - third],
    }
    above = {
        name: [any(n.score > record.positive.score for n in record.negatives) for record in of]
        for name, of in thirds.items()
    }
    return {name: sum(of) / len(of) for name, of in above.items()}


# ---- words -----------------------------------------------------------------------------------------------------------


def _run_colour(number: int) -> str:
    return f"run-{(number - 1) % 6 + 1}"


def _signed(value: float, digits: int = 3) -> str:
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest if hours == 0 else 0, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _spoken(word: str) -> str:
    """A name of the code as words: query_to_document -> query to document."""
    return "in-batch" if word == "in_batch" else word.replace("_", " ")
