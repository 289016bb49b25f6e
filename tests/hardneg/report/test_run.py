from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hardneg.losses import InfoNCE
from hardneg.report.run import _call, read_curves, read_records, read_runs
from miners import NGAME, PositiveAware


def test_blank_cells_belong_to_other_rows(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,train/loss,val/MAP\n0,0,2.5,\n0,1,nan,\n0,1,,0.4\n")
    curves = read_curves(file)
    assert set(curves) == {"train/loss", "val/MAP"}
    assert curves["train/loss"].steps.tolist() == [0, 1]
    assert curves["train/loss"].values[0] == 2.5
    assert curves["val/MAP"].values.tolist() == [0.4]


def test_no_file_is_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "metrics.csv") == {}
    assert read_records(tmp_path / "negatives.jsonl") == []


def test_a_cell_that_is_no_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,2.5\n1,much\n")
    with pytest.raises(ValueError, match=r"metrics.csv, line 3, column 'train/loss': .*'much'"):
        read_curves(tmp_path / "metrics.csv")


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column 'step' in its first line; this is not the file of a CSVLogger"):
        read_curves(tmp_path / "metrics.csv")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Expecting property name"),
        ("[]", "indices must be integers"),
        ('{"step": 1, "direction": "d", "anchor": "a", "positive": {"text": "p"}}', "no 'score'"),
    ],
)
def test_a_bad_record_is_named_with_its_line(
    tmp_path: Path, make_run: Callable[..., Path], line: str, words: str
) -> None:
    file = make_run(tmp_path) / "negatives.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"negatives.jsonl, line 2: not a record of RecordNegatives") as error:
        read_records(file)
    assert words in str(error.value)


def test_a_record_without_text_is_read(tmp_path: Path) -> None:
    file = tmp_path / "negatives.jsonl"
    file.write_text(
        '{"step": 1, "direction": "d", "anchor": null, "positive": {"text": null, "score": -0.5}, "negatives": []}\n'
    )
    (record,) = read_records(file)
    assert record.anchor == record.positive.text == "(no text)"
    assert record.positive.score == -0.5


def test_a_folder_is_its_own_run(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    make_run(tmp_path / "mine")
    make_run(tmp_path / "mine" / "older")
    (run,) = read_runs(tmp_path / "mine")
    assert run.name == "mine"
    assert run.reasons() == ("gist", "positive")
    assert run.directions == ("",)


def test_runs_below_bear_what_tells_them_apart_in_natural_order(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    for name in ("seed_0/v_10/version_0", "seed_0/v_9/version_0", ".trash/v_1/version_0"):
        make_run(tmp_path / name)
    assert [run.name for run in read_runs(tmp_path)] == ["v_9", "v_10"]


def test_directions_are_found_in_the_columns(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    directions = ("query_to_document", "document_to_query")
    (run,) = read_runs(make_run(tmp_path, directions=directions))
    assert run.directions == directions
    curve = run.curve("hardness_max", "document_to_query")
    assert curve is not None
    assert curve.values.tolist() == [0.5] * 6


def test_no_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no run: neither metrics.csv .*Train first.*RecordNegatives"):
        read_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"is no folder. Give the folder of a run"):
        read_runs(tmp_path / "nowhere")


def test_broken_facts_are_named(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    (make_run(tmp_path) / "run.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"run.json: not an object of texts as WriteReport writes it"):
        read_runs(tmp_path)


def test_parts_are_described_by_what_differs_from_the_default() -> None:
    assert _call(PositiveAware()) == "PositiveAware()"
    assert _call(NGAME(cluster_size=8)) == "NGAME(cluster_size=8)"
    assert _call(InfoNCE(temperature=0.1)) == "InfoNCE(temperature=0.1)"
