"""Evaluations side by side: columns, differences, and who is compared with whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hardneg.report.evaluation import Evaluation
from hardneg.report.run import Run
from hardneg.report.thumbnails import Thumbnails
from hardneg.report.words import Scale, run_colour

START, FINAL = "start", "final"


@dataclass(frozen=True)
class Column:
    """An evaluation under the name it has on the page; ``colour`` is that of its run, ``thumbnails`` are its run's."""

    label: str
    evaluation: Evaluation
    colour: str
    thumbnails: Thumbnails = field(default_factory=Thumbnails)


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
            columns.append(Column(label, each, run_colour(number), run.thumbnails))
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


def table(columns: Sequence[Column], base: Column | None) -> list[dict[str, Any]]:
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


def versus(columns: Sequence[Column], base: Column | None) -> dict[str, Any] | None:
    """The last run against the first, where exactly two were trained: what mining added to the same training."""
    trained = [column for column in columns if column is not base]
    if base is None or len(trained) != 2:
        return None
    first, last = trained
    found = {m: difference(first.evaluation, last.evaluation, m) for m in last.evaluation.means}
    return {"first": first, "last": last, "differences": {m: d for m, d in found.items() if d is not None}}


def comparable(one: Column, other: Column) -> bool:
    return one.evaluation.split == other.evaluation.split


def ruler(columns: Sequence[Column]) -> dict[str, Any] | None:
    """The first measure of every column as a dot on one scale."""
    if not columns or not columns[0].evaluation.means:
        return None
    measure = next(iter(columns[0].evaluation.means))
    shown = [(column, column.evaluation.means[measure]) for column in columns if measure in column.evaluation.means]
    return {"measure": measure, "dots": shown, "scale": Scale.of([value for _, value in shown], 0.1)}
