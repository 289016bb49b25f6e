"""MEOW and AdaMEOW (arXiv 2212.13847) as their code computes them, faults included.

Source: jianxiangyu/MEOW @ 6a072d7.

The faults: the positive is in no denominator of its own (hard weights) or with a learned weight (soft ones), so that
the loss has no lower bound; the concentration of a cluster is made of similarities where its formula wants distances,
so that tight clusters get the softer temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def apart(clusterings: Sequence[Sequence[int]]) -> Tensor:
    """(N, N) in how many of M clusterings two things are in different clusters."""
    together = [[[one == other for other in labels] for one in labels] for labels in clusterings]
    return len(clusterings) - torch.tensor(together).sum(0).double()


def released(anchors: Tensor, others: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """(N,) ``-log(E_ii / sum_j w_ij E_ij)`` for unit vectors (N, d): the positive counts as its weight says."""
    similarity = (anchors @ others.T / temperature).exp()
    return -(similarity.diagonal() / (weights * similarity).sum(1)).log()


def soft_weights(
    anchors: Tensor, others: Tensor, inner: Tensor, inner_bias: float, outer: float, bias: float
) -> Tensor:
    """(N, N) AdaMEOW's weights with one hidden unit, from the N x N x d sums."""
    sums = anchors[:, None] + others[None]
    return (outer * torch.tanh(sums @ inner + inner_bias) + bias).sigmoid()


def prototypes(anchors: Tensor, centres: Tensor, labels: Tensor, concentration: Tensor) -> Tensor:
    """Mean loss of anchors (N, d) and their centres (K, d), with the factor N / K."""
    scores = (anchors @ centres.T / concentration).exp()
    share = scores[torch.arange(len(anchors)), labels] / (len(anchors) / len(centres) * scores.sum(1))
    return -share.log().mean()


def concentration(similarities: Sequence[float], distances: bool = False) -> float:
    """phi of a cluster from its members' cosines with the centre.

    Args:
        distances: squared distances in their place, as in the code that this one was taken from.
    """
    values = [2 - 2 * cosine if distances else cosine for cosine in similarities]
    return sum(math.sqrt(value) for value in values) / len(values) / math.log(len(values) + 5)
