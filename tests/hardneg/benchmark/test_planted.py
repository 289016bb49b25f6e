"""Suites over data whose answer we put there: the verdicts must find it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hardneg.benchmark.cell import find_overlay
from hardneg.benchmark.compare import against_baseline
from hardneg.benchmark.run import run_suite
from hardneg.benchmark.suite import read_suite
from hardneg.benchmark.tables import read_results
from tests.hardneg.benchmark import planted

HERE = "tests.hardneg.benchmark.planted"


def verdicts(
    folder: Path, data: Path, chains: dict[str, Any], dim: int, steps: int, batch_size: int, rate: float
) -> dict[str, Any]:
    """Run a suite of three seeds; what was found of each chain against the first."""
    init = {"folder": str(data), "batch_size": batch_size, "test_split": None}
    encoder = {"class_path": f"{HERE}.Words", "init_args": {"dim": dim}}
    loss = {"class_path": "hardneg.losses.InfoNCE", "init_args": {"temperature": 0.05}}
    model = {"encoder": encoder, "learning_rate": rate, "loss": loss}
    given = {
        "base": [{"trainer": {"accelerator": "cpu"}}],
        "data": {"planted": [{"data": {"class_path": "datamodules.RetrievalData", "init_args": init}}]},
        "models": {"words": [{"model": {"class_path": "hardneg.modules.RetrievalModule", "init_args": model}}]},
        "chains": chains,
        "seeds": 3,
        "budget": {"steps": steps},
        "points": 1,
    }
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump(given, sort_keys=False))
    run_suite(read_suite(file, find_overlay), folder / "out")
    found = against_baseline(read_results(folder / "out"))
    return {each.chain: each.judgement.verdict for each in found}


def guided(guide: str) -> dict[str, Any]:
    miners = [
        {"class_path": "miners.InBatch"},
        {"class_path": "miners.GIST", "init_args": {"margin": 0.1}},
    ]
    return {"model": {"init_args": {"guide": {"class_path": f"{HERE}.{guide}"}, "miners": miners}}}


def test_planted_false_negatives(tmp_path: Path) -> None:
    data = planted.false_negatives(tmp_path / "data")
    source = {
        "class_path": "miners.StaticNegatives",
        "init_args": {"negatives": str(data / "false.parquet"), "num_negatives": 2},
    }
    static = {"data": {"init_args": {"sources": [source]}}}
    chains = {
        "in-batch": ["miners/in_batch.yaml"],
        "static": [static],
        "static, perfect guide": [static, guided("TopicGuide")],
        "static, random guide": [static, guided("CoinGuide")],
    }
    found = verdicts(tmp_path, data, chains, dim=32, steps=40, batch_size=12, rate=0.05)
    assert found.pop("static, perfect guide") != "worse"
    assert found == {"start": "worse", "static": "worse", "static, random guide": "worse"}


def test_planted_hard_negatives(tmp_path: Path) -> None:
    data = planted.hard_negatives(tmp_path / "data")
    size = {"data": {"init_args": {"batch_miner": {"init_args": {"cluster_size": 8}}}}}
    chains = {"in-batch": ["miners/in_batch.yaml"], "ngame": ["miners/ngame.yaml", size]}
    found = verdicts(tmp_path, data, chains, dim=16, steps=50, batch_size=16, rate=0.02)
    assert found["ngame"] == "better"
