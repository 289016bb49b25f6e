from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from hardneg.report.pictures import Line, Panel, draw, thinned
from hardneg.report.run import Curve


def curve(n: int = 5) -> Curve:
    return Curve(np.arange(n, dtype=float), np.sin(np.arange(n)))


def test_colours_are_the_pages_variables() -> None:
    svg = draw(
        "Loss", [Panel("", [Line("a", curve(), "run-1"), Line("b", curve(), "negative", dots=True)])], "nats"
    ).svg
    assert "var(--run-1)" in svg
    assert "var(--negative)" in svg
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)  # nothing that dark mode would not reach
    assert "<?xml" not in svg
    assert "<!DOCTYPE" not in svg
    ElementTree.fromstring(svg)


def test_axes_have_names_and_texts_are_no_markup_and_no_formula() -> None:
    svg = draw(
        "<b>", [Panel('</svg><script>alert("x")</script> $x_$', [Line("l", curve(), "ink")])], "nats & $more"
    ).svg
    tree = ElementTree.fromstring(svg)
    texts = {element.text for element in tree.iter() if element.tag.endswith("text")}
    assert {"optimiser step", "nats & $more", '</svg><script>alert("x")</script> $x_$'} <= texts
    assert not [element for element in tree.iter() if element.tag.endswith("script")]
    assert tree.attrib["aria-label"] == "<b>"


def test_two_pictures_of_a_page_share_no_id() -> None:
    lines = [Line("a", curve(200), "ink")]
    ids = [set(re.findall(r'id="([^"]+)"', draw(title, [Panel("", lines)], "y").svg)) for title in ("One", "Two")]
    assert all(ids)
    assert not ids[0] & ids[1]
    svg = draw("One", [Panel("", lines)], "y").svg
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= ids[0]


def test_the_same_curves_make_the_same_bytes() -> None:
    panels = [Panel("p", [Line("a", curve(300), "ink")])]
    assert draw("t", panels, "y") == draw("t", panels, "y")


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_thinned_is_the_mean_of_every_three(n: int) -> None:
    of = curve(n)
    parts = [slice(start, start + 3) for start in range(0, n, 3)]
    steps, means, lowest, highest = thinned(of, 3)
    assert steps == pytest.approx([of.steps[p].mean() for p in parts])
    assert means == pytest.approx([of.values[p].mean() for p in parts])
    assert lowest.tolist() == [of.values[p].min() for p in parts]
    assert highest.tolist() == [of.values[p].max() for p in parts]


def test_long_curves_are_averaged_and_say_so() -> None:
    short, long = ([Panel("", [Line("a", curve(n), "ink")])] for n in (100, 5000))
    assert draw("t", short, "y").averaged == 1
    assert draw("t", long, "y").averaged == 50
    assert len(draw("t", long, "y").svg) < 30_000


def test_the_legend_names_each_line_once() -> None:
    panels = [Panel(name, [Line("a", curve(), "ink"), Line("b", curve(), "ink", dashed=True)]) for name in "xyzw"]
    picture = draw("t", panels, "y")
    assert picture.legend == (("a", "ink", "solid"), ("b", "ink", "dashed"))
