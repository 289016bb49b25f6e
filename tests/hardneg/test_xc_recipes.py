"""The extreme classification recipes from the command line, on tiny sets in the layout of the real ones."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from hardneg.cli import main

QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.max_steps=2",
    "--data.batch_size=4",
    "--evaluate_start=false",
]


def write(folder: Path, splits: tuple[str, ...], ending: str, labels: str) -> Path:
    """Eight instances a split, four labels."""
    folder.mkdir(parents=True)

    def lines(name: str, records: list[dict[str, object]]) -> None:
        with gzip.open(folder / f"{name}{ending}", "wt", encoding="utf-8") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)

    lines(labels, [{"uid": f"L{n}", "title": f"label {n}", "text": f"about thing {n}"} for n in range(4)])
    for split in splits:
        records = [{"uid": f"{split}{n}", "text": f"thing {n % 4} of {n}", "target_ind": [n % 4]} for n in range(8)]
        lines(split, [record | ({"title": record.pop("text")} if labels == "lbl" else {}) for record in records])
    return folder


@pytest.mark.parametrize("name", ["xc_attack_procedures", "xc_onet_dwa"])
def test_both_stages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / name, ("train", "dev", "test"), ".jsonl.gz", "labels")
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    recipe = [f"--config=recipes/{name}.yaml", f"--folder={tmp_path / 'run'}", *QUICK]
    assert main(["fit", *recipe]) == 0
    model = tmp_path / "run" / "version_0" / "model"
    assert main(["fit", *recipe, "--config=recipes/xc_classifiers.yaml", f"--model.encoder.model={model}"]) == 0
    with (tmp_path / "run" / "version_1" / "metrics.csv").open() as log:
        assert {"val/P@1", "val/PSP@5 encoder", "val/nDCG@3 classifier"} <= set(next(csv.reader(log)))


def test_lf_amazontitles_131k(tmp_path: Path) -> None:
    folder = write(tmp_path / "LF-AmazonTitles-131K", ("trn", "tst"), ".json.gz", "lbl")
    (folder / "filter_labels_train.txt").write_text("0 1\n")
    (folder / "filter_labels_test.txt").write_text("0 1\n7 2\n")
    recipe = ["--config=recipes/xc_lf_amazontitles_131k.yaml", f"--data.folder={folder}", *QUICK]
    recipe += [f"--folder={tmp_path / 'run'}", "--model.encoder.num_layers=1"]
    assert main(["fit", *recipe]) == 0
    assert (tmp_path / "run" / "version_0" / "model").is_dir()
