"""MMCLIP's published losses, faults included (THU-KEG/MMGeoLM @ 021e1ef)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_loss(cosines: Tensor, usable: Tensor, scale: float, bias: float) -> Tensor:
    """(B,) the image script: a sum over pairs, the positive in column 0; masked pairs cost nothing."""
    logits = scale * cosines + bias
    return F.softplus(-logits[:, 0]) + (F.softplus(logits[:, 1:]) * usable).sum(1)


def text_script(cosines: Tensor, scale: float, bias: float) -> Tensor:
    """(B,) the text script: the sigmoid loss is computed, then overwritten with softmax without the bias."""
    loss = sigmoid_loss(cosines, torch.ones_like(cosines[:, 1:]), scale, bias)
    loss = F.cross_entropy(scale * cosines, torch.zeros(len(cosines), dtype=torch.long), reduction="none")
    return loss
