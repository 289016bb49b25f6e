"""The recipe of pictures with captions from the command line, on tiny diagrams, and its suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from hardneg.benchmark.cell import check_cell, find_overlay
from hardneg.benchmark.suite import read_suite
from hardneg.cli import main
from hardneg.encoders import ImageEncoder

QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
TINY = ["--data.families=4", "--data.members=2", "--data.val_families=2", "--data.test_families=2", "--data.size=16"]
SMALL = ["--model.image_encoder.backbone.size=16", "--model.image_encoder.backbone.width=4", "--data.batch_size=4"]


@pytest.mark.parametrize("overlay", ["", "edited_captions", "generated_pictures", "family_batches"])
def test_the_recipe_trains_and_tests(overlay: str, tmp_path: Path) -> None:
    arguments = ["--config=recipes/diagrams.yaml", *([f"--config=miners/{overlay}.yaml"] if overlay else [])]
    arguments += [*QUICK, *TINY, *SMALL, "--model.text_encoder.num_layers=1", f"--folder={tmp_path / 'run'}"]
    assert main(["fit", *arguments, "--trainer.max_steps=2", "--evaluate_start=false"]) == 0
    assert ImageEncoder.from_pretrained(tmp_path / "run" / "version_0" / "model" / "image").dim == 384


def test_the_suite_can_be_read(tmp_path: Path) -> None:
    suite = read_suite(find_overlay("suites/diagrams.yaml"), find_overlay)
    names = [chain.name for chain in suite.chains]
    assert suite.baseline == "in-batch"
    assert {"in-batch", "+ captions", "+ pictures", "+ both", "families", "+ captions of other pairs"} <= set(names)
    assert suite.measure == "group"
    cells = suite.runs({})
    assert len(cells) == 3 * len(names)
    for cell in cells[:: len(cells) // len(names)]:
        check_cell(cell, tmp_path)
