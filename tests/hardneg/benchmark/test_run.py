from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from hardneg.benchmark import run as running
from hardneg.benchmark.cell import RUN
from hardneg.benchmark.run import differing, make_plan, read_records, run_suite
from hardneg.benchmark.suite import Cell
from hardneg.benchmark.tables import read_results

ROOT = Path(__file__).parents[3]
TIMES = ["seconds", "seconds_before_training", "refresh_seconds", "wall_seconds", "cpu_seconds"]


def stub(cell: Cell, folder: Path, group: str = "", wandb: bool = False) -> None:
    """Leave a record as a run would, without running: the option's number is the quality."""
    if cell.chain == "broken":
        raise ValueError("no such thing")
    place = folder / cell.key
    place.mkdir()
    means = {"dev": {"nDCG@10": float(cell.option == 1)}}
    record = cell.content | {"key": cell.key, "label": cell.label, "means": means, "wall_seconds": 2.0, "weights": "w"}
    numbers = ("steps", "samples", "seconds", "seconds_before_training", "refresh_seconds", "cpu_seconds")
    record |= dict.fromkeys(numbers, 1) | {"queries": {"dev": 1}, "machine": {}}
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"key": [cell.key], "split": ["dev"], "measure": ["nDCG@10"], "value": [float(cell.option == 1)]}),
        place / "scores.parquet",
    )
    pq.write_table(pa.table({"key": [cell.key], "name": ["loss"], "value": [0.0]}), place / "curves.parquet")
    (place / RUN).write_text(json.dumps(record))


def test_killed_and_restarted_gives_the_same_to_the_last_digit(suite_file, make_suite, tmp_path, caplog):
    suite = make_suite()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-m", "tests.hardneg.benchmark.killed", str(suite_file()), str(broken), "7"]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert len(read_records(broken / "cells")) == 2  # the start and one run; the second was at its third step
    assert list((broken / "cells").glob(".*.part"))
    kept = {file: file.stat().st_mtime_ns for file in broken.glob(f"cells/*/{RUN}")}
    with caplog.at_level(logging.INFO, "hardneg.benchmark"):
        run_suite(suite, broken)
    assert "2 of 5 cells are finished and kept" in caplog.text
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert not list((broken / "cells").glob(".*"))
    run_suite(suite, whole)
    one, other = read_results(whole), read_results(broken)
    pd.testing.assert_frame_equal(one.runs.drop(columns=TIMES), other.runs.drop(columns=TIMES), check_exact=True)
    pd.testing.assert_frame_equal(one.scores, other.scores, check_exact=True)
    columns = ["key", "name", "step", "samples", "value"]
    pd.testing.assert_frame_equal(one.curves[columns], other.curves[columns], check_exact=True)
    assert one.curves[one.curves.name == "dev/nDCG@10"].step.tolist() == [0, 2, 4, 2, 4, 2, 4, 2, 4]
    assert one.runs.weights.nunique() == 1
    assert (one.of("run").steps == 4).all()


def test_a_killed_suite_leaves_no_process_behind(suite_file, tmp_path):
    cells = tmp_path / "out" / "cells"
    command = [sys.executable, "-m", "tests.hardneg.benchmark.orphans", str(suite_file()), str(cells.parent)]
    suite = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(list(cells.glob("*.beat"))) == 2)
    finally:
        suite.kill()
        suite.wait()

    def beats() -> set[str]:
        return {file.read_text() for file in cells.glob("*.beat")}

    def silent() -> bool:
        before = beats()
        time.sleep(0.5)
        return beats() == before

    wait_until(silent)


def wait_until(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.05)


def test_a_changed_cell_is_run_again_and_said(make_suite, tmp_path, caplog):
    run_suite(make_suite(), tmp_path / "out", runner=stub)
    size = {"data": {"init_args": {"batch_miner": {"init_args": {"cluster_size": 3}}}}}
    changed = make_suite(chains={"in-batch": ["miners/in_batch.yaml"], "ngame": ["miners/ngame.yaml", size]})
    before = set(read_records(tmp_path / "out" / "cells"))
    with caplog.at_level(logging.INFO, "hardneg.benchmark"):
        run_suite(changed, tmp_path / "out", runner=stub)
    assert "3 of 5 cells are finished and kept" in caplog.text
    said = "changed since it was run, so it is run again: zoo / words / ngame / seed 1"
    assert f"{said} (phases.data.init_args.batch_miner.init_args.cluster_size)" in caplog.text
    assert len(set(read_records(tmp_path / "out" / "cells")) - before) == 2
    runs = read_results(tmp_path / "out").runs
    assert len(runs) == 5  # the tables speak of the suite as it is now
    assert not make_plan(changed.runs({}), tmp_path / "out" / "cells").missing


