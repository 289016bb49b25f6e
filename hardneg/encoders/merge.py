"""The weights of two checkpoints of one encoder, added up."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def merge(base: Module, other: nn.Module, w: float) -> Module:
    """Make an encoder with the weights ``(1 + w) * base - w * other``.

    w in [-1, 0] goes from ``base`` (0) to ``other`` (-1): a fine-tuned model and its origin, half way, forgets less.
    w above 0 goes away from ``other``; that this helps is a finding about generators, which did not hold for encoders.

    Args:
        base: an encoder, or any module; left as it is.
        other: the same architecture with other weights; any floating type.
        w: signed coefficient.

    Returns:
        A copy of ``base``. Floating parameters are merged, in fp32 at least, tied ones once; buffers, integers and
        tensors that hold infinities (masks) are those of ``base``.

    Raises:
        ValueError: the first parameter that only one of them has, that has two shapes, or that is tied in one of them
            only, named; a w that is no number.

    Source:
        Neon, arXiv 2510.03597, equation of the merge; interpolation: WiSE-FT, arXiv 2109.01903.
    """
    if not math.isfinite(w):
        raise ValueError(f"merge(w={w}): wants a finite number; -0.5 is half way from base to other.")
    mine, theirs = (dict(module.named_parameters(remove_duplicate=False)) for module in (base, other))
    _check(mine, theirs)
    merged = copy.deepcopy(base)
    for name, weight in merged.named_parameters():  # each tied weight once
        if weight.is_floating_point() and not bool(torch.isinf(weight).any()):
            wide = torch.promote_types(weight.dtype, torch.float32)
            away = theirs[name].to(weight.device, wide)
            weight.copy_((1 + w) * weight.to(wide) - w * away)
    return merged


def _check(mine: dict[str, nn.Parameter], theirs: dict[str, nn.Parameter]) -> None:
    """Refuse two architectures."""
    first: dict[int, str] = {}
    for name, weight in mine.items():
        if name not in theirs:
            raise ValueError(f"merge: parameter '{name}' is in base and not in other; they are not one architecture.")
        if weight.shape != theirs[name].shape:
            raise ValueError(
                f"merge: parameter '{name}' is {tuple(weight.shape)} in base and {tuple(theirs[name].shape)} in other."
            )
        tied: Tensor = theirs[first.setdefault(id(weight), name)]
        if not torch.equal(tied, theirs[name]):
            raise ValueError(
                f"merge: parameters '{first[id(weight)]}' and '{name}' are one weight in base and two in other."
            )
    for name in theirs:
        if name not in mine:
            raise ValueError(f"merge: parameter '{name}' is in other and not in base; they are not one architecture.")
