"""Clusters of vectors by direction: plain spherical k-means, where clusters may have any size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 1 << 22  # similarities at a time


def spherical_kmeans(
    vectors: Tensor, num_clusters: int, generator: torch.Generator, iterations: int = 20
) -> tuple[Tensor, Tensor]:
    """Cluster rows so that each has its centre's direction as nearly as can be; no cluster is empty.

    Args:
        vectors: (n, d), any length, on any device; normalised here.
        num_clusters: K, at most n.
        generator: of the CPU; draws the rows that centres start from.
        iterations: at most; it ends sooner where no row changes its cluster.

    Returns:
        labels (n,) int64 and unit centres (K, d), on the vectors' device.

    Raises:
        ValueError: more clusters than rows, or vectors that are not finite (the row is named).

    Source:
        Dhillon and Modha, Machine Learning 42, 2001. Differs: an empty cluster takes the row that fits worst.
    """
    if not 1 <= num_clusters <= len(vectors):
        raise ValueError(f"cannot make {num_clusters} clusters of {len(vectors)} vectors.")
    x = F.normalize(vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise ValueError(f"cannot cluster: row {row} of {len(x)} has a vector that is not finite (NaN or infinite).")
    centres = x[torch.randperm(len(x), generator=generator)[:num_clusters].to(x.device)]
    labels, fit = _nearest(x, centres)
    for _ in range(iterations):
        labels = _filled(labels, fit, num_clusters)
        centres = F.normalize(torch.zeros_like(centres).index_add_(0, labels, x), dim=1)
        before = labels
        labels, fit = _nearest(x, centres)
        if torch.equal(before, labels):
            break
    labels = _filled(labels, fit, num_clusters)
    return labels, F.normalize(torch.zeros_like(centres).index_add_(0, labels, x), dim=1)


def _nearest(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) the centre with the highest cosine, and that cosine; some rows at a time."""
    with torch.autocast(x.device.type, enabled=False):  # half precision would find other clusters
        best = [(part @ centres.T).max(1) for part in x.split(max(1, BLOCK // len(centres)))]
    return torch.cat([one.indices for one in best]), torch.cat([one.values for one in best])


def _filled(labels: Tensor, fit: Tensor, number: int) -> Tensor:
    """Give each empty cluster the row that fits its own cluster worst, unless it is alone there."""
    size = torch.bincount(labels, minlength=number)
    empty = (size == 0).nonzero()[:, 0]
    if not len(empty):
        return labels
    order = fit.argsort(stable=True)  # worst first
    ranked = labels[order]
    # the best row of each cluster stays where it is: of equal labels, the last in this order
    last = torch.zeros_like(size).scatter_reduce_(
        0, ranked, torch.arange(len(order), device=labels.device), "amax", include_self=False
    )
    stays = torch.zeros(len(order), dtype=torch.bool, device=labels.device)
    stays[last[size > 0]] = True
    labels = labels.clone()
    labels[order[~stays][: len(empty)]] = empty
    return labels
