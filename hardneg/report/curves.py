"""Which logged columns become which picture, and the few numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from hardneg.report.pictures import Line, Panel, Picture, draw
from hardneg.report.run import Curve, Record, Run
from hardneg.report.words import run_colour, spoken
from miners.pool import IDENTITY

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


def hardness_picture(runs: Sequence[Run]) -> Picture | None:
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


def hardness_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
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


def progress_pictures(runs: Sequence[Run]) -> list[Picture]:
    """Loss, and beside it the validation measure where it was taken more than once."""
    wanted = {"Loss": ("train/loss", "loss"), "Validation": (_validation_column(runs), None)}
    found = []
    for title, (name, unit) in wanted.items():
        lines = [
            Line(spoken(run.name) if len(runs) > 1 else name, run.curves[name], run_colour(number))
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


def dropped_picture(runs: Sequence[Run]) -> Picture | None:
    """What miners judged to be no negative; identities are counted in the table alone, they never change."""
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


def empty_picture(runs: Sequence[Run]) -> Picture | None:
    panels = []
    for run, direction in _panels(runs):
        curve = run.curve("empty_rows", direction)
        if curve is not None and np.nansum(curve.values) > 0:
            line = Line("anchors without negatives", curve, "negative")
            panels.append(Panel(_panel_title(runs, run, direction), [line]))
    return draw("Anchors left without negatives", panels, "anchors per step", floor=True) if panels else None


def reasons(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Mean number of candidates that each reason took in a step, directions added, for each run."""
    rows = []
    for reason in sorted({reason for run in runs for reason in run.reasons()}):
        meaning = MEANINGS.get(reason, f"judged by the miner '{reason}'")
        rows.append({"reason": reason, "meaning": meaning, "means": [mean_of(r, f"dropped/{reason}") for r in runs]})
    return rows


def mean_of(run: Run, name: str) -> float | None:
    """Mean of a column over steps; added over directions, but a share is averaged."""
    curves = [curve for direction in run.directions if (curve := run.curve(name, direction)) is not None]
    means = [float(np.nanmean(curve.values)) for curve in curves if not np.isnan(curve.values).all()]
    if not means:
        return None
    return sum(means) / (len(means) if name.endswith("_share") else 1)


def _panels(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    return [(run, direction) for run in runs for direction in run.directions]


def _panel_title(runs: Sequence[Run], run: Run, direction: str) -> str:
    parts = [spoken(run.name)] if len(runs) > 1 else []
    return " · ".join(parts + ([spoken(direction)] if direction else []))


def _ends(curve: Curve) -> tuple[float, float]:
    tenth = max(len(curve.values) // 10, 1)
    return float(np.mean(curve.values[:tenth])), float(np.mean(curve.values[-tenth:]))
