"""The table of samplers: verdicts by the house's statistics, cells kept, and a dry run that trains nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.lemon import run


def cells(rank: float, seeds: int = 3) -> list[dict]:
    ranks = [np.full(200, rank) + np.random.default_rng(seed).integers(0, 2, 200) for seed in range(seeds)]
    return [
        {"measures": {"MRR": float((1 / of).mean()), "Hits@1": float((of <= 1).mean())}, "ranks": of, "seconds": 2.0}
        for of in ranks
    ]


def test_table_compares_with_uniform_and_with_the_control() -> None:
    found = {"uniform": cells(5), "clusters": cells(2), "clusters, shuffled": cells(2)}
    rows = {row[0]: row for row in run.table(found).rows}
    assert rows["clusters"][-3].endswith("better")
    assert rows["clusters"][-2].endswith("equivalent")
    assert rows["uniform"][-3:-1] == ("", "")
    assert rows["clusters, shuffled"][-3].endswith("better")


def test_a_dry_run_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--folder", str(tmp_path), "--seeds", "2", "--samplers", "uniform", "nearest", "--dry-run"]
    run.main(arguments)
    assert "4 cells, 4 left" in capsys.readouterr().out
    place = run.cell(tmp_path, "nearest", 1, run.parse(arguments))
    place.parent.mkdir()
    place.touch()
    run.main(arguments)
    assert "4 cells, 3 left" in capsys.readouterr().out


def test_every_row_with_neighbourhoods_has_its_control() -> None:
    assert {"clusters, shuffled", "nearest, shuffled"} < set(run.SAMPLERS)
    for name, how in run.SAMPLERS.items():
        if how.get("shuffled"):
            assert how == {**run.SAMPLERS[name.removesuffix(", shuffled")], "shuffled": True}
