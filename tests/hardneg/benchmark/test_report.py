from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardneg.benchmark.cell import RUN
from hardneg.benchmark.cli import comparison
from hardneg.benchmark.compare import against_baseline, ranks, unlike_weights
from hardneg.benchmark.report import MARKDOWN, PAGE, _reaching, is_front, write_reports
from hardneg.benchmark.run import run_suite
from hardneg.benchmark.suite import Cell
from hardneg.benchmark.tables import read_results

GAIN = {"start": -0.3, "in-batch": 0.0, "better": 0.1, "alike": 0.0, "worse": -0.1}
OPTION = {"model": {"init_args": {"learning_rate": 0.1}}}


@pytest.fixture(autouse=True)
def _quick_collections() -> Iterator[None]:
    """As in test_statistics."""
    gc.freeze()
    yield
    gc.unfreeze()


def stub(cell: Cell, folder: Path, group: str = "", wandb: bool = False) -> None:
    """A run whose chain decides how good it is, with a little noise."""
    generator = np.random.default_rng([cell.seed, len(cell.chain), len(cell.data)])
    base = np.random.default_rng(len(cell.data)).uniform(0.4, 0.6, 30)
    values = base + GAIN[cell.chain] + generator.normal(0, 0.002, 30)
    place = folder / cell.key
    place.mkdir()
    split = "test" if cell.test else "dev"
    scores = {"key": [cell.key] * 30, "split": [split] * 30, "measure": ["nDCG@10"] * 30}
    pq.write_table(
        pa.table(scores | {"query": [f"q{i}" for i in range(30)], "value": values}), place / "scores.parquet"
    )
    names = ["loss", "hardness_max", "dropped_share", "dev/nDCG@10"]
    curves = {"key": [cell.key] * 8, "name": names * 2, "step": [1] * 4 + [2] * 4, "seconds": [1.0] * 4 + [2.0] * 4}
    curves |= {"samples": [8] * 4 + [16] * 4, "value": [1.0, 0.5, 0.1, 0.3, 0.5, 0.4, 0.2, float(values.mean())]}
    pq.write_table(pa.table(curves), place / "curves.parquet")
    mean = {"nDCG@10": float(values.mean())}
    record = cell.content | {"key": cell.key, "label": cell.label, "means": {"dev": mean, "test": mean}}
    record |= {"steps": 2, "samples": 16, "seconds": 2.0 + len(cell.chain), "seconds_before_training": 0.5}
    record |= {"refresh_seconds": 0.25, "cpu_seconds": 2.0, "wall_seconds": 3.0, "weights": f"w{cell.seed}"}
    record |= {"queries": {split: 30}, "machine": {"cores": 2}}
    (place / RUN).write_text(json.dumps(record))


@pytest.fixture
def results_folder(make_suite: Callable, suite_file: Callable, tmp_path: Path) -> Callable[..., Path]:
    """A finished suite of two data sets, four chains and three seeds."""

    def make(name: str = "out", **changes) -> Path:
        chains = {chain: [] for chain in GAIN if chain != "start"}
        data = {"zoo": [], "another zoo": []}
        run_suite(make_suite(**({"chains": chains, "data": data, "seeds": 3} | changes)), tmp_path / name, runner=stub)
        return tmp_path / name

    return make


def test_verdicts_are_those_of_the_scores(results_folder):
    found = {
        (each.data, each.chain): each.judgement.verdict for each in against_baseline(read_results(results_folder()))
    }
    right = {"start": "worse", "better": "better", "alike": "equivalent", "worse": "worse"}
    assert found == {(data, chain): v for data in ("zoo", "another zoo", "all data sets") for chain, v in right.items()}


def test_time_to_the_baseline_is_read_off_between_evaluations(results_folder):
    """dev goes from 0.2 to 0.3 in the first second, and to the run's own mean in the next."""
    folder = results_folder(data={"zoo": []})
    results = read_results(folder)
    runs = results.of("run")
    ((seconds, times), *others) = sorted(_reaching(results, runs, "better"))
    goal, own = (
        runs[(runs.chain == chain) & (runs.seed == 0)]["dev/nDCG@10"].item() for chain in ("in-batch", "better")
    )
    straight = 1 + (goal - 0.3) / (own - 0.3)
    assert straight in [pytest.approx(one) for one, _ in ((seconds, times), *others)]
    assert times == pytest.approx(seconds / 2)
    assert _reaching(results, runs, "in-batch") == [(2.0, 1.0)] * 3
    assert _reaching(results, runs, "worse") == []
    text = write_reports(folder)[0].read_text()
    assert "2.0 s, 1.00 x (3 of 3)" in text
    assert "| 0 of 3 |" in text


