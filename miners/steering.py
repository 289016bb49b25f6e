"""Like this, but not like that: move a query away from something before the search."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def steer(query: Tensor, away: Tensor, weight: float = 0.5, perpendicular: bool = True) -> Tensor:
    """Move queries away from things, for a search of what is like the query and not like those.

    ``normalise(q - weight * sum of r)``, and with ``perpendicular`` each r is first freed of what it shares with q,
    ``r - (r.q) q``: the query then keeps its own direction, and two things that are alike are told apart by what they
    differ in. What was alike (r.q >= 0) is less alike afterwards; a long step away from what is nearly opposite may
    pass it on the far side. Lengths do not matter: q and r are normalised before.

    Args:
        query: (B, d) vectors.
        away: (B, d) one thing for each query, or (B, K, d) several.
        weight: how far, above 0; the length of the step for a query of length 1.
        perpendicular: False subtracts r as it is (Rocchio), which moves the query more, and turns it round at r = q.

    Returns:
        (B, d) unit vectors.

    Raises:
        ValueError: shapes that do not fit, a weight that is not above 0, a query of which nothing is left.

    Source:
        Perp-Neg, arXiv 2304.04968, carried over to queries; Rocchio, 1971.

    Example:
        >>> query, away = torch.tensor([[1.0, 0.2, 0.0]]), torch.tensor([[0.8, 0.6, 0.0]])
        >>> steer(query, away, 0.5)[0].round(decimals=3).tolist()
        [1.0, -0.015, 0.0]
    """
    if query.ndim != 2 or away.ndim not in (2, 3) or (away.shape[0], away.shape[-1]) != tuple(query.shape):
        raise ValueError(
            f"steer: queries (B, d) and away (B, d) or (B, K, d) are wanted; got {tuple(query.shape)} and "
            f"{tuple(away.shape)}. One thing for all queries: away.expand(len(query), -1)."
        )
    if not weight > 0:
        raise ValueError(f"steer(weight={weight}): wants a number above 0; the sign is in the word away.")
    q = F.normalize(query, dim=-1)
    r = F.normalize(away if away.ndim == 3 else away[:, None], dim=-1)  # (B, K, d)
    if perpendicular:
        r = r - torch.einsum("bkd,bd->bk", r, q)[..., None] * q[:, None]
    moved = q - weight * r.sum(1)
    lost = moved.norm(dim=-1) < 1e-6
    if bool(lost.any()):
        raise ValueError(
            f"steer: nothing is left of query {int(lost.nonzero()[0, 0])} (it is the thing that it is to avoid). Lower "
            "the weight, or set perpendicular=True."
        )
    return F.normalize(moved, dim=-1)
