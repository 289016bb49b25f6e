"""Two pictures of a localisation: what queries find, and where they are taken to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from hardneg.report.svg import as_shown, save_svg

MOST_AREAS = 12  # maps of one picture
MOST_WIDE = 3.0  # a column of queries, in columns of references


@dataclass(frozen=True)
class ShownQuery:
    """A query with what it should find and what it finds.

    Args:
        query, right: pictures uint8 (C, H, W).
        found: the first references, best first.
        grades: of each of them: 1 = right, 0 = wrong, -1 = a semi-positive.
        name: of the query.
        rank: place of the right reference, 1 = first.
        metres: to the first reference; None = not known.
    """

    query: Tensor
    right: Tensor
    found: Sequence[Tensor]
    grades: Sequence[int]
    name: str
    rank: int
    metres: float | None = None


def draw_retrieved(queries: Sequence[ShownQuery], file: str | Path, title: str = "") -> Path:
    """Write a row for each query as SVG: itself, its right reference, and what it finds.

    Frames are green where that is right, red where it is wrong, orange where it shows a part of the place.
    """
    columns = 2 + max((len(query.found) for query in queries), default=1)
    wide = max((query.query.shape[2] / query.query.shape[1] for query in queries), default=1.0)  # of a panorama
    widths = [min(max(wide, 1.0), MOST_WIDE), *[1.0] * (columns - 1)]
    figure = Figure(figsize=(1.35 * sum(widths), 1.5 * max(len(queries), 1) + 0.4), layout="constrained")
    grid = figure.subplots(max(len(queries), 1), columns, squeeze=False, width_ratios=widths)
    for axis in grid.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for row, query in zip(grid, queries, strict=False):
        far = "" if query.metres is None else f", {query.metres:,.0f} m" if np.isfinite(query.metres) else ", elsewhere"
        name = query.name if len(query.name) <= 26 else f"…{query.name[-25:]}"
        for axis, picture in zip(row, (query.query, query.right, *query.found), strict=False):
            axis.imshow(as_shown(picture), cmap="gray", vmin=0, vmax=255)
        row[0].set_title(f"{name}\nrank {query.rank:,}{far}", fontsize=6)
        row[1].set_title("right", fontsize=6)
        for place, (axis, grade) in enumerate(zip(row[2:], query.grades, strict=False), start=1):
            axis.set_title(f"{place}", fontsize=6)
            axis.set_frame_on(True)
            for side in axis.spines.values():
                side.set(color={1: "C2", 0: "C3", -1: "C1"}[grade], linewidth=2)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return save_svg(figure, file)


def draw_errors(
    here: Tensor, found: Tensor, metres: Tensor, areas: Tensor | None, degrees: bool, file: str | Path, title: str = ""
) -> Path:
    """Write a map as SVG: each query where it is, coloured by its error, with a line to where it is taken to be.

    Args:
        here, found: (Q, 1 to 3) coordinates of queries and of their first references; the first two are drawn, and
            of one the number of the query is the other.
        metres: (Q,) errors, infinite where the reference lies in another area.
        areas: (Q,) a map for each, the twelve largest; None = one map.
        degrees: coordinates are latitudes and longitudes: north is up.
    """
    of = np.zeros(len(here), dtype=np.int64) if areas is None else areas.numpy()
    names, counts = np.unique(of, return_counts=True)
    shown = names[np.argsort(-counts, kind="stable")][:MOST_AREAS]
    columns = min(4, max(len(shown), 1))
    rows = -(-max(len(shown), 1) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.8, 3.1 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    finite = metres[metres.isfinite()]
    most = float(finite.max()) if len(finite) and float(finite.max()) > 0 else 1.0
    drawn = None
    for axis in grid.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, area in zip(grid.flat, shown, strict=False):
        chosen = np.flatnonzero(of == area)
        start, end = (_plane(points[chosen], chosen, degrees) for points in (here, found))
        error = metres.numpy()[chosen]
        near = np.isfinite(error)
        lines = np.stack([start[near], end[near]], axis=1)
        axis.add_collection(LineCollection(list(lines), colors="0.7", linewidths=0.5))
        drawn = axis.scatter(*start[near].T, c=error[near], s=9, cmap="viridis_r", vmin=0, vmax=most, zorder=2)
        axis.scatter(*start[~near].T, marker="x", s=14, color="C3", zorder=2)
        far = f", {int((~near).sum())} taken to be elsewhere (x)" if not near.all() else ""
        axis.set_title(f"{len(chosen)} queries{far}", fontsize=7)
        axis.tick_params(labelsize=5)
        if here.shape[1] > 1:
            middle = np.radians(float(here[chosen, 0].mean())) if degrees else 0.0
            axis.set_aspect(1 / max(np.cos(middle), 0.01), adjustable="datalim")  # a degree of longitude is shorter
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=grid, shrink=0.8)
        bar.set_label("metres to the first reference", fontsize=7)
        bar.ax.tick_params(labelsize=5)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return save_svg(figure, file)


def _plane(points: Tensor, numbers: np.ndarray, degrees: bool) -> np.ndarray:
    """(n, 2) to draw."""
    array = points.double().numpy()
    if array.shape[1] == 1:
        return np.stack([array[:, 0], numbers.astype(np.float64)], axis=1)
    return array[:, 1::-1] if degrees else array[:, :2]
