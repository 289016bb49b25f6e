from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest

from hardneg.benchmark.cell import CURVES, PREPARED, RUN, SPENT, check_cell, run_cell
from hardneg.benchmark.meter import Meter
from hardneg.benchmark.peer import Peer
from miners.transaction import Transaction


class Idle(Peer):
    """Trains nothing, and says so step by step."""

    def __init__(self, loss: float = 1.0) -> None:
        self.loss = loss

    def fit(self, module: Any, data: Any, steps: int, seed: int, meter: Meter, evaluate: Callable[[], None]) -> None:
        assert len(data.table) == 6
        meter.ready()
        for step in range(1, steps + 1):
            meter.trained(step, data.batch_size, {"loss": self.loss})
            evaluate()


def last_run(suite, chain: str) -> Any:
    (cell,) = [cell for cell in suite.runs({}) if cell.chain == chain]
    return cell


def test_a_budget_in_seconds_ends_a_fit(make_suite, tmp_path):
    suite = make_suite(budget={"seconds": 1.0}, points=2, seeds=1)
    record = run_cell(last_run(suite, "in-batch"), tmp_path)
    assert 1.0 <= record["seconds"] < 1.5  # a step more than the budget, and no evaluation
    assert record["steps"] > 4
    assert record["samples"] == 3 * record["steps"]


def test_a_chain_may_prepare_on_the_same_budget(make_suite, tmp_path):
    """In-batch for two of four steps, then the documents are encoded and stay."""
    trained = {"model": {"init_args": {"encoder": {"init_args": {"model": "{work}/model"}}}}}
    frozen = {"model": {"init_args": {"frozen": {"document": "{work}/stores/document"}}}}
    adore = {
        "prepare": [{"fit": ["miners/in_batch.yaml"], "share": 0.5}, {"predict": [trained]}],
        "configs": ["miners/adore.yaml", trained, frozen],
    }
    suite = make_suite(chains={"in-batch": ["miners/in_batch.yaml"], "adore": adore}, seeds=1, points=1)
    cells = tmp_path / "cells"
    plain, both = (run_cell(last_run(suite, chain), cells) for chain in ("in-batch", "adore"))
    assert plain["steps"] == both["steps"] == 4
    assert plain["weights"] == both["weights"]
    assert {path.name for path in (cells / both["key"]).iterdir()} == {RUN, "scores.parquet", "curves.parquet"}


def test_chains_that_begin_alike_train_the_beginning_once_and_pay_for_it_each(make_suite, tmp_path):
    trained = {"model": {"init_args": {"encoder": {"init_args": {"model": "{work}/model"}}}}}
    begin = [{"fit": ["miners/in_batch.yaml"], "share": 0.5}]
    chains = {
        "plain": {"prepare": begin, "configs": ["miners/in_batch.yaml", trained]},
        "again": {"prepare": begin, "configs": ["miners/in_batch.yaml", trained, {"model": {"init_args": {}}}]},
        "other": {"prepare": [{"fit": ["miners/in_batch.yaml"], "share": 0.25}], "configs": [trained]},
    }
    suite = make_suite(chains=chains, baseline="plain", seeds=1)
    cells, shared = tmp_path / "cells", tmp_path / "shared" / PREPARED
    alone = run_cell(last_run(suite, "plain"), cells)
    (place,) = (path for path in shared.iterdir() if path.is_dir())
    spent = json.loads((place / SPENT).read_text())
    spent["meter"]["seconds"] += 5000
    with Transaction(place / SPENT, {name: spent[name] for name in ("weights", "meter", "digests")}):
        pass
    again = run_cell(last_run(suite, "again"), cells)
    assert again["wall_seconds"] < 5000 < again["seconds"]
    assert (again["steps"], again["samples"], again["weights"]) == (4, 12, alone["weights"])
    assert again["means"] == alone["means"]
    points = [pq.read_table(cells / record["key"] / CURVES) for record in (alone, again)]
    assert points[0].column("step").equals(points[1].column("step"))
    assert points[0].column("value").equals(points[1].column("value"))
    run_cell(last_run(suite, "other"), cells)
    assert len([path for path in shared.iterdir() if path.is_dir()]) == 2


