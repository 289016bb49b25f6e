"""Does a steered query still find what it asks for, and does it avoid what it was told to?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hardneg.metrics.flips import first_relevant
from miners.index import TorchIndex
from miners.ragged import Ragged
from miners.store import Store


class SteeringMeasures(NamedTuple):
    """Means over queries.

    Args:
        kept: share of queries with a target among the first k: is the intent still there?
        near: share of the first k that lies near what was to be avoided.
    """

    kept: float
    near: float


def evaluate_steering(
    queries: Tensor,
    away: Tensor,
    corpus: Store,
    targets: Ragged,
    k: int = 10,
    near: float = 0.8,
    device: torch.device | str = "cpu",
) -> SteeringMeasures:
    """Search with (steered) queries, and count targets kept and unwanted things left. Ask before and after `steer`.

    Args:
        queries: (Q, d) unit vectors, steered or not.
        away: (Q, d) what each query is to avoid.
        corpus: unit vectors.
        targets: Q lists of ids that each query asks for.
        k: how many results a user sees.
        near: cosine from which a result counts as one of what was to be avoided.

    Raises:
        ValueError: k or near out of range.
    """
    if k < 1 or not -1 <= near <= 1:
        raise ValueError(f"evaluate_steering(k={k}, near={near}): wants k of at least 1 and a cosine.")
    rank, _ = first_relevant(queries, corpus, targets, k, device)
    _, ids = TorchIndex(corpus, device=str(device)).search(queries, min(k, len(corpus)))
    found = corpus.rows(ids.cpu().flatten()).view(*ids.shape, -1)  # (Q, k, d)
    alike = torch.einsum("qkd,qd->qk", found.float(), F.normalize(away.float(), dim=1).cpu())
    return SteeringMeasures(float((rank <= k).double().mean()), float((alike >= near).double().mean()))
