from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hardneg.report.curves import dropped_picture, empty_picture, hardness_rows, mean_of, reasons, recorded_positives
from hardneg.report.run import read_runs

BOTH = ("query_to_document", "document_to_query")


def test_identities_stand_in_the_table_and_judgements_in_the_picture(
    tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    runs = read_runs(make_run(tmp_path))
    picture = dropped_picture(runs)
    assert picture is not None
    assert [label for label, _, _ in picture.legend] == ["gist"]
    assert {row["reason"]: row["means"] for row in reasons(runs)} == {"gist": [1.0], "positive": [4.0]}


def test_an_unknown_reason_is_named_by_its_miner(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    file = make_run(tmp_path) / "metrics.csv"
    file.write_text(file.read_text().replace("dropped/gist", "dropped/mine"))
    assert {row["meaning"] for row in reasons(read_runs(tmp_path))} >= {"judged by the miner 'mine'"}


def test_counts_are_added_over_directions_and_shares_are_not(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    file = make_run(tmp_path, directions=BOTH) / "metrics.csv"
    lines = file.read_text().splitlines()
    shares = [f"train/{direction}/dropped_share" for direction in BOTH]
    file.write_text("\n".join([",".join([lines[0], *shares]), *(line + ",0.2,0.4" for line in lines[1:])]) + "\n")
    (run,) = read_runs(tmp_path)
    assert mean_of(run, "empty_rows") == pytest.approx(2)
    assert mean_of(run, "dropped_share") == pytest.approx(0.3)
    assert mean_of(run, "nothing") is None


def test_no_picture_of_what_never_happened(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    assert empty_picture(read_runs(make_run(tmp_path / "one"))) is None
    assert empty_picture(read_runs(make_run(tmp_path / "two", directions=BOTH))) is not None


def test_hardness_at_both_ends(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    ((row),) = hardness_rows(read_runs(make_run(tmp_path, steps=30)))
    first, last = row["ends"]["hardest negative"]  # 0.6 - step / 30, tenths of three steps
    assert (first, last) == pytest.approx((0.6 - 1 / 30, 0.6 - 28 / 30))


def test_positives_of_a_step_are_averaged(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    (run,) = read_runs(make_run(tmp_path))
    curve = recorded_positives(run.records, "query_to_document")
    assert curve is not None
    assert curve.steps.tolist() == [0, 2, 4]
    assert curve.values == pytest.approx([0.5, 0.52, 0.54])
    assert recorded_positives(run.records, "document_to_query") is None
