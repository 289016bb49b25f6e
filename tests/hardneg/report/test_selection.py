from __future__ import annotations

from collections.abc import Sequence

import pytest

from hardneg.report.evaluation import Evaluation, RankedQuery
from hardneg.report.run import Record, Scored
from hardneg.report.selection import changes, early_and_late


def evaluation(ranks: dict[str, int | None]) -> Evaluation:
    queries = tuple(RankedQuery(name, name, rank, "d", ()) for name, rank in ranks.items())
    return Evaluation("e", "dev", {}, tuple(ranks), {}, queries, {"d": "text"})


def record(step: int, anchor: str) -> Record:
    return Record(step, "query_to_document", anchor, Scored("p", 0.5), ())


def shown(rows: Sequence[tuple[Record | None, Record | None]]) -> list[tuple[str | None, str | None]]:
    return [tuple(None if r is None else f"{r.anchor}{r.step}" for r in row) for row in rows]  # type: ignore[misc]


def test_queries_are_ordered_by_how_many_times_higher_they_stand() -> None:
    before = evaluation({"a": 2, "b": 100, "c": 1, "d": 5, "e": None, "gone": 1})
    after = evaluation({"a": 1, "b": 20, "c": 3, "d": 5, "e": 1, "new": 1})
    found = changes(before, after)
    assert [change.after.name for change in found.better] == ["e", "b", "a"]  # 101 times, 5 times, twice
    assert [change.after.name for change in found.worse] == ["c"]
    assert (found.num_better, found.num_worse, found.num_same, found.total) == (3, 1, 1, 5)


def test_only_the_most_changed_are_shown_but_all_are_counted() -> None:
    before = evaluation({str(n): n for n in range(2, 30)})
    after = evaluation({str(n): 1 for n in range(2, 30)})
    found = changes(before, after, most=3)
    assert [change.before.rank for change in found.better] == [29, 28, 27]
    assert found.num_better == 28


def test_what_was_found_at_last_gained_and_what_was_lost_fell() -> None:
    found = changes(evaluation({"a": None, "b": 100}), evaluation({"a": 100, "b": None}))
    assert found.better[0].gain == pytest.approx(-found.worse[0].gain)
    assert found.better[0].gain > 0


def test_the_same_anchor_stands_beside_itself() -> None:
    records = [record(0, "x"), record(1, "y"), record(5, "z"), record(9, "x"), record(9, "w")]
    assert shown(early_and_late(records)) == [("x0", "x9"), ("y1", "w9")]


def test_anchors_are_evenly_spaced_over_their_third() -> None:
    records = [record(step, f"a{step}-") for step in range(31)]
    rows = shown(early_and_late(records, rows=3))
    assert rows == [("a0-0", "a20-20"), ("a5-5", "a25-25"), ("a10-10", "a30-30")]


def test_one_recorded_step_is_early() -> None:
    assert shown(early_and_late([record(4, "x")])) == [("x4", None)]
    assert early_and_late([]) == []
