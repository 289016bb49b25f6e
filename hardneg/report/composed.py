"""A picture of composed retrievals: reference, text, and what was found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from hardneg.report.svg import as_shown, save_svg

RIGHT, WRONG, ASKED = "tab:green", "tab:red", "black"


@dataclass(frozen=True)
class ShownRetrieval:
    """A query: its reference uint8 (C, H, W), its text, and pictures that were found, best first, right or not."""

    reference: Tensor
    text: str
    found: Sequence[tuple[Tensor, float, bool]]
    target: Tensor


def draw_retrievals(shown: Sequence[ShownRetrieval], file: str | Path, title: str = "") -> Path:
    """Write one row per query as SVG: the reference, what was found (green: right, red: not), and one right answer."""
    columns = 2 + max((len(each.found) for each in shown), default=0)
    figure = Figure(figsize=(1.3 * columns, 1.75 * max(len(shown), 1) + 0.4), layout="constrained")
    grid = figure.subplots(max(len(shown), 1), columns, squeeze=False)
    for axis in grid.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for row, each in zip(grid, shown, strict=False):
        asked = "\n".join(textwrap.wrap(each.text, 26)[:4])
        pictures = [(each.reference, asked, ASKED)]
        pictures += [
            (picture, f"{place}: {score:.2f}", RIGHT if right else WRONG)
            for place, (picture, score, right) in enumerate(each.found, start=1)
        ]
        pictures.append((each.target, "a right answer", ASKED))
        for axis, (picture, words, colour) in zip(row, pictures, strict=False):
            axis.imshow(as_shown(picture), cmap="gray", vmin=0, vmax=255)
            axis.set_title(words, fontsize=6, color=colour)
            axis.set_frame_on(True)
            for spine in axis.spines.values():
                spine.set_color(colour)
                spine.set_linewidth(2.0 if colour != ASKED else 0.5)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return save_svg(figure, file)
