"""UNPG as it is published: a column for each pair beside the classes, and its filter by sorting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def filtered(similarity: Tensor, whisker: float | None) -> Tensor:
    """Those of a list (M,) between the whiskers; the official order statistics."""
    if whisker is None or len(similarity) < 4:
        return similarity
    ranked = similarity.detach().sort().values
    low, high = ranked[int(len(ranked) * 0.25)], ranked[int(len(ranked) * 0.75)]
    reach = whisker * (high - low)
    return similarity[(similarity >= low - reach) & (similarity <= high + reach)]


def pair_similarities(faces: Tensor, labels: Tensor) -> Tensor:
    """(M,) cosines of pairs of different identities, pair by pair."""
    unit = F.normalize(faces, dim=1)
    pairs = [unit[a] @ unit[b] for a in range(len(labels)) for b in range(a + 1, len(labels)) if labels[a] != labels[b]]
    return torch.stack(pairs) if pairs else unit.new_zeros(0)


def wide_loss(
    faces: Tensor, labels: Tensor, centres: Tensor, target: Tensor, temperature: float, whisker: float | None
) -> Tensor:
    """Mean cross-entropy over C classes and all kept pairs.

    Args:
        faces, labels: (B, d), (B,).
        centres: (C, d).
        target: (B,) what stands in the column of each face's own class, margin included.
        whisker: None = no UNPG at all.
    """
    cosine = F.normalize(faces, dim=1) @ F.normalize(centres, dim=1).T
    logits = cosine.scatter(1, labels[:, None], target[:, None])
    if whisker is not None:
        pairs = filtered(pair_similarities(faces, labels), whisker)
        logits = torch.cat([logits, pairs.expand(len(faces), -1)], dim=1)
    return F.cross_entropy(logits / temperature, labels)
