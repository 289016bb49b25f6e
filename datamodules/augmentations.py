"""Augmentations of windows, time first: each changes a share of the windows of a batch, each window in its own way.

They see standardised windows (mean 0 and scale 1 of each channel), (B, T, C) of a sensor or (B, T, J, D) of joints, and
draw from torch's own generator, which a training step seeds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Augmentation(ABC):
    """Changes each window of a batch with probability ``probability``."""

    probability: float

    @abstractmethod
    def change(self, windows: Tensor) -> Tensor:
        """All windows (B, T, ...), changed."""

    def __call__(self, windows: Tensor) -> Tensor:
        if not len(windows):
            return windows
        chosen = torch.rand(len(windows), device=windows.device) < self.probability
        return torch.where(chosen.view(-1, *[1] * (windows.ndim - 1)), self.change(windows), windows)

    def _share(self, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"{type(self).__name__}(probability={probability}): wants a share from 0 to 1.")
        self.probability = probability


class Jitter(Augmentation):
    """Add normal noise to every value.

    Args:
        sigma: standard deviation, where a channel's is 1.
        probability: share of windows that are changed.
    """

    def __init__(self, sigma: float = 0.1, probability: float = 1.0) -> None:
        self._share(probability)
        self.sigma = sigma

    def change(self, windows: Tensor) -> Tensor:
        return windows + self.sigma * torch.randn_like(windows)


class Scaling(Augmentation):
    """Multiply each channel of a window by a factor of its own, normal around 1; time steps keep their proportions.

    Args:
        sigma: standard deviation of the factors.
        probability: share of windows that are changed.
    """

    def __init__(self, sigma: float = 0.2, probability: float = 0.75) -> None:
        self._share(probability)
        self.sigma = sigma

    def change(self, windows: Tensor) -> Tensor:
        return windows * (1 + self.sigma * torch.randn_like(windows[:, :1]))


class Resize(Augmentation):
    """Multiply a whole window by one factor: a larger or smaller body.

    Args:
        low, high: range of the factor.
        probability: share of windows that are changed.
    """

    def __init__(self, low: float = 0.7, high: float = 1.2, probability: float = 0.75) -> None:
        self._share(probability)
        self.low, self.high = low, high

    def change(self, windows: Tensor) -> Tensor:
        factor = torch.empty(len(windows), device=windows.device).uniform_(self.low, self.high)
        return windows * factor.view(-1, *[1] * (windows.ndim - 1)).to(windows.dtype)


class Permutation(Augmentation):
    """Cut the time of a window into segments and put these in another order; channels stay together.

    Args:
        segments: most segments; a window gets from two to that many, of random lengths.
        probability: share of windows that are changed.

    Source:
        Um et al., arXiv 1706.00527. Differs from CMC-CMKM's code, which permutes channels under this name.
    """

    def __init__(self, segments: int = 3, probability: float = 0.75) -> None:
        self._share(probability)
        if segments < 2:
            raise ValueError(f"Permutation(segments={segments}): wants at least 2.")
        self.segments = segments

    def change(self, windows: Tensor) -> Tensor:
        size, steps, device = len(windows), windows.shape[1], windows.device
        cuts = torch.randint(1, max(steps, 2), (size, self.segments - 1), device=device)
        used = torch.randint(1, self.segments, (size, 1), device=device)  # cuts of each window
        cuts = torch.where(torch.arange(self.segments - 1, device=device) < used, cuts, steps)
        segment = (torch.arange(steps, device=device)[None, :, None] >= cuts[:, None, :]).sum(2)  # (B, T)
        place = torch.rand(size, self.segments, device=device).argsort(1).argsort(1)
        order = torch.argsort(place.gather(1, segment), dim=1, stable=True)  # time steps keep their order inside
        return windows.gather(1, order.view(*order.shape, *[1] * (windows.ndim - 2)).expand_as(windows))


class ChannelShuffle(Augmentation):
    """Put a window's channels in another order, the same for all its time steps.

    Args:
        probability: share of windows that are changed.

    Source:
        Named in CMC-CMKM, arXiv 2205.10071, whose code permutes time steps under this name.
    """

    def __init__(self, probability: float = 0.75) -> None:
        self._share(probability)

    def change(self, windows: Tensor) -> Tensor:
        order = torch.rand(len(windows), windows.shape[-1], device=windows.device).argsort(1)
        shape = (len(windows), *[1] * (windows.ndim - 2), windows.shape[-1])
        return windows.gather(-1, order.view(shape).expand_as(windows))


class CropResize(Augmentation):
    """Cut a share of a window's time out and stretch it to the window's length again.

    Args:
        low, high: range of the share that stays, in (0, 1].
        probability: share of windows that are changed.
    """

    def __init__(self, low: float = 0.8, high: float = 0.9, probability: float = 0.75) -> None:
        self._share(probability)
        if not 0 < low <= high <= 1:
            raise ValueError(f"CropResize(low={low}, high={high}): shares, so 0 < low <= high <= 1.")
        self.low, self.high = low, high

    def change(self, windows: Tensor) -> Tensor:
        size, last = len(windows), windows.shape[1] - 1
        share = torch.empty(size, 1, device=windows.device).uniform_(self.low, self.high)
        start = torch.rand_like(share) * (1 - share)
        at = (start + share * torch.linspace(0, 1, last + 1, device=windows.device)) * last  # (B, T)
        at = at.clamp(0, last)
        below = at.floor().long()
        wide = (*at.shape, *[1] * (windows.ndim - 2))
        low = windows.gather(1, below.view(wide).expand_as(windows))
        high = windows.gather(1, (below + 1).clamp_max(last).view(wide).expand_as(windows))
        return torch.lerp(low, high, (at - below).view(wide).to(windows.dtype))


class Rotation(Augmentation):
    """Turn each window around the origin: joints, or the axes of a sensor three at a time, all alike.

    Around a random axis in space; in the plane of 2-D joints. A worn sensor that sits differently, a camera that stands
    elsewhere.

    Args:
        degrees: the angle is uniform in [-degrees, degrees].
        probability: share of windows that are changed.

    Raises:
        ValueError: at a batch whose last dim is neither 2 nor a multiple of 3.
    """

    def __init__(self, degrees: float = 10.0, probability: float = 0.75) -> None:
        self._share(probability)
        self.degrees = degrees

    def change(self, windows: Tensor) -> Tensor:
        size, width = len(windows), windows.shape[-1]
        angle = math.radians(self.degrees) * (2 * torch.rand(size, device=windows.device) - 1)
        if width == 2:
            turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(size, 2, 2)
        elif width % 3 == 0:
            axis = torch.nn.functional.normalize(torch.randn(size, 3, device=windows.device), dim=1)
            turn = torch.matrix_exp(_cross(axis) * angle[:, None, None])
        else:
            raise ValueError(f"Rotation turns axes in threes (or 2-D joints), and these windows have {width} channels.")
        return _linear(windows, turn)


class Shear(Augmentation):
    """Slant each window: every axis gains a share of every other, all time steps and joints alike.

    Args:
        amount: shares are uniform in [-amount, amount].
        probability: share of windows that are changed.
    """

    def __init__(self, amount: float = 0.2, probability: float = 0.75) -> None:
        self._share(probability)
        self.amount = amount

    def change(self, windows: Tensor) -> Tensor:
        width = windows.shape[-1] if windows.shape[-1] == 2 else 3
        if windows.shape[-1] % width:
            raise ValueError(f"Shear slants axes in threes (or 2-D joints), and got {windows.shape[-1]} channels.")
        one = torch.eye(width, device=windows.device)
        shares = self.amount * (2 * torch.rand(len(windows), width, width, device=windows.device) - 1)
        return _linear(windows, one + shares * (1 - one))


def _cross(axis: Tensor) -> Tensor:
    """(B, 3, 3) matrices of the cross product with ``axis`` (B, 3)."""
    x, y, z = axis.unbind(1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)


def _linear(windows: Tensor, maps: Tensor) -> Tensor:
    """Apply (B, n, n) to the last dim, n values at a time."""
    points = windows.reshape(len(windows), -1, maps.shape[1])  # (B, points, n)
    return (points @ maps.transpose(1, 2).to(windows.dtype)).view_as(windows)