def test_a_guide_and_a_refresh_are_counted(make_suite, tmp_path, tiny_model):
    encoder = {"class_path": "hardneg.encoders.TextEncoder", "init_args": {"model": str(tiny_model)}}
    guide = {"model": {"init_args": {"guide": encoder, "allow_same_guide": True}}}
    suite = make_suite(chains={"gist": ["miners/gist.yaml", guide, "miners/mined_on_refresh.yaml"]}, seeds=1)
    record = run_cell(last_run(suite, "gist"), tmp_path)
    assert 0 < record["refresh_seconds"] < record["seconds"]
    assert record["refresh_seconds"] < record["seconds_before_training"] < record["seconds"]


def test_a_guide_that_another_cell_paid_for_is_counted_all_the_same(make_suite, tmp_path, tiny_model):
    encoder = {"class_path": "hardneg.encoders.TextEncoder", "init_args": {"model": str(tiny_model)}}
    arguments = {"guide": encoder, "guide_folder": "{shared}/guide", "allow_same_guide": True}
    suite = make_suite(chains={"gist": ["miners/gist.yaml", {"model": {"init_args": arguments}}]}, seeds=1)
    cells = tmp_path / "cells"
    run_cell(last_run(suite, "gist"), cells)
    spent = sorted((tmp_path / "shared" / "guide").glob("*/spent.json"))
    assert len(spent) == 2
    for file in spent:
        file.write_text(json.dumps({"seconds": 50.0}))
    record = run_cell(last_run(suite, "gist"), cells)
    assert 100 < record["seconds_before_training"] < record["seconds"]
    assert record["wall_seconds"] < 50


def test_a_peer_trains_in_our_place(make_suite, tmp_path):
    peer = {"class_path": f"{__name__}.Idle", "init_args": {"loss": 3.0}}
    suite = make_suite(chains={"idle": {"peer": peer}}, seeds=1, points=2)
    check_cell(last_run(suite, "idle"), tmp_path)
    record = run_cell(last_run(suite, "idle"), tmp_path)
    start = run_cell(suite.start_cells()[0], tmp_path)
    assert record["means"] == start["means"]
    assert (record["steps"], record["samples"]) == (4, 12)
    assert json.loads((tmp_path / record["key"] / RUN).read_text())["peer"] == peer


@pytest.mark.parametrize(
    ("peer", "budget", "words"),
    [
        ({"class_path": "nowhere.Peer"}, {"steps": 1}, "got 'nowhere.Peer', which cannot be imported"),
        ({"class_path": f"{__name__}.Idle", "init_args": {"x": 1}}, {"steps": 1}, "unexpected keyword argument 'x'"),
        ({"class_path": "pathlib.Path"}, {"steps": 1}, "got 'pathlib.Path', which is no subclass of it"),
        (
            {"class_path": "os.system", "init_args": {"command": "exit 1"}},
            {"steps": 1},
            "which is no class: not called",
        ),
        ({"class_path": f"{__name__}.Idle"}, {"seconds": 1}, "peers count steps"),
    ],
)
def test_a_wrong_peer_is_said_beforehand(make_suite, tmp_path, peer, budget, words):
    suite = make_suite(chains={"idle": {"peer": peer}}, seeds=1, budget=budget)
    with pytest.raises(ValueError, match=words):
        check_cell(last_run(suite, "idle"), tmp_path)


def test_wandb_groups_a_suite(make_suite, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    seen = {}
    import hardneg.benchmark.cell as module

    make = module.make_loggers

    def spy(names, folder):
        import os

        seen.update(names=names, group=os.environ["WANDB_RUN_GROUP"], name=os.environ["WANDB_NAME"])
        return make([], folder)

    monkeypatch.setattr(module, "make_loggers", spy)
    run_cell(make_suite(seeds=1).start_cells()[0], tmp_path, group="tiny", wandb=True)
    assert seen == {"names": ["wandb"], "group": "tiny", "name": "zoo / words / start / seed 0"}
