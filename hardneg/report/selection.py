"""What of many records and rankings the page shows: by even spacing and plain ranks, never for looking good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

from hardneg.metrics.retrieval import DEPTH
from hardneg.report.evaluation import Evaluation, Found, RankedQuery
from hardneg.report.measures import START, Column, comparable
from hardneg.report.run import Record

T = TypeVar("T")
MOST_NEGATIVES = 4  # of a record


@dataclass(frozen=True)
class Change:
    """A query before and after training."""

    before: RankedQuery
    after: RankedQuery

    @property
    def gain(self) -> float:
        """Log of how many times higher the first relevant document stands after training; negative = lower.

        On a log scale 100 -> 50 counts as 2 -> 1: what a reader of the list feels. Beyond the ranking's depth counts
        as the place right behind it.
        """
        return math.log(_place(self.before)) - math.log(_place(self.after))


@dataclass(frozen=True)
class Changes:
    """The queries that moved most, and how many moved at all."""

    better: tuple[Change, ...]
    worse: tuple[Change, ...]
    num_better: int
    num_worse: int
    num_same: int

    @property
    def total(self) -> int:
        return self.num_better + self.num_worse + self.num_same


def changes(before: Evaluation, after: Evaluation, most: int = 6) -> Changes:
    """Compare the rankings of the queries that both evaluations kept; at most ``most`` each way, largest first."""
    then = {query.name: query for query in before.queries}
    pairs = [Change(then[query.name], query) for query in after.queries if query.name in then]
    better = sorted((pair for pair in pairs if pair.gain > 0), key=lambda pair: -pair.gain)
    worse = sorted((pair for pair in pairs if pair.gain < 0), key=lambda pair: pair.gain)
    same = len(pairs) - len(better) - len(worse)
    return Changes(tuple(better[:most]), tuple(worse[:most]), len(better), len(worse), same)


def base_of(columns: Sequence[Column]) -> Column | None:
    """The start, which stands first, if there is one."""
    return columns[0] if columns and columns[0].evaluation.name == START else None


def moved(columns: Sequence[Column]) -> list[tuple[Column, Changes]]:
    """What changed since the start, for each evaluation of its split."""
    base = base_of(columns)
    return [
        (column, changes(base.evaluation, column.evaluation))
        for column in columns
        if base is not None and column is not base and comparable(base, column)
    ]


def top_of(query: RankedQuery) -> tuple[Found, ...]:
    """A ranking down to the right one; at least three, so that one at the top has company to be compared with."""
    return query.top[: max(query.rank, 3)] if query.rank and query.rank <= len(query.top) else query.top


def early_and_late(records: Sequence[Record], rows: int = 6) -> list[tuple[Record | None, Record | None]]:
    """Rows of an anchor of the first third of training beside one of the last third.

    Where the same anchor was recorded in both, it stands beside itself; those come first. The rest is evenly spaced.
    A training with one recorded step has early anchors alone.
    """
    if not records:
        return []
    first, last = min(record.step for record in records), max(record.step for record in records)
    third = (last - first) / 3
    early = {(r.direction, r.anchor): r for r in reversed(records) if r.step <= first + third}  # its first record
    late = {(r.direction, r.anchor): r for r in records if r.step >= last - third and last > first}  # its last
    again = [key for key in reversed(early) if key in late]
    pairs: list[tuple[Record | None, Record | None]] = [(early[key], late[key]) for key in _spaced(again, rows)]
    missing = rows - len(pairs)
    lefts = _spaced([early[key] for key in reversed(early) if key not in late], missing)
    rights = _spaced([late[key] for key in late if key not in early], missing)
    return pairs + list(zip_longest(lefts, rights))


def _spaced(things: Sequence[T], count: int) -> list[T]:
    """``count`` of them, evenly spaced from the first to the last; all where there are fewer."""
    if len(things) <= count:
        return list(things)
    if count <= 1:
        return list(things[:count])
    return [things[round(at * (len(things) - 1) / (count - 1))] for at in range(count)]


def _place(query: RankedQuery) -> int:
    return query.rank or DEPTH + 1
