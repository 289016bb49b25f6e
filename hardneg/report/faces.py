"""Two pictures of a verification: its ROC curve, and the pairs that it gets most wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from hardneg.report.svg import as_shown, save_svg


@dataclass(frozen=True)
class ShownPair:
    """Two pictures uint8 (C, H, W), what they are called, and their similarity."""

    first: Tensor
    second: Tensor
    names: tuple[str, str]
    similarity: float


def draw_roc(similarity: Tensor, same: Tensor, file: str | Path, title: str = "") -> Path:
    """Write the ROC curve as SVG: genuine pairs accepted against impostors accepted, on a logarithmic scale.

    The scale ends on the left at one impostor pair: nothing is known of smaller rates.
    """
    from sklearn.metrics import roc_curve

    impostors, genuine, _ = roc_curve(same.numpy(), similarity.double().numpy(), drop_intermediate=False)
    least = 1 / max(int((~same).sum()), 1)
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    axis.step(np.maximum(impostors, least), genuine, where="post", color="C0")
    axis.set_xscale("log")
    axis.set_xlim(least, 1)
    axis.set_ylim(0, 1.01)
    axis.grid(alpha=0.3)
    axis.set_xlabel(f"impostor pairs accepted (FAR), of {int((~same).sum()):,}", fontsize=8)
    axis.set_ylabel(f"genuine pairs accepted (TAR), of {int(same.sum()):,}", fontsize=8)
    axis.set_title(title, fontsize=9, loc="left")
    return save_svg(figure, file)


def draw_pairs(impostors: Sequence[ShownPair], genuine: Sequence[ShownPair], file: str | Path, title: str = "") -> Path:
    """Write pairs of pictures as SVG: impostors that look alike above, genuine pairs that do not below."""
    columns = max(len(impostors), len(genuine), 1)
    figure = Figure(figsize=(1.7 * columns + 0.4, 3.2), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for row, (kind, pairs) in enumerate((("two people", impostors), ("one person", genuine))):
        for axis, pair in zip(grid[row], pairs, strict=False):
            both = np.concatenate([as_shown(pair.first), as_shown(pair.second)], axis=1)
            axis.imshow(both, cmap="gray", vmin=0, vmax=255)
            names = "\n".join(name if len(name) <= 24 else f"…{name[-23:]}" for name in pair.names)
            axis.set_title(f"{kind}, {pair.similarity:.2f}\n{names}", fontsize=6)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return save_svg(figure, file)
