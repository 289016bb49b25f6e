"""The activity benchmark: its statistics by hand, its chains, and a small run of two methods that can be taken up."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from benchmarks.har import run as benchmark
from tests.recordings import write_packed


def rows(**values: list[float]) -> list[dict[str, Any]]:
    """Accuracies by method: seeds 0 and 1, draws 0 and 1 of each."""
    return [
        {"method": method, "seed": at // 2, "labels": 10.0, "draw": at % 2, "accuracy": value, "macro-F1": value / 2}
        for method, of in values.items()
        for at, value in enumerate(of)
    ]


def test_intervals_are_over_seeds_and_draws() -> None:
    found = benchmark.summary(rows(hard=[0.4, 0.6, 0.7, 0.9]), "accuracy")
    mean, half = found["hard", 10.0]
    assert mean == pytest.approx(0.65)
    # seeds' means 0.5 and 0.8, draws' 0.55 and 0.75: the bootstrap's errors come near 0.15 and 0.10
    assert half == pytest.approx(stats.t.ppf(0.975, 1) * math.hypot(0.15, 0.1), rel=0.1)
    assert math.isnan(benchmark.summary(rows(hard=[0.4, 0.6]), "accuracy")["hard", 10.0][1])  # of one seed nobody knows


def test_differences_are_paired_and_judged_together() -> None:
    found = benchmark.against_baseline(
        rows(baseline=[0.1, 0.5, 0.3, 0.4], hard=[0.2, 0.6, 0.4, 0.5], both=[0.1, 0.5] * 2)
    )
    assert set(found) == {(measure, method, 10.0) for measure in benchmark.MEASURES for method in ("hard", "both")}
    hard = found["accuracy", "hard", 10.0]
    assert hard.estimate.mean == pytest.approx(0.1)
    assert hard.verdict == "better"  # the same everywhere
    assert found["accuracy", "both", 10.0].verdict == "inconclusive"


def test_table_says_what_is_there() -> None:
    text = benchmark.table(rows(baseline=[0.1, 0.5, 0.3, 0.5], both=[0.2, 0.6, 0.4, 0.6]))
    assert "| baseline | 0.350 ±" in text
    assert "| both | +0.100 ± 0.000 better |" in text
    assert "all 2 comparisons" in text
    assert "supervised" not in text


def test_methods_differ_by_their_miners_alone() -> None:
    names = {
        method: [miner["class_path"] for miner in benchmark.chain("utd_mhad", method, 0.2, 0.03)]
        for method in benchmark.METHODS
    }
    assert names["baseline"] == ["miners.InBatch"]
    assert names["both"] == ["miners.InBatch", "miners.HardnessConcentration", "miners.Debiased"]
    assert benchmark.chain("wharf", "hard", 0.2, 0.03)[1]["class_path"] == "miners.SelfBlocks"


def test_a_run_is_written_and_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_packed(tmp_path / "utd_mhad", joints=20)
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    arguments = ["utd_mhad", "--seeds=1", "--draws=2", "--epochs=1", "--accelerator=cpu", f"--out={tmp_path / 'out'}"]
    arguments += ["--labels", "50", "100", "--methods", "supervised", "both"]
    benchmark.main([*arguments, "--override=--data.batch_size=4"])
    found = benchmark.read(tmp_path / "out")
    assert len(found) == 2 * (2 + 1)  # two draws of a half, one of everything
    assert {row["method"] for row in found} == {"supervised", "both"}
    assert all(0 <= row["macro-F1"] <= 1 for row in found)
    assert {"table.md", "plot.svg", "machine.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    shutil.rmtree(tmp_path / "out" / "runs")  # the committed table is enough to go on from
    benchmark.main([*arguments, "--override=--data.batch_size=4"])
    assert "seed 0:" not in capsys.readouterr().out  # nothing was left to do
