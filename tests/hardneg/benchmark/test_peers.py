from __future__ import annotations

import json
from typing import Any

import pyarrow.parquet as pq
import pytest

from hardneg.benchmark.cell import CURVES, RUN, check_cell, run_cell

PEER = "hardneg.benchmark.peers.SentenceTransformersPeer"


def only_run(suite) -> Any:
    (cell,) = suite.runs({})
    return cell


@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_negatives": 1}, {"loss": "MultipleNegativesSymmetricRankingLoss", "batch_sampler": "batch_sampler"}],
)
def test_its_trainer_runs_as_a_cell(make_suite, tmp_path, arguments):
    fast = {"model": {"init_args": {"learning_rate": 0.5}}}  # so that four steps move a document past another
    chains = {"theirs": {"configs": [fast], "peer": {"class_path": PEER, "init_args": arguments}}}
    suite = make_suite(chains=chains, seeds=1, points=2)
    check_cell(only_run(suite), tmp_path)
    record = run_cell(only_run(suite), tmp_path)
    start = run_cell(suite.start_cells()[0], tmp_path)
    assert record["weights"] == start["weights"]  # it began as everybody does,
    assert record["means"] != start["means"]  # and learned
    assert (record["steps"], record["samples"]) == (4, 12)
    assert record["seconds_before_training"] < record["seconds"]
    curves = pq.read_table(tmp_path / record["key"] / CURVES).to_pylist()
    assert [row["step"] for row in curves if row["name"] == "loss"] == [1, 2, 3, 4]
    assert [row["step"] for row in curves if row["name"] == "dev/nDCG@10"] == [2, 4]
    assert json.loads((tmp_path / record["key"] / RUN).read_text())["peer"]["class_path"] == PEER


def test_the_same_seed_gives_the_same_scores(make_suite, tmp_path):
    suite = make_suite(chains={"theirs": {"peer": {"class_path": PEER}}}, seeds=1, points=1)
    means = [run_cell(only_run(suite), tmp_path / folder)["means"] for folder in ("one", "two")]
    assert means[0] == means[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"loss": "BestLoss"}, "sentence-transformers has no such loss"),
        ({"num_negatives": -1}, "wants at least 0"),
    ],
)
def test_mistakes_show_beforehand(make_suite, tmp_path, arguments, words):
    suite = make_suite(chains={"theirs": {"peer": {"class_path": PEER, "init_args": arguments}}}, seeds=1)
    with pytest.raises(ValueError, match=words):
        check_cell(only_run(suite), tmp_path)


def test_a_loss_with_a_guide_wants_one(make_suite, tmp_path):
    peer = {"class_path": PEER, "init_args": {"loss": "GISTEmbedLoss"}}
    suite = make_suite(chains={"theirs": {"peer": peer}}, seeds=1)
    with pytest.raises(ValueError, match="give the chain an overlay with"):
        run_cell(only_run(suite), tmp_path)
