"""MoCo from the command line, on tiny pictures in the layout of ImageNet, and on the real small sets."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch

from hardneg.benchmark.cell import check_cell, find_overlay
from hardneg.benchmark.suite import read_suite
from hardneg.cli import main
from hardneg.encoders import ImageEncoder
from miners import Store
from tests.pictures import write_classes

REAL = Path(os.environ.get("HARDNEG_DATA", "nowhere"))
QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def columns(run: Path) -> set[str]:
    with (run / "metrics.csv").open() as lines:
        return set(next(csv.reader(lines)))


def test_the_suite_can_be_read(tmp_path: Path) -> None:
    suite = read_suite(find_overlay("suites/ssl.yaml"), find_overlay)
    assert [chain.name for chain in suite.chains] == ["MoCo", "MoCo + MoCHi"]
    for cell in suite.runs({})[:4]:
        check_cell(cell, tmp_path)


def test_imagenet100(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "imagenet100", each=4, size=40)
    common = ["--config=recipes/moco_imagenet100.yaml", "--config=miners/mochi_imagenet100.yaml", *QUICK]
    common += [f"--data.folder={folder}", f"--folder={tmp_path / 'run'}", "--data.batch_size=6", "--data.num_workers=0"]
    common += ["--data.size=32", "--model.encoder.backbone.name=resnet18", "--model.batch_norm_groups=2"]
    steps = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--evaluate_start=false"]
    assert main(["fit", *common, *steps]) == 0
    run = tmp_path / "run" / "version_0"
    there = {path.name for path in run.iterdir()}
    assert {"report.html", "neighbours.html", "model", "evaluation.json", "negatives.jsonl"} <= there
    assert '<img src="data:image/jpeg;base64,' in (run / "report.html").read_text()
    assert {"val/accuracy", "val/kNN", "train/loss", "train/waiting_share"} <= columns(run)
    encoder = ImageEncoder.from_pretrained(run / "model")
    assert encoder.embed(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "image").shape == (2, 128)
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    torch.load(checkpoint, weights_only=True)
    assert main(["predict", *common, f"--ckpt_path={checkpoint}"]) == 0
    assert list(Store.load(tmp_path / "run" / "stores" / "image").names)[:1] == ["train/blue/0.JPEG"]


@pytest.mark.parametrize(("overlay", "name"), [("clothing10", "clothing10"), ("omniglot_crops", "omniglot_small")])
def test_real_files(overlay: str, name: str, tmp_path: Path) -> None:
    if not (REAL / name).exists():
        pytest.skip(f"HARDNEG_DATA does not hold {name}")
    arguments = ["fit", f"--config=data/{overlay}.yaml", "--config=models/moco_ir_resnet_small.yaml", *QUICK]
    arguments += [f"--folder={tmp_path}", "--trainer.max_steps=1", "--evaluate_start=false", "--data.batch_size=8"]
    assert main([*arguments, "--data.num_workers=0", "--trainer.limit_val_batches=0"]) == 0
    assert ImageEncoder.from_pretrained(tmp_path / "version_0" / "model").dim == 128
