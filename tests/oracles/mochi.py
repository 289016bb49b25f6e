"""MoCHi as its text says it, row by row: mixes are made, and then compared."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from miners.mochi import Draws


def naive_loss(
    query: Tensor, key: Tensor, queue: Tensor, usable: Tensor, draws: Draws, num_hard: int, temperature: float
) -> Tensor:
    """Sum over rows of InfoNCE with the mixes as further columns.

    Args:
        query, key: (B, d) unit vectors.
        queue: (K, d) unit vectors.
        usable: (B, K) what is a negative of each row.
        draws: places among each row's hardest negatives, hardest first.
    """
    losses = []
    for b in range(len(query)):
        own = queue[usable[b]].detach()
        hard = own[(own @ query[b].detach()).argsort(descending=True, stable=True)[:num_hard]]
        columns = [(query[b] @ key[b])[None], queue[usable[b]] @ query[b]]
        if len(hard) >= 2:
            columns += [(h @ query[b])[None] for h in pair_mixes(hard, draws, b)]
        if len(hard):
            columns += [(h @ query[b])[None] for h in anchor_mixes(query[b], hard, draws, b)]
        logits = torch.cat(columns) / temperature
        losses.append(F.cross_entropy(logits[None], torch.zeros(1, dtype=torch.long), reduction="sum"))
    return torch.stack(losses).sum()


def pair_mixes(hard: Tensor, draws: Draws, b: int) -> list[Tensor]:
    """s constant unit vectors (d,), of two hard negatives each."""
    parts = zip(draws.first[b].tolist(), draws.second[b].tolist(), draws.share[b], strict=True)
    return [F.normalize(share * hard[i] + (1 - share) * hard[j], dim=0).detach() for i, j, share in parts]


def anchor_mixes(query: Tensor, hard: Tensor, draws: Draws, b: int) -> list[Tensor]:
    """s' constant unit vectors (d,), of the query and a hard negative each."""
    parts = zip(draws.single[b].tolist(), draws.anchor_share[b], strict=True)
    return [F.normalize(share * query.detach() + (1 - share) * hard[i], dim=0).detach() for i, share in parts]
