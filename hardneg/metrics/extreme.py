"""Measures of extreme classification as the XC repository defines them: precision and nDCG, plain and by propensity.

No library of the package registry has all of them, so they are here; the numbers of the repository's own functions are
tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from miners.pool import among
from miners.ragged import Ragged

PROPENSITY = {"amazon": (0.6, 2.6), "wikipedia": (0.5, 0.4), "other": (0.55, 1.5)}
"""(a, b) of the propensity model by where a data set comes from."""


def inverse_propensities(counts: Tensor, num_instances: int, a: float = 0.55, b: float = 1.5) -> Tensor:
    """(L,) float64 ``1 + (ln N - 1) (b + 1)^a (n + b)^-a``: how much a rare label counts more than a frequent one.

    Args:
        counts: (L,) training instances of each label.
        num_instances: N, of the training set.
        a, b: of the propensity model; see `PROPENSITY`.

    Source:
        Jain, Prabhu, Varma, KDD 2016, equation 1; pyxclib `compute_inv_propesity`.

    Example:
        >>> inverse_propensities(torch.tensor([1, 5, 100]), 294805, 0.6, 2.6).round(decimals=3).tolist()
        [12.594, 8.405, 2.554]
    """
    scale = (torch.tensor(float(num_instances), dtype=torch.float64).log() - 1) * (b + 1) ** a
    return 1 + scale * (counts.double() + b) ** -a


def extreme_measures(
    ids: Tensor, truth: Ragged, inverse: Tensor, cutoffs: Sequence[int] = (1, 3, 5)
) -> dict[str, Tensor]:
    """P@k, nDCG@k, PSP@k and PSnDCG@k of each query, so that the mean over queries is the published measure.

    P@k divides by k also where a query has fewer labels. The propensity-scored ones are a ratio of means over queries,
    the ranking's over the best that is possible; a query's share of it is its own gain over that mean of the best, and
    may be above 1.

    Args:
        ids: (Q, k) predicted labels, best first; -1 = an empty slot.
        truth: Q lists of right labels, none of them empty.
        inverse: (L,) `inverse_propensities`.
        cutoffs: values of k.

    Returns:
        measure -> (Q,) float64.

    Raises:
        ValueError: a query without labels, whose nDCG would be undefined.

    Source:
        The repository's metrics (pyxclib `xc_metrics`), its nDCG and PSnDCG included.
    """
    if bool((truth.lengths == 0).any()):
        row = int((truth.lengths == 0).nonzero()[0])
        raise ValueError(f"query {row} of {len(truth)} has no label in this split; leave it out of the evaluation.")
    width = max(cutoffs)
    ids = torch.nn.functional.pad(ids[:, :width], (0, max(0, width - ids.shape[1])), value=-1)
    hits = (among(ids, truth) & (ids >= 0)).double()  # (Q, width)
    gains = hits * inverse[ids.clamp_min(0)]
    best = _highest(truth, inverse, width)
    discount = torch.arange(2, width + 2, dtype=torch.float64).log2()  # (width,)
    most_hits = (1 / discount).cumsum(0)  # (width,) discounted gain of so many hits at the top
    out: dict[str, Tensor] = {}
    for k in cutoffs:
        out[f"P@{k}"] = hits[:, :k].sum(1) / k
    ideal = {k: most_hits[truth.lengths.clamp(max=k) - 1] for k in cutoffs}  # (Q,)
    for k in cutoffs:
        out[f"nDCG@{k}"] = (hits / discount)[:, :k].sum(1) / ideal[k]
    for k in cutoffs:
        out[f"PSP@{k}"] = gains[:, :k].sum(1) / best[:, :k].sum(1).mean()
    for k in cutoffs:
        best_possible = ((best / discount)[:, :k].sum(1) / ideal[k]).mean()
        out[f"PSnDCG@{k}"] = (gains / discount)[:, :k].sum(1) / ideal[k] / best_possible
    return out


def _highest(truth: Ragged, inverse: Tensor, width: int) -> Tensor:
    """(Q, width) the largest inverse propensities among each query's labels, 0 behind the last."""
    values, rows = inverse[truth.values], truth.row_of_value
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]  # query after query, each falling
    place = torch.arange(len(order)) - truth.offsets[rows]  # rows are sorted: those of ``order`` too
    kept = place < width
    out = torch.zeros(len(truth), width, dtype=values.dtype)
    out[rows[kept], place[kept]] = values[order[kept]]
    return out
