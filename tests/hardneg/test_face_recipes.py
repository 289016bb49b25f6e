"""The face recipes from the command line, on tiny sets in the layout of the real ones, and on the real ones."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch
import yaml

from hardneg.cli import configs_folder, main
from hardneg.encoders import load_images
from tests.faces import write_bin, write_lfw, write_rec, write_table

REAL = Path(os.environ.get("HARDNEG_DATA", "nowhere"))
QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--evaluate_start=false",
]
TINY = ["--data.size=16", "--data.batch_size=8", "--model.encoder.backbone.size=16", "--model.encoder.backbone.width=4"]


def columns(run: Path) -> set[str]:
    with (run / "metrics.csv").open() as lines:
        return set(next(csv.reader(lines)))


def test_orl_with_unpg_and_balanced_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / "orl_faces")
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    common = ["--config=recipes/orl_faces.yaml", "--config=miners/arcface.yaml", "--config=miners/unpg.yaml"]
    common += ["--config=miners/balanced_classes.yaml", *QUICK, *TINY, f"--folder={tmp_path / 'run'}"]
    common += ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    assert main(["fit", *common]) == 0
    run = tmp_path / "run" / "version_0"
    there = {path.name for path in run.iterdir()}
    assert {"report.html", "roc.svg", "hardest_pairs.svg", "model", "evaluation.json", "negatives.jsonl"} <= there
    assert '<img src="data:image/jpeg;base64,' in (run / "report.html").read_text()
    assert {"val/accuracy", "val/AUC", "train/loss", "train/UNPG/kept_share"} <= columns(run)
    chain = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["miners"]
    assert [miner["class_path"] for miner in chain] == ["miners.ArcFace", "miners.InBatch", "miners.UNPG"]
    assert load_images(str(run / "model")).dim == 128
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    torch.load(checkpoint, weights_only=True)
    assert main(["test", *common, f"--ckpt_path={checkpoint}"]) == 0


def test_a_cross_set_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / "orl_faces")
    london = write_table(tmp_path / "london_faces", identities=4, each=2, train=0, val=0)
    lines = (london / "metadata.csv").read_text().splitlines()
    kinds = ["expression", *["neutral", "smiling"] * 4]
    (london / "metadata.csv").write_text("\n".join(f"{line},{kind}" for line, kind in zip(lines, kinds, strict=True)))
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    arguments = ["test", "--config=recipes/orl_faces.yaml", "--config=data/london_faces_test.yaml"]
    assert main([*arguments, *QUICK[:3], *TINY, f"--folder={tmp_path / 'run'}"]) == 0


def test_the_layout_of_ms1mv2_and_lfw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rec(tmp_path / "faces_emore")
    write_bin(tmp_path / "faces_emore" / "lfw.bin")
    write_lfw(tmp_path)
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    common = ["--config=recipes/faces_ms1mv2.yaml", *QUICK, *TINY, "--model.encoder.backbone.layers=18"]
    common += ["--data.num_workers=0", "--trainer.precision=32", f"--folder={tmp_path / 'run'}"]
    assert main(["fit", *common, "--config=miners/unpg.yaml", "--trainer.max_epochs=1"]) == 0
    run = tmp_path / "run" / "version_0"
    assert "val/accuracy" in columns(run)
    assert (run / "roc.svg").exists()
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    assert main(["test", *common, f"--ckpt_path={checkpoint}"]) == 0


def test_recipes_and_their_parts_agree() -> None:
    """A recipe says what its data and model overlays say."""
    folder = configs_folder()
    for name in ("orl_faces", "omniglot_small"):
        recipe = yaml.safe_load((folder / "recipes" / f"{name}.yaml").read_text())
        data = yaml.safe_load((folder / "data" / f"{name}.yaml").read_text())
        model = yaml.safe_load((folder / "models" / "ir_resnet_small.yaml").read_text())["model"]["init_args"]
        assert recipe["data"] == data["data"]
        assert {**model, **data.get("model", {}).get("init_args", {})}.items() <= recipe["model"]["init_args"].items()


@pytest.mark.parametrize("name", ["orl_faces", "omniglot_small"])
def test_real_files(name: str, tmp_path: Path) -> None:
    if not (REAL / name).exists():
        pytest.skip(f"HARDNEG_DATA does not hold {name}")
    arguments = ["fit", f"--config=recipes/{name}.yaml", "--config=miners/unpg.yaml", *QUICK, f"--folder={tmp_path}"]
    assert main([*arguments, "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]) == 0
    assert load_images(str(tmp_path / "version_0" / "model")).dim == 128