def test_dev_chooses_and_trials_are_recorded(make_suite, tmp_path):
    options = [{"model": {"init_args": {"learning_rate": rate}}} for rate in (0.1, 0.2, 0.3)]
    run_suite(make_suite(tune=options), tmp_path / "out", runner=stub)
    results = read_results(tmp_path / "out")
    trials = results.of("tune")
    assert trials[["chain", "option", "chosen"]].values.tolist() == [
        [chain, option, option == 1] for chain in ("in-batch", "ngame") for option in (0, 1, 2)
    ]
    assert set(results.of("run").option) == {1}
    assert results.about["options"]["ngame"] == options


def test_a_failing_cell_costs_no_other(make_suite, tmp_path):
    suite = make_suite(chains={"broken": [], "in-batch": ["miners/in_batch.yaml"]}, baseline="in-batch")
    with pytest.raises(RuntimeError, match=r"2 cells failed.*\n  zoo / words / broken / seed 0: no such thing"):
        run_suite(suite, tmp_path / "out", runner=stub)
    results = read_results(tmp_path / "out")
    assert results.of("run").chain.tolist() == ["in-batch", "in-batch"]
    assert list(results.about["failed"]) == ["zoo / words / broken / seed 0", "zoo / words / broken / seed 1"]


def test_a_misspelt_option_ends_before_anything_is_run(make_suite, tmp_path):
    chains = {"in-batch": ["miners/in_batch.yaml"], "x": [{"model": {"init_args": {"learning_rte": 1}}}]}
    with pytest.raises(ValueError, match=r"zoo / words / x / seed 1: (.*\n)*.*learning_rte"):
        run_suite(make_suite(chains=chains), tmp_path / "out")
    assert not read_records(tmp_path / "out" / "cells")


def test_several_processes_do_the_same(make_suite, tmp_path):
    chains = {"broken": [], "in-batch": ["miners/in_batch.yaml"]}
    with pytest.raises(RuntimeError, match=r"2 cells failed.*\n.*seed \d: no such thing\n.*seed \d: no such thing$"):
        run_suite(make_suite(chains=chains), tmp_path / "out", processes=2, runner=stub)
    assert len(read_results(tmp_path / "out").of("run")) == 2


def test_an_estimate_knows_what_cells_took(make_suite, tmp_path):
    suite = make_suite(seeds=1, expect_seconds=50)
    cells = [*suite.start_cells(), *suite.runs({})]
    assert running.estimate(suite, make_plan(cells, tmp_path), tmp_path) == (150, 0)
    stub(suite.runs({})[0], tmp_path)
    assert running.estimate(suite, make_plan(cells, tmp_path), tmp_path) == (50 + 2, 0)
    unknown = make_suite(seeds=1)
    assert running.estimate(unknown, make_plan(cells, tmp_path), tmp_path) == (2, 1)


def test_every_look_at_the_test_split_is_counted(make_suite, tmp_path):
    chains = {"in-batch": ["miners/in_batch.yaml"]}
    for steps in (1, 2):
        suite = make_suite(chains=chains, seeds=1, budget={"steps": steps}, test=True)
        run_suite(suite, tmp_path / "out")
    results = read_results(tmp_path / "out")
    assert results.about["test_reads"] == 3  # start, and two versions of the run
    assert results.split == "test"
    assert set(results.scores.split) == {"dev", "test"}


def test_a_broken_record_is_refused_by_name_and_run_again(make_suite, tmp_path, caplog):
    suite = make_suite(seeds=1)
    run_suite(suite, tmp_path / "out", runner=stub)
    (file, *_) = (tmp_path / "out" / "cells").glob(f"*/{RUN}")
    file.write_text("{")
    with pytest.raises(ValueError, match=rf"{file}.*`hardneg benchmark run SUITE.* runs this cell again"):
        read_records(tmp_path / "out" / "cells")
    with caplog.at_level(logging.WARNING, "hardneg.benchmark"):
        run_suite(suite, tmp_path / "out", runner=stub)
    assert str(file) in caplog.text
    assert len(read_records(tmp_path / "out" / "cells")) == 3


def test_differing_names_places():
    assert list(differing({"a": 1, "b": [{"c": 2}]}, {"a": 1, "b": [{"c": 3}]})) == ["b.c"]
    assert list(differing({"b": [1]}, {"b": [1, 2]})) == ["b"]
