"""The recipes of composed retrieval from the command line, on tiny sets in the layouts of the real ones."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import yaml

from hardneg.benchmark.cell import check_cell, find_overlay
from hardneg.benchmark.suite import read_suite
from hardneg.cli import configs_folder, main
from hardneg.encoders import load_composed
from miners.store import Store
from tests.composed import write_cirr, write_fashioniq, write_triplets
from tests.hardneg.encoders.test_clip import write_clip

REAL = Path(os.environ.get("HARDNEG_DATA", "nowhere"))
QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--evaluate_start=false",
    "--trainer.max_epochs=1",
]
SMALL = """
data: {{init_args: {{size: 16, batch_size: 32}}}}
model:
  init_args:
    encoder:
      init_args:
        images: {{init_args: {{dim: 8, backbone: {{init_args: {{size: 16, width: 4}}}}}}}}
        texts: {{init_args: {{model: {model}, num_layers: null, max_seq_length: null}}}}
        combiner: {{init_args: {{image_dim: 8, text_dim: 8}}}}
"""


def columns(run: Path) -> set[str]:
    with (run / "metrics.csv").open() as lines:
        return set(next(csv.reader(lines)))


def emoji(folder: Path) -> Path:
    """The layout of emoji_cir, with its pictures in images.zip."""
    import shutil

    write_triplets(folder)
    shutil.make_archive(str(folder / "images"), "zip", folder / "pictures")
    (folder / "images.csv").write_text((folder / "pictures.csv").read_text().replace("caption", "name"))
    return folder


def test_emoji_from_stage_1_to_stage_2_with_gist_and_made_triplets(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emoji(tmp_path / "emoji_cir")
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL.format(model=tiny_model))
    first = ["--config=recipes/cir_emoji.yaml", "--config=small.yaml"]
    assert main(["fit", *first, *QUICK]) == 0
    run = tmp_path / "runs" / "cir_emoji" / "version_0"
    there = {path.name for path in run.iterdir()}
    assert {"report.html", "retrievals.svg", "model", "evaluation.json", "negatives.jsonl"} <= there
    assert '<img src="data:image/jpeg;base64,' in (run / "report.html").read_text()
    assert {"val/R@1", "val/R@10", "val/Rsubset@1", "train/loss"} <= columns(run)
    assert load_composed(str(run / "model")).dim == 8
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    assert main(["predict", *first, *QUICK[:3], "--folder=runs/cir_emoji", f"--ckpt_path={checkpoint}"]) == 0
    store = Store.load(tmp_path / "runs" / "cir_emoji" / "stores" / "image")
    assert len(store) == 16
    made = ["make-triplets", "--captions", "emoji_cir/images.csv", "--caption", "name", "--first-rank", "2"]
    made += ["--features", "runs/cir_emoji/stores/image", "--last-rank", "5", "--out", "made.jsonl"]
    assert main(["data", *made]) == 0
    assert len(Path("made.jsonl").read_text().splitlines()) == 16
    second = ["--config=recipes/cir_emoji_stage2.yaml", *QUICK, "--data.size=16", "--data.batch_size=32"]
    assert main(["fit", *second, "--data.extra=made.jsonl", "--data.twins=none"]) == 0
    run = tmp_path / "runs" / "cir_emoji_stage2" / "version_0"
    assert "train/negatives_per_anchor" in columns(run)
    origins = {
        n["origin"]
        for line in (run / "negatives.jsonl").read_text().splitlines()
        for n in json.loads(line)["negatives"]
    }
    assert origins == {"bank"}
    assert main(["fit", *second, "--config=miners/static_bank_gist.yaml"]) == 0
    assert "train/dropped/gist" in columns(tmp_path / "runs" / "cir_emoji_stage2" / "version_1")


@pytest.mark.parametrize("name", ["fashioniq", "cirr"])
def test_the_layouts_of_fashioniq_and_cirr(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    {"fashioniq": write_fashioniq, "cirr": write_cirr}[name](tmp_path / name)
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    options = [f"--config=recipes/cir_{name}.yaml", *QUICK, "--trainer.precision=32", "--data.num_workers=0"]
    options += ["--data.size=16", "--data.batch_size=16", f"--folder={tmp_path / 'run'}"]
    options += [f"--model.encoder.images.model={write_clip(tmp_path / 'clip')}"]
    options += ["--data.categories=[dress,shirt]"] if name == "fashioniq" else []
    assert main(["fit", *options]) == 0
    wanted = {
        "fashioniq": {"val/R@10 (dress)", "val/R@50 (shirt)", "val/R@10 (average)", "val/Rmean"},
        "cirr": {"val/R@1", "val/R@50", "val/Rsubset@1", "val/Rsubset@3", "val/mean"},
    }[name]
    run = tmp_path / "run" / "version_0"
    assert wanted <= columns(run)
    assert {"retrievals.svg", "model"} <= {path.name for path in run.iterdir()}


def test_recipes_and_their_parts_agree() -> None:
    """A recipe says what its data and model overlays say."""
    folder = configs_folder()

    def read(name: str) -> dict:
        return yaml.safe_load((folder / f"{name}.yaml").read_text())

    recipe, data, model = read("recipes/cir_emoji"), read("data/emoji_cir"), read("models/cir_small")
    assert recipe["data"]["init_args"].items() <= data["data"]["init_args"].items()
    assert recipe["model"] == model["model"]
    assert read("recipes/cir_emoji_stage2")["data"] == recipe["data"]


def test_the_suite_can_be_read(tmp_path: Path) -> None:
    suite = read_suite(configs_folder() / "suites" / "cir.yaml", find_overlay)
    cells = suite.runs({})
    assert len(cells) == 2 * 4 * 3
    for cell in cells[:8]:
        check_cell(cell, tmp_path)


@pytest.mark.parametrize("name", ["emoji_cir", "nlvr_cir"])
def test_real_files(name: str) -> None:
    if not (REAL / name).exists():
        pytest.skip(f"HARDNEG_DATA does not hold {name}")
    from datamodules import TripletsData

    options = yaml.safe_load((configs_folder() / "data" / f"{name}.yaml").read_text())["data"]["init_args"]
    data = TripletsData(**options | {"twins": "none", "in_memory": False})
    data.setup("fit")
    data.setup("test")
    rows, queries, gallery = {"emoji_cir": (8317, 3558, 3386), "nlvr_cir": (8662, 3130, 1578)}[name]
    split = data.split("test")
    assert (len(data.table), len(split.ids), len(split.galleries[""])) == (rows, queries, gallery)
    assert split.right.lengths.float().median() == {"emoji_cir": 1, "nlvr_cir": 5}[name]


def test_real_annotations(tmp_path: Path) -> None:
    """What the specification counted in the files of FashionIQ, CIRR and CIRCO."""
    if not (REAL / "cir_annotations").exists():
        pytest.skip("HARDNEG_DATA does not hold cir_annotations")
    import zipfile

    from datamodules.cir_files import read_circo, read_cirr, read_fashioniq

    for name in ("fashioniq", "cirr", "circo"):
        zipfile.ZipFile(REAL / "cir_annotations" / f"{name}.zip").extractall(tmp_path / name)
    counted = {"dress": (2017, 3817, 2628), "shirt": (2038, 6346, 3089), "toptee": (1961, 5373, 2902)}
    for category, (queries, original, union) in counted.items():
        triplets, names = read_fashioniq(tmp_path / "fashioniq", category, "val")
        used = {name for each in triplets for name in (each.reference, each.target)}
        assert (len(triplets), len(names), len(used)) == (queries, original, union)
        assert used <= set(names)
    triplets, paths = read_cirr(tmp_path / "cirr", "val")
    assert (len(triplets), len(paths)) == (4181, 2297)
    assert {len(each.subset) for each in triplets} == {6}
    listed = json.loads((tmp_path / "cirr" / "captions" / "cap.rc2.val.json").read_text())
    assert sum(len(each["target_soft"]) > 1 for each in listed) == 645
    assert sum(bool(each.soft) for each in triplets) == 96  # the others are listed with -1, as wrong
    assert len(read_cirr(tmp_path / "cirr", "test1")[0]) == 4148
    circo = read_circo(tmp_path / "circo", "val")
    assert len(circo) == 220
    assert all(each.target in each.right for each in circo)
