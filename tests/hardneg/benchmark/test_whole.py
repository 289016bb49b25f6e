"""What a suite leaves behind is whole, or is refused by name and made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardneg.benchmark.cell import CURVES, RUN, SCORES, SPENT, _digests, _is_whole, _write, read_cell
from hardneg.benchmark.meter import Meter
from hardneg.benchmark.run import _note_test, _tidy, read_records, run_suite
from hardneg.benchmark.suite import Cell
from hardneg.benchmark.tables import NAMES, RUNS, TABLES, read_results, write_tables
from hardneg.cli import main
from miners.transaction import Damaged, InUse, Transaction, locked_folder, publish_folder
from tests.faults import crashes

BEFORE = Path(__file__).parents[2] / "samples" / "before" / "cell" / "0123456789ab"
COSTS = ("steps", "samples", "seconds", "seconds_before_training", "refresh_seconds", "wall_seconds", "cpu_seconds")


def make_cell(cell: Cell, folder: Path, group: str = "", wandb: bool = False, value: float = 0.5) -> dict[str, Any]:
    """Publish a cell as a run does, without training."""
    part = folder / f".{cell.key}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    record = cell.content | {"key": cell.key, "label": cell.label, "weights": "w", "machine": {}, "queries": {"dev": 1}}
    record |= dict.fromkeys(COSTS, 1.0) | {"means": {"dev": {"nDCG@10": value}}}
    _write(part, cell.key, Meter(), {"dev": {"nDCG@10": {"q": value}}}, record)
    publish_folder(part, folder / cell.key)
    return record


@pytest.fixture
def results(make_suite: Callable, tmp_path: Path) -> Path:
    """A finished suite."""
    return run_suite(make_suite(seeds=1), tmp_path / "out", runner=make_cell)


def test_a_second_run_on_one_folder_is_refused_in_one_sentence(suite_file, results, capsys):
    before = (results / RUNS).read_bytes()
    with locked_folder(results, "choose another --folder"):
        code = main(["benchmark", "run", str(suite_file(seeds=1)), "--folder", str(results)])
    said = capsys.readouterr().err
    assert code == 1
    assert "is in use by process" in said
    assert "choose another --folder" in said
    assert "Traceback" not in said
    assert (results / RUNS).read_bytes() == before
    assert not (results / "report.md").exists()


@pytest.mark.parametrize("name", [RUN, SCORES, CURVES])
def test_a_damaged_cell_is_refused_by_name_and_run_again(make_suite, results, caplog, name):
    file = sorted((results / "cells").glob(f"*/{name}"))[0]
    whole = file.read_bytes()
    for at in range(0, len(whole), max(len(whole) // 20, 1)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(Damaged, match=f"{file.parent}.*[Rr]un"):
            read_cell(file.parent)
    run_suite(make_suite(seeds=1), results, runner=make_cell)
    assert "runs this cell again" in caplog.text.replace("Runs", "runs")
    assert read_cell(file.parent)[1]
    assert not list((results / "cells").glob(".*"))


def test_tampered_means_reach_no_table(make_suite, results):
    file = sorted((results / "cells").glob(f"*/{RUN}"))[0]
    record = json.loads(file.read_text()) | {"means": {"dev": {"nDCG@10": 0.99}}}
    for gone in ("checksum", "files"):  # as a record of before there were checksums
        del record[gone]
    file.write_text(json.dumps(record))
    run_suite(make_suite(seeds=1), results, runner=make_cell)
    assert set(read_results(results).runs["dev/nDCG@10"]) == {0.5}


def test_a_cell_of_before_is_read_and_said_to_be_unchecked_once(make_suite, results, caplog):
    record, checked = read_cell(BEFORE)
    assert (record["means"], checked) == ({"dev": {"nDCG@10": 0.5}}, False)
    shutil.copytree(BEFORE, results / "cells" / BEFORE.name)
    run_suite(make_suite(seeds=1), results, runner=make_cell)
    assert caplog.text.count("before there were checksums") == 1


def test_a_crash_at_any_step_of_publishing_leaves_no_half_of_a_cell(make_suite, tmp_path):
    cell = make_suite(seeds=1).start_cells()[0]
    count = 0
    cells = tmp_path / "cells"
    for _ in crashes(lambda: make_cell(cell, cells), every=3):
        count += 1
        assert all(record["means"]["dev"] == {"nDCG@10": 0.5} for record in read_records(cells).values())
        _tidy(tmp_path, cells)
        assert not list(cells.glob(".*"))
        shutil.rmtree(cells / cell.key, ignore_errors=True)
    assert count > 5


def test_a_crash_at_any_step_leaves_one_version_of_the_tables(make_suite, tmp_path):
    suite = make_suite(seeds=1)
    cell = suite.start_cells()[0]
    old, new = (make_cell(cell, tmp_path / name, value=value) for name, value in (("a", 0.25), ("b", 0.75)))
    old["folder"], new["folder"] = (str(tmp_path / name / cell.key) for name in ("a", "b"))
    out = tmp_path / "out"
    write_tables(out, suite, [old], {}, {})
    seen = set()
    for _ in crashes(lambda: write_tables(out, suite, [new], {}, {}), every=3):
        found = read_results(out)
        mean = float(found.runs["dev/nDCG@10"][0])
        assert found.scores.value.tolist() == [mean]
        seen.add(mean)
        _tidy(out, out / "cells")
        assert sorted(path.name for path in out.iterdir()) == sorted([*NAMES, TABLES])
        assert read_results(out).scores.value.tolist() == [mean]
        shutil.rmtree(out)
        write_tables(out, suite, [old], {}, {})
    assert seen == {0.25, 0.75}


@pytest.mark.parametrize("name", [*NAMES, TABLES])
def test_a_report_reads_no_damaged_table(results, capsys, name):
    content = bytearray((results / name).read_bytes())
    content[len(content) // 2] ^= 1
    (results / name).write_bytes(content)
    code = main(["benchmark", "report", str(results)])
    said = capsys.readouterr().err
    assert code == 1
    assert str(results / name) in said
    assert "hardneg benchmark run" in said


def test_what_chains_begin_with_is_compared_with_its_checksums(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"123")
    with Transaction(tmp_path / SPENT, {"weights": "w", "meter": {}, "digests": _digests(tmp_path)}):
        pass
    assert _is_whole(tmp_path)
    (tmp_path / "model" / "weights").write_bytes(b"124")
    assert not _is_whole(tmp_path)


def test_a_look_at_test_that_a_kill_cut_off_joins_no_other(make_suite, tmp_path):
    cell = make_suite(seeds=1, test=True).start_cells()[0]
    (tmp_path / "test_reads.jsonl").write_text('{"label": "zo')
    _note_test(tmp_path, cell)
    first, second = (tmp_path / "test_reads.jsonl").read_text().splitlines()
    assert (first, json.loads(second)["key"]) == ('{"label": "zo', cell.key)


def test_the_lock_is_the_folders(results, make_suite):
    with locked_folder(results, "choose another --folder"), pytest.raises(InUse, match="choose another --folder"):
        run_suite(make_suite(seeds=1), results, runner=make_cell)
