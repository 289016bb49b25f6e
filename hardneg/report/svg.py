"""Files of pictures, and pictures in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from miners.transaction import write_file


def save_svg(figure: Figure, file: str | Path) -> Path:
    """Write a figure, the same bytes each time; folders that are missing are made."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with write_file(file, "w") as out:
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    return file


def as_shown(picture: Tensor) -> NDArray[np.uint8]:
    """A picture uint8 (C, H, W) as matplotlib shows it: (H, W, 3), or (H, W) where it is grey."""
    array = picture.permute(1, 2, 0).numpy()
    return array[:, :, 0] if array.shape[2] == 1 else array
