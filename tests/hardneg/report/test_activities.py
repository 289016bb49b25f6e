"""Pictures of a classification."""

from __future__ import annotations

from pathlib import Path

import torch

from hardneg.report.activities import confusion, draw_confusion, draw_map


def test_confusion_counts_rows_of_truth() -> None:
    truth, predicted = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 1, 2, 0, 2])
    assert confusion(truth, predicted, 3).tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]


def test_pictures_are_files_that_do_not_change(tmp_path: Path) -> None:
    truth, predicted = torch.arange(12) % 3, torch.arange(12) % 2
    vectors = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    classes = ("wave", "walk", "sit <still>")
    for draw in (
        lambda file: draw_confusion(truth, predicted, classes, file, "a title"),
        lambda file: draw_map(vectors, truth, classes, file, "a title"),
    ):
        svg = draw(tmp_path / "one" / "picture.svg").read_text()
        assert svg.startswith("<?xml")
        assert "<script" not in svg
        assert len(svg) > 2000
    for few in (1, 3):
        assert draw_map(vectors[:few], truth[:few], classes, tmp_path / "few.svg").exists()
