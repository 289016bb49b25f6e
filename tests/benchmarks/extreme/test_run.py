"""The table holds all stages, chains and measures, with the suite tool's verdicts; the suite ships whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.extreme import run
from hardneg.benchmark.statistics import estimate
from hardneg.benchmark.tables import Results


def results() -> Results:
    """Three chains, three seeds, ten queries; in stage 1 NGAME is right for two queries more."""
    names = [f"{measure}{ending}" for measure in run.MEASURES for ending in run.STAGES.values()]
    runs, scores = [], []
    for chain in ("in-batch", "ngame", "refreshed index"):
        for seed in range(3):
            key = f"{chain}{seed}"
            row = {
                "key": key,
                "data": "set",
                "model": "m",
                "chain": chain,
                "seed": seed,
                "purpose": "run",
                "seconds": 9.0,
            }
            for name in names:
                right = 5 + 2 * (chain == "ngame" and name.endswith("encoder"))
                values = [float(query < right) for query in range(10)]
                row[f"test/{name}"] = sum(values) / 10
                scores += [(key, "test", name, str(query), value) for query, value in enumerate(values)]
            runs.append(row)
    untrained = {f"test/{measure}": 0.1 for measure in run.MEASURES}
    runs.append({"key": "s", "data": "set", "model": "m", "chain": "start", "seed": 0, "purpose": "start"} | untrained)
    about = {
        "name": "extreme",
        "test": True,
        "measure": "P@1",
        "baseline": "in-batch",
        "chains": ["in-batch", "ngame", "refreshed index"],
        "data": ["set"],
        "models": ["m"],
        "margin": 0.01,
        "level": 0.05,
        "budget": {"steps": 4},
        "threads": 1,
        "queries": {"set": {"test": 10}},
    }
    columns = ["key", "split", "measure", "query", "value"]
    return Results(pd.DataFrame(runs), pd.DataFrame(scores, columns=columns), pd.DataFrame(), about)


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.benchmark.compare.estimate", partial(estimate, resamples=20))
    (table,) = run.tables(results())
    rows = {row[:2]: row[2:] for row in table.rows}
    assert len(rows) == 10
    assert rows["start", "untrained"] == ("10.00", "10.00", "10.00", "10.00", "0")
    assert rows["1: encoder", "ngame"][0].startswith("70.00 ± 0.00, ")
    assert rows["1: encoder", "in-batch"][0] == "50.00 ± 0.00"
    assert rows["3: fused", "refreshed index"][3] == "50.00 ± 0.00, equivalent"
    page = run.page(results(), "command")
    assert "## set" in page
    assert "set 10 queries" in page


def test_the_suite_is_cut_down_and_ships_whole(tmp_path: Path) -> None:
    suite = run.chosen(run.parse(["--folder", str(tmp_path), "--data", "xc_onet_dwa", "--seeds", "1", "--steps", "4"]))
    assert list(suite.data) == ["xc_onet_dwa"]
    assert (suite.seeds, suite.budget) == ((0,), {"steps": 4})
    assert [chain.name for chain in suite.chains] == ["in-batch", "ngame", "refreshed index"]
    with pytest.raises(SystemExit, match="--data nothing: the suite has xc_attack_procedures, xc_onet_dwa"):
        run.chosen(run.parse(["--folder", str(tmp_path), "--data", "nothing"]))
