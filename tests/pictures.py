"""Small sets of pictures, written in the layouts that real ones come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hardneg.encoders import ImageBackbone, ImageEncoder

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def write_classes(
    root: Path, splits: tuple[str, ...] = ("train", "val"), each: int = 6, size: int = 24, suffix: str = ".JPEG"
) -> Path:
    """``root/SPLIT/COLOUR/N.JPEG``, as ImageNet's folders: noise of one colour."""
    for number, split in enumerate(splits):
        for label, (name, colour) in enumerate(COLOURS.items()):
            random = np.random.default_rng([number, label])
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(each):
                noise = random.integers(-40, 40, (size, size + 4 * (i % 2), 3))
                Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(folder / f"{i}{suffix}", "JPEG")
    return root


class TinyBackbone(ImageBackbone):
    """A convolution, batch norm, and the mean of what is left."""

    def __init__(self, width: int = 6, channels: int = 3) -> None:
        super().__init__()
        self.width, self.channels, self.num_features = width, channels, width
        self.convolution, self.norm = nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.norm(self.convolution(pictures)).relu().mean((2, 3))


def tiny_encoder(seed: int = 0, dim: int = 4) -> ImageEncoder:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return ImageEncoder(TinyBackbone(), dim=dim, head="mlp")
