"""The sheet of composed retrievals."""

from __future__ import annotations

from pathlib import Path

import torch

from hardneg.report.composed import ShownRetrieval, draw_retrievals


def test_right_and_wrong_are_framed_and_texts_are_there(tmp_path: Path) -> None:
    picture = torch.zeros(3, 4, 4, dtype=torch.uint8)
    shown = ShownRetrieval(picture, "make it blue", [(picture, 0.9, False), (picture, 0.8, True)], picture)
    text = draw_retrievals([shown, shown], tmp_path / "runs" / "sheet.svg", "title").read_text()
    assert text.count("<image") == 8
    assert "#2ca02c" in text  # green
    assert "#d62728" in text  # red
    grey = ShownRetrieval(picture[:1], "x", [(picture[:1], 0.9, True)], picture[:1])
    assert "#d62728" not in draw_retrievals([grey], tmp_path / "grey.svg").read_text()
