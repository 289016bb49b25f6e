"""Curves as SVG that follows the page: its colours are the page's own variables, so that dark mode reaches them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hardneg.report.run import Curve

COLOURS = ("ink", "muted", "rule", "positive", "negative", "run-1", "run-2", "run-3", "run-4", "run-5", "run-6")
"""Variables of page.css that a curve may use. Matplotlib draws each as a colour that nobody would choose."""

_STAND_IN = {name: f"#01{at:02x}fe" for at, name in enumerate(COLOURS, 1)}
_POINTS = 100  # of a drawn line, about: what the eye can tell apart on a laptop
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's own font
    "text.parse_math": False,  # names of columns and folders are no formulas, whatever dollars they hold
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "text.color": _STAND_IN["ink"],
    "axes.titlecolor": _STAND_IN["ink"],
    "axes.labelcolor": _STAND_IN["muted"],
    "axes.edgecolor": _STAND_IN["rule"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _STAND_IN["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": _STAND_IN["rule"],
    "ytick.color": _STAND_IN["rule"],
    "xtick.labelcolor": _STAND_IN["muted"],
    "ytick.labelcolor": _STAND_IN["muted"],
    "ytick.left": False,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.wspace": 0.04,
}


@dataclass(frozen=True)
class Line:
    """One curve of a panel.

    Args:
        label: for the legend.
        colour: one of `COLOURS`.
        dashed: the lesser of two curves of one colour.
        band: shade the range from the lowest to the highest value behind a curve of means.
        dots: draw the points themselves, unconnected.
    """

    label: str
    curve: Curve
    colour: str
    dashed: bool = False
    band: bool = True
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves that share axes."""

    title: str
    lines: Sequence[Line] = field(default_factory=tuple)


@dataclass(frozen=True)
class Picture:
    """A drawn figure for the page: the SVG, what to say of it, and its legend as (label, colour, form)."""

    svg: Markup
    title: str
    legend: tuple[tuple[str, str, str], ...]
    averaged: int


def draw(
    title: str,
    panels: Sequence[Panel],
    y_label: str,
    width: float = 10.4,
    height: float = 2.7,
    floor: bool = False,
    x_label: str = "optimiser step",
    one_scale: bool = True,
) -> Picture:
    """Draw panels side by side over one y axis.

    Long curves are drawn as means over equal shares of their points, with the range behind them.

    Args:
        title: of the picture.
        panels: at least one, wrapped after the third.
        y_label: quantity and unit.
        width: inches of the whole picture, 96 pixels each at full size.
        height: inches of one row of panels.
        floor: let the y axis start at 0.
        x_label: what the curves' steps count.
        one_scale: panels share their axes; False where they show things that nobody compares.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    averaged = 1

    def paint(figure: Figure) -> None:
        nonlocal averaged
        axes = figure.subplots(rows, columns, sharex=one_scale, sharey=one_scale, squeeze=False).ravel()
        for axis, panel in zip(axes, panels, strict=False):
            for line in panel.lines:
                averaged = max(averaged, _draw(axis, line))
            if panel.title:
                axis.set_title(panel.title)
            axis.set_xlabel(x_label)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(5))
            axis.tick_params(labelbottom=True)
            axis.margins(x=0.02)
            if floor:
                axis.set_ylim(bottom=0)
        for axis in axes[len(panels) :]:
            axis.remove()
        for row in range(rows):
            axes[row * columns].set_ylabel(y_label)

    legend = dict.fromkeys((line.label, line.colour, _form(line)) for panel in panels for line in panel.lines)
    return replace(sketch(title, paint, tuple(legend), width, height * rows), averaged=averaged)


def sketch(
    title: str,
    paint: Callable[[Figure], None],
    legend: tuple[tuple[str, str, str], ...] = (),
    width: float = 10.4,
    height: float = 2.7,
) -> Picture:
    """Anything that matplotlib draws, in the page's style; colours are those of `colour`.

    Args:
        title: of the picture.
        paint: draws into an empty figure.
        legend: (label, colour, form) of the page's own legend.
        width, height: inches.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):  # the same curves make the same bytes
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        paint(figure)
        out = io.StringIO()
        canvas.print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Picture(_inline(out.getvalue(), title), title, legend, 1)


def colour(name: str) -> str:
    """What matplotlib is to draw with, so that the page shows the variable ``name``, one of `COLOURS`."""
    return _STAND_IN[name]


def thinned(curve: Curve, share: int) -> tuple[NDArray[np.float64], ...]:
    """Means of every ``share`` points of a curve (n,): steps, means, lowest, highest, each (n / share,), rounded up."""
    starts = np.arange(0, len(curve.steps), share)
    sizes = np.diff(np.append(starts, len(curve.steps)))
    means = (np.add.reduceat(part, starts) / sizes for part in (curve.steps, curve.values))
    return (*means, np.minimum.reduceat(curve.values, starts), np.maximum.reduceat(curve.values, starts))


def _draw(axis: matplotlib.axes.Axes, line: Line) -> int:
    """Draw one line; returns how many points went into each of its own."""
    share = max(round(len(line.curve.steps) / _POINTS), 1)
    steps, means, lowest, highest = thinned(line.curve, share)
    colour = _STAND_IN[line.colour]
    if line.dots:
        axis.plot(steps, means, linestyle="none", marker="D", markersize=3.4, color=colour, markeredgewidth=0)
    else:
        alone = "o" if len(steps) < 3 else None  # a line through one point cannot be seen
        style = (0, (3.5, 2)) if line.dashed else "-"
        width = 1.2 if line.dashed else 1.8
        axis.plot(steps, means, color=colour, linestyle=style, linewidth=width, marker=alone, markersize=4)
        if line.band and share > 1:
            axis.fill_between(steps, lowest, highest, color=colour, alpha=0.13, linewidth=0)
    return 1 if line.dots else share


def _form(line: Line) -> str:
    return "dots" if line.dots else "dashed" if line.dashed else "solid"


def _inline(svg: str, title: str) -> Markup:
    """An SVG file as an element of a page. Matplotlib has escaped all texts in it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for name in ("width", "height"):  # the page decides; the viewBox keeps the shape
        svg = re.sub(rf'(<svg[^>]*?) {name}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([^;\"']*?)([\d.]+px) [^;\"]*", r"font: \1\2 var(--sans)", svg)
    for name, colour in _STAND_IN.items():
        svg = svg.replace(colour, f"var(--{name})")
    # ids of one figure must not meet those of another on the same page
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = re.sub(r'id="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(title)}"', 1))