def test_a_reference_is_measured_and_not_judged(results_folder):
    folder = results_folder(references={"the guide": []})
    results = read_results(folder)
    assert len(results.runs) == 2 * (
        2 + 3 * 4
    )  # two data sets: model and guide as they come, three seeds of four chains
    assert {each.model for each in against_baseline(results)} == {"words"}
    rows = [line for line in write_reports(folder)[0].read_text().splitlines() if line.startswith("| the guide |")]
    assert len(rows) == 3  # each data set, and both together
    assert all(row.endswith("| as it comes |  |  |  |  |") for row in rows)


def test_ranks_join_what_was_not_told_apart(results_folder):
    mean_ranks, p_values = ranks(read_results(results_folder()))
    assert mean_ranks["better"] == 1
    assert mean_ranks["worse"] == 4
    assert p_values.loc["in-batch", "alike"] > 0.05
    assert p_values.loc["better", "worse"] < 0.05


def test_the_report_can_be_made_again_from_the_tables_alone(results_folder, tmp_path):
    folder = results_folder(tune=[OPTION, {}], test=True)
    write_reports(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for table in folder.glob("*.parquet"):
        (elsewhere / table.name).write_bytes(table.read_bytes())
    write_reports(elsewhere)
    for file in (MARKDOWN, PAGE):
        assert (elsewhere / file).read_text() == (folder / file).read_text()


def test_what_the_report_says(results_folder):
    folder = results_folder(tune=[OPTION, {}])
    markdown, page = (file.read_text() for file in write_reports(folder))
    assert "over 2 data sets. Better: better (+0.1" in markdown
    assert "equivalent within 0.01: alike" in markdown.lower()
    assert "| better | 3 |" in markdown
    assert "learning_rate=0.1" in markdown
    assert not re.findall(r"<script|src=|@import|url\((?!#)", page)
    headings = ("Which to choose", "Ranks", "While it learned", "What it learned from", "What was run")
    assert all(f"<h2>{heading}</h2>" in page for heading in headings)
    assert page.count("<svg") == 8
    assert not re.findall(r"#01[0-9a-f]{2}fe", page)  # every stand-in became a variable of the page
    assert not re.findall(
        r"(?:fill|stroke): (?!none|var)", page
    )  # and nothing has a colour that dark mode cannot reach


def test_a_chain_that_began_elsewhere_is_said(results_folder):
    folder = results_folder(chains={"in-batch": [], "better": []})
    results = read_results(folder)
    assert unlike_weights(results) == []
    results.runs.loc[results.runs.chain == "better", "weights"] = "other"
    assert unlike_weights(results) == [f"{d} / words / seed {s}" for s in range(3) for d in ("zoo", "another zoo")]


def test_a_pareto_front():
    means = np.array([[1.0, 0.5], [2.0, 0.4], [2.0, 0.7], [1.0, 0.5]])
    assert [is_front(means, row) for row in range(4)] == [True, False, True, True]


def test_two_suites_and_two_chains_are_compared(results_folder):
    one = results_folder("one", chains={"in-batch": [], "better": []})
    other = results_folder("other", chains={"in-batch": [], "worse": []})
    assert "| zoo / words / in-batch | 0.0000 | 0.0000 to 0.0000 | 1.0000 | equivalent within 0.01 |" in comparison(
        str(one), str(other)
    )
    text = comparison(f"{one}::better", f"{other}::worse")
    assert re.search(r"\| zoo / words / worse \| −0\.\d+ .* worse ", text)
    with pytest.raises(ValueError, match="nothing to compare"):
        comparison(f"{one}::nobody", f"{other}::worse")
    (other / "runs.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="hardneg benchmark run SUITE"):
        comparison(str(one), str(other))
