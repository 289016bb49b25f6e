"""The geo recipes from the command line, on tiny sets in the layout of the real ones, and on the real ones."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch
import yaml

from hardneg.cli import configs_folder, main
from hardneg.encoders import load_images, load_towers
from tests.geo import put, view, write_cvusa, write_university, write_walks

REAL = Path(os.environ.get("HARDNEG_DATA", "nowhere"))
QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--evaluate_start=false",
]
FULL = ["--trainer.precision=32", "--data.num_workers=0"]
SMALL = """
model:
  init_args:
    encoder:
      init_args:
        backbone:
          class_path: hardneg.encoders.TorchvisionBackbone
          init_args: {name: resnet18, weights: null, small_stem: true}
"""


def columns(run: Path) -> set[str]:
    with (run / "metrics.csv").open() as lines:
        return set(next(csv.reader(lines)))


def write_sen12(folder: Path) -> Path:
    """Four mosaics of 3 x 5 tiles of 64 pixels."""
    table = ["mosaic,scene,px,py,east_m,south_m,non_overlapping,split"]
    for mosaic, split in (("fall2_0", "train"), ("fall2_1", "train"), ("fall2_2", "train"), ("summer59_0", "train")):
        put(folder / f"sar_{mosaic}.png", view(1, 1, (192, 320)))
        put(folder / f"opt_{mosaic}.png", view(1, 0, (192, 320)))
        for row in range(3):
            for column in range(5):
                place = f"{64 * column},{64 * row},{640 * column},{640 * row},1"
                part = "test_same_area" if row == 2 else split
                table.append(f"{mosaic},{mosaic.split('_')[0]},{place},{part}")
    put(folder / "tiles.csv", "\n".join(table) + "\n")
    return folder


def test_sen12(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sen12(tmp_path / "sen12_pairs")
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    towers = [
        f"--model.encoder.{side}.backbone.{what}" for side in ("query", "document") for what in ("size=16", "width=4")
    ]
    common = ["--config=recipes/geo_sen12.yaml", *QUICK, *towers, "--data.size=16", "--data.batch_size=8"]
    common += [f"--folder={tmp_path / 'run'}", "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=1"]
    assert main(["fit", *common]) == 0
    run = tmp_path / "run" / "version_0"
    there = {path.name for path in run.iterdir()}
    assert {"report.html", "retrieved.svg", "errors.svg", "model", "evaluation.json"} <= there
    assert '<img src="data:image/jpeg;base64,' in (run / "report.html").read_text()
    assert {"val/R@1", "val/AP", "train/loss"} <= columns(run)
    assert load_towers(str(run / "model")).dim == 128
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    torch.load(checkpoint, weights_only=True)
    assert main(["test", *common, f"--ckpt_path={checkpoint}"]) == 0


def test_cvusa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cvusa(tmp_path / "CVUSA")
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    put(tmp_path / "small.yaml", SMALL)
    common = ["--config=recipes/geo_cvusa.yaml", f"--config={tmp_path / 'small.yaml'}", *QUICK, *FULL]
    common += [f"--folder={tmp_path / 'run'}"]
    common += ["--data.size=[16, 32]", "--data.reference_size=16", "--data.batch_size=4", "--trainer.max_epochs=1"]
    assert main(["fit", *common, "--trainer.check_val_every_n_epoch=1"]) == 0
    run = tmp_path / "run" / "version_0"
    assert {"val/R@1", "val/error_m"} <= columns(run)
    assert load_images(str(run / "model")).dim == 512


def test_university1652(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_university(tmp_path / "University-1652")
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    put(tmp_path / "small.yaml", SMALL)
    common = ["--config=recipes/geo_university1652.yaml", f"--config={tmp_path / 'small.yaml'}", *QUICK, *FULL]
    common += ["--data.size=16", "--data.batch_size=4", f"--folder={tmp_path / 'run'}"]
    assert main(["fit", *common]) == 0
    (checkpoint,) = (tmp_path / "run" / "version_0" / "checkpoints").glob("*.ckpt")
    for query in ("drone", "satellite"):
        assert main(["test", *common, f"--data.test.query={query}", f"--ckpt_path={checkpoint}"]) == 0


@pytest.mark.parametrize("miner", ["neighbours", "neighbours_place", "neighbours_similarity"])
def test_overlays_of_the_tower(miner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_walks(tmp_path / "ie_tower")
    lines = (folder / "metadata.csv").read_text()
    for walk, floor in enumerate(("floor3", "floor4", "floor11", "floor14")):
        lines = lines.replace(f",floor{walk},", f",{floor},")
    wanted = ["basement4", "basement3", "basement2", "basement0", *(f"floor{i}" for i in range(3, 17))]
    frames = [f"extra{i}.png,{label},0,hall,main,{100 + i},0,gallery,gallery" for i, label in enumerate(wanted)]
    for i in range(len(wanted)):
        put(folder / "images" / f"extra{i}.png", view(900 + i))
    put(folder / "metadata.csv", lines + "\n".join(frames) + "\n")
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    arguments = [
        "fit",
        "--config=data/ie_tower.yaml",
        "--config=models/geo_small.yaml",
        f"--config=miners/{miner}.yaml",
    ]
    arguments += [*QUICK, "--data.size=16", "--model.encoder.backbone.size=16", "--model.encoder.backbone.width=4"]
    for split in ("train", "val", "test"):
        arguments.append(f"--data.{split}.images=images")
    arguments += ["--data.batch_size=2", f"--folder={tmp_path / 'run'}", "--trainer.max_epochs=5"]
    assert main([*arguments, "--trainer.check_val_every_n_epoch=5"]) == 0
    assert "val/R@1" in columns(tmp_path / "run" / "version_0")


def test_recipe_and_its_parts_agree() -> None:
    folder = configs_folder()
    recipe = yaml.safe_load((folder / "recipes" / "geo_sen12.yaml").read_text())
    data = yaml.safe_load((folder / "data" / "sen12_pairs.yaml").read_text())["data"]
    assert data["init_args"].items() <= recipe["data"]["init_args"].items()
    model = yaml.safe_load((folder / "models" / "geo_towers_small.yaml").read_text())["model"]
    assert model == recipe["model"]
    cross = yaml.safe_load((folder / "data" / "sen12_pairs_cross_area.yaml").read_text())["data"]["init_args"]["test"]
    test = data["init_args"]["test"]
    assert {**cross["init_args"], "where": None} == {**test["init_args"], "where": None}


@pytest.mark.parametrize("overlays", [["sen12_pairs", "geo_towers_small"], ["ie_tower", "geo_small"]])
def test_real_files(overlays: list[str], tmp_path: Path) -> None:
    if not (REAL / overlays[0]).exists():
        pytest.skip(f"HARDNEG_DATA does not hold {overlays[0]}")
    arguments = ["fit", f"--config=data/{overlays[0]}.yaml", f"--config=models/{overlays[1]}.yaml", *QUICK]
    arguments += ["--config=miners/neighbours_place.yaml", f"--folder={tmp_path}", "--trainer.max_steps=1"]
    assert main([*arguments, "--trainer.limit_val_batches=0"]) == 0
