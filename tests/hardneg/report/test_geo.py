"""Pictures of a localisation: frames say right, wrong or a part of the place; maps say where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hardneg.report.geo import MOST_AREAS, ShownQuery, draw_errors, draw_retrieved

GREEN, RED, ORANGE = "#2ca02c", "#d62728", "#ff7f0e"
PICTURE = torch.zeros(3, 4, 4, dtype=torch.uint8)


def shown(grades: list[int], metres: float | None = None) -> ShownQuery:
    return ShownQuery(PICTURE, PICTURE, [PICTURE] * len(grades), grades, "a" * 40, 1234, metres)


def test_frames_are_green_red_and_orange(tmp_path: Path) -> None:
    for grades, colours in (([1, 0, -1], {GREEN, RED, ORANGE}), ([-1], {ORANGE}), ([0], {RED})):
        text = draw_retrieved([shown(grades)], tmp_path / "x" / "retrieved.svg").read_text()
        assert {colour for colour in (GREEN, RED, ORANGE) if colour in text} == colours
        assert text.count("<image") == 2 + len(grades)
    assert "rank 1,234 -->" in text  # matplotlib says in a comment what the outlines spell


def test_metres_or_elsewhere(tmp_path: Path) -> None:
    for metres, said in ((1500.4, ", 1,500 m"), (float("inf"), ", elsewhere"), (None, "rank 1,234 -->")):
        assert said in draw_retrieved([shown([0], metres)], tmp_path / "retrieved.svg").read_text()


def test_a_map_for_each_area(tmp_path: Path) -> None:
    here = torch.arange(12.0).view(6, 2)
    metres = torch.tensor([0, 5, torch.inf, 2, torch.inf, torch.inf])
    areas = torch.tensor([0, 0, 0, 1, 1, 2])
    text = draw_errors(here, here + 1, metres, areas, False, tmp_path / "errors.svg", "split 'val'").read_text()
    for queries, elsewhere in ((3, 1), (2, 1), (1, 1)):
        assert f"{queries} queries, {elsewhere} taken to be elsewhere (x)" in text
    assert text.count('id="axes_') == 3 + 1  # and the colours
    many = torch.arange(30)
    text = draw_errors(
        torch.zeros(30, 1), torch.ones(30, 1), torch.ones(30), many, False, tmp_path / "e.svg"
    ).read_text()
    assert text.count('id="axes_') == MOST_AREAS + 1
    text = draw_errors(here, here, torch.zeros(6), None, True, tmp_path / "e.svg").read_text()
    assert text.count('id="axes_') == 2


def test_panoramas_get_a_wide_column(tmp_path: Path) -> None:
    widths = []
    for size in ((4, 4), (4, 8), (4, 400)):
        query = ShownQuery(torch.zeros(3, *size, dtype=torch.uint8), PICTURE, [PICTURE], [1], "a", 1)
        head = draw_retrieved([query], tmp_path / "retrieved.svg").read_text()
        widths.append(float(head.split('<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="')[1].split("pt")[0]))
    assert widths[1] / widths[0] == pytest.approx(4 / 3)
    assert widths[2] / widths[0] == pytest.approx(5 / 3)
