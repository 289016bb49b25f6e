"""The activity recipes from the command line, on tiny sets in the layout of the real ones, and on the real ones."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import torch

from hardneg.cli import main
from hardneg.encoders import SignalEncoder
from tests.recordings import write_packed, write_wharf

REAL = Path(os.environ.get("HARDNEG_DATA", "nowhere"))
QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.check_val_every_n_epoch=1",
]


def columns(run: Path) -> set[str]:
    with (run / "metrics.csv").open() as lines:
        return set(next(csv.reader(lines)))


def test_two_modalities_with_hard_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_packed(tmp_path / "utd_mhad", joints=20)
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    common = ["--config=recipes/har_utd_mhad.yaml", "--config=miners/hardness_concentration.yaml", *QUICK]
    common += [f"--folder={tmp_path / 'run'}", "--data.batch_size=4", "--trainer.max_epochs=1"]
    common += ["--trainer.limit_train_batches=2"]
    assert main(["fit", *common]) == 0
    run = tmp_path / "run" / "version_0"
    wanted = {"report.html", "confusion.svg", "map.svg", "model", "evaluation.json", "negatives.jsonl", "config.yaml"}
    assert wanted <= {path.name for path in run.iterdir()}
    assert {"val/accuracy", "val/macro-F1", "val/kNN", "val/accuracy inertial", "train/loss"} <= columns(run)
    encoder = SignalEncoder.from_pretrained(run / "model")
    assert encoder.embed(torch.randn(2, 50, 6), "inertial").shape == (2, 128)
    assert bool(encoder.scales["inertial"].known)
    record = json.loads((run / "negatives.jsonl").read_text().splitlines()[0])
    assert record["direction"] == "inertial_to_skeleton"
    assert "recording" in record["anchor"]
    assert "val" in (run / "report.html").read_text()
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    torch.load(checkpoint, weights_only=True)
    assert main(["test", *common, f"--ckpt_path={checkpoint}"]) == 0
    assert main(["predict", *common, f"--ckpt_path={checkpoint}"]) == 0
    assert (tmp_path / "run" / "stores" / "skeleton").is_dir()


def test_one_modality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wharf(tmp_path / "wharf")
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    common = ["--config=recipes/har_wharf.yaml", "--config=miners/har_one_modality_hard.yaml", *QUICK]
    common += [f"--folder={tmp_path / 'run'}", "--data.batch_size=8", "--trainer.max_epochs=1"]
    common += ["--trainer.limit_train_batches=2"]
    assert main(["fit", *common, "--evaluate_start=false"]) == 0
    assert {"val/accuracy", "val/macro-F1"} <= columns(tmp_path / "run" / "version_0")


def test_a_trained_encoder_is_named_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hardneg.encoders import InertialConvolutions, SkeletonCooccurrence

    write_packed(tmp_path / "utd_mhad", joints=20)
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    encoder = SignalEncoder({"inertial": InertialConvolutions(6), "skeleton": SkeletonCooccurrence()}, dim=24)
    encoder.save_pretrained(tmp_path / "model")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "model:\n  init_args:\n    encoder:\n      class_path: hardneg.encoders.load_signals\n"
        f"      init_args:\n        folder: {tmp_path / 'model'}\n"
    )
    arguments = ["fit", "--config=recipes/har_utd_mhad.yaml", f"--config={overlay}", *QUICK, "--data.batch_size=4"]
    arguments += [f"--folder={tmp_path / 'run'}", "--trainer.max_steps=1", "--evaluate_start=false"]
    assert main([*arguments, "--trainer.limit_val_batches=0"]) == 0
    assert SignalEncoder.from_pretrained(tmp_path / "run" / "version_0" / "model").dim == 24


@pytest.mark.parametrize(("recipe", "name"), [("har_utd_mhad", "utd_mhad"), ("har_wharf", "wharf")])
def test_real_files(recipe: str, name: str, tmp_path: Path) -> None:
    if not (REAL / name).exists():
        pytest.skip(f"HARDNEG_DATA does not hold {name}")
    arguments = ["fit", f"--config=recipes/{recipe}.yaml", *QUICK, f"--folder={tmp_path}", "--trainer.max_steps=2"]
    assert main([*arguments, "--evaluate_start=false", "--trainer.limit_val_batches=0"]) == 0
    assert SignalEncoder.from_pretrained(tmp_path / "version_0" / "model").dim == 128
