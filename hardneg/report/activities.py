"""Two pictures of a classification: who is taken for whom, and a map of the vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from hardneg.report.svg import save_svg

MOST_POINTS = 2000  # of a map; t-SNE takes minutes beyond, and the eye sees no more
_MARKS = "oxsd^v+*"


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64: rows are what is true, columns what was said."""
    return torch.bincount(truth * classes + predicted, minlength=classes * classes).view(classes, classes)


def draw_confusion(truth: Tensor, predicted: Tensor, classes: Sequence[str], file: str | Path, title: str = "") -> Path:
    """Write the confusion matrix as SVG: colour is the share of each true class, numbers are counts."""
    counts = confusion(truth, predicted, len(classes)).numpy()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = max(3.5, 0.28 * len(classes) + 1.6)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if share[row, column] > 0.5 else "black"
        axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=6, color=colour)
    axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
    axis.set_yticks(range(len(classes)), classes, fontsize=7)
    axis.set_xlabel("predicted", fontsize=8)
    axis.set_ylabel("true", fontsize=8)
    axis.set_title(title, fontsize=9, loc="left")
    return save_svg(figure, file)


def draw_map(vectors: Tensor, labels: Tensor, classes: Sequence[str], file: str | Path, title: str = "") -> Path:
    """Write a map of vectors (N, d) as SVG: t-SNE of at most 2,000 of them, evenly spaced, coloured by class.

    Distances between far clusters mean nothing on such a map; who has mixed neighbours does.
    """
    step = math.ceil(len(vectors) / MOST_POINTS)
    places, of = _plane(vectors[::step]), labels[::step].numpy()
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axis = figure.subplots()
    for number, name in enumerate(classes):
        own = places[of == number]
        if len(own):
            mark, colour = _MARKS[number // 10 % len(_MARKS)], f"C{number % 10}"
            axis.scatter(own[:, 0], own[:, 1], s=14, marker=mark, color=colour, label=name, linewidths=0.8)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=9, loc="left")
    figure.legend(loc="outside right upper", fontsize=6.5, frameon=False)
    return save_svg(figure, file)


def _plane(vectors: Tensor) -> NDArray[np.float64]:
    """(N, 2), the same each time."""
    from sklearn.manifold import TSNE

    if len(vectors) < 4:
        return np.pad(vectors.double().numpy()[:, :2], ((0, 0), (0, max(0, 2 - vectors.shape[1]))))
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return np.asarray(TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors.numpy()))
