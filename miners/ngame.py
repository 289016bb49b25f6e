"""NGAME: batches made of clusters of similar anchors, so that in-batch negatives are hard."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from miners.base import BatchMiner, TrainingTable
from miners.pool import Items

if TYPE_CHECKING:
    from miners.store import Store

log = logging.getLogger(__name__)


class NGAME(BatchMiner):
    """Cluster the anchors by their current embeddings; a batch is a union of clusters.

    An anchor and its positive are close once the encoder is half trained, so the positive of a neighbouring anchor is
    close and irrelevant: a hard negative that costs no index, no extra encoding and no list.

    Args:
        cluster_size: rows of a cluster; the number of clusters is the next power of two, so that real sizes lie in
            (cluster_size / 2, cluster_size]. 1 is plain shuffling. Ignored where ``halve_at`` is given.
        batch_size, drop_last, seed: as in `BatchMiner`.
        halve_at: the published curriculum: epochs at which the number of clusters, first one per row, is halved;
            clustering starts at the first of them. () uses ``cluster_size`` from ``warmup_epochs`` on.
        warmup_epochs: epochs of plain shuffling before the first clustering.
        refresh_interval: cluster anew at epochs that it divides.
        lag: 1 uses clusters one epoch after the embeddings they were made of, as the published code does.
        embeddings: "fresh" takes what a callback re-encodes (`hardneg.callbacks.RefreshNegatives`); "buffer" keeps what
            each anchor's own training step showed, at most one epoch old, at no extra cost.
        space: the anchors' space, as named in the stores of ``refresh``.

    Source:
        NGAME, arXiv 2207.04452, algorithm 1, and its code's schedule and balanced splits. Differs: lag 0 by default;
        no more clusters than rows (the published loop would not end).
    """

    def __init__(
        self,
        cluster_size: int = 16,
        batch_size: int = 32,
        drop_last: bool = False,
        seed: int = 0,
        halve_at: Sequence[int] = (),
        warmup_epochs: int = 0,
        refresh_interval: int = 1,
        lag: Literal[0, 1] = 0,
        embeddings: Literal["fresh", "buffer"] = "fresh",
        space: str = "query",
    ) -> None:
        super().__init__(batch_size, drop_last, seed)
        if cluster_size < 1 or refresh_interval < 1 or lag not in (0, 1):
            raise ValueError(
                f"NGAME(cluster_size={cluster_size}, refresh_interval={refresh_interval}, lag={lag}): sizes and "
                "intervals are at least 1, lag is 0 or 1."
            )
        if embeddings not in ("fresh", "buffer"):
            raise ValueError(f"NGAME(embeddings='{embeddings}'): wants 'fresh' or 'buffer'.")
        if list(halve_at) != sorted(set(halve_at)) or any(epoch < 1 for epoch in halve_at):
            raise ValueError(f"NGAME(halve_at={list(halve_at)}): rising epochs from 1 on.")
        self.cluster_size = cluster_size
        self.halve_at = tuple(halve_at)
        self.warmup_epochs = warmup_epochs
        self.refresh_interval = refresh_interval
        self.lag = lag
        self.embeddings = embeddings
        self.space = space
        self._store: Store | None = None
        self._buffer: Tensor | None = None  # (N, d) what training showed of each row
        self._seen: Tensor | None = None  # (N,) rows that the buffer holds
        self._order: Tensor | None = None  # (N,) rows, cluster after cluster
        self._sizes: Tensor | None = None  # (K,) rows of each cluster

    def attach(self, table: TrainingTable) -> None:
        super().attach(table)
        self._order = self._sizes = self._buffer = self._seen = None

    def num_clusters(self, num_rows: int, epoch: int) -> int:
        """K' that a clustering at ``epoch`` asks for: a power of two, at most ``num_rows``."""
        if self.halve_at:
            wanted = num_rows / 2 ** sum(at <= epoch for at in self.halve_at)
        else:
            wanted = num_rows / self.cluster_size
        return 2 ** min(math.ceil(math.log2(max(wanted, 1))), int(math.log2(num_rows)))

    def due(self, epoch: int) -> bool:
        """Whether anchors are clustered at the start of ``epoch``."""
        if not self.halve_at and self.cluster_size == 1:
            return False  # a power of two of clusters would keep pairs together
        first = self.halve_at[0] if self.halve_at else self.warmup_epochs
        return epoch >= first and epoch % self.refresh_interval == 0

    def schedule(self, num_rows: int, epochs: int) -> list[tuple[int, int]]:
        """(first epoch, K') of every change in the number of clusters that batches are made of."""
        changes = [(0, num_rows)]
        for epoch in range(epochs):
            if self.due(epoch) and (clusters := self.num_clusters(num_rows, epoch)) != changes[-1][1]:
                changes.append((epoch + self.lag, clusters))
        return changes[1:] if len(changes) > 1 and changes[1][0] == 0 else changes

    def arrange(self, rows: Tensor, epoch: int) -> Tensor:
        if self.due(epoch) and not self.lag:
            self._cluster(epoch)
        generator = self.generator(epoch)
        if self._order is None or self._sizes is None:
            order = rows[torch.randperm(len(rows), generator=generator)]
        else:
            shuffled = _shuffle_clusters(self._order, self._sizes, generator)
            order = shuffled if len(rows) == len(shuffled) else shuffled[torch.isin(shuffled, rows)]
        if self.due(epoch) and self.lag:
            self._cluster(epoch)
        return order

    def refresh(self, stores: Mapping[str, Store]) -> None:
        if self.embeddings == "fresh":
            if self.space not in stores:
                raise ValueError(
                    f"NGAME clusters space '{self.space}' and was handed {sorted(stores)}: set NGAME's space to one of "
                    "them, or let the refresh encode it."
                )
            self._store = stores[self.space]
            super().refresh(stores)

    def observe(self, rows: Tensor, anchors: Items) -> None:
        if self.embeddings != "buffer" or anchors.embeddings is None:
            return
        vectors = anchors.embeddings.detach().float().cpu()
        if self._buffer is None:
            self._buffer = torch.zeros(len(self._attached()), vectors.shape[1])
            self._seen = torch.zeros(len(self._attached()), dtype=torch.bool)
        self._buffer[rows.cpu()] = vectors
        self._seen[rows.cpu()] = True  # type: ignore[index]

    def state_dict(self) -> dict[str, Any]:
        parts = ("_buffer", "_seen", "_order", "_sizes")
        return super().state_dict() | {name: getattr(self, name) for name in parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in ("_buffer", "_seen", "_order", "_sizes"):
            setattr(self, name, state[name])

    def _cluster(self, epoch: int) -> None:
        """Replace the clusters by ones of the embeddings at hand; rows never seen are clusters of one."""
        table = self._attached()
        if self.embeddings == "buffer":
            if self._buffer is None or self._seen is None:
                log.info("NGAME: no row has been trained yet, so epoch %d is shuffled plainly.", epoch)
                return
            rows, vectors = self._seen.nonzero()[:, 0], self._buffer[self._seen]
        else:
            if self._store is None:
                raise RuntimeError(
                    f"NGAME has no embeddings to cluster at epoch {epoch}. Add the callback RefreshNegatives of "
                    "hardneg.callbacks (or of hardneg.interop.sentence_transformers, in its trainer), which hands them "
                    "over before the epoch, call refresh(stores) yourself, or set embeddings='buffer'."
                )
            rows, vectors = torch.arange(len(table)), self._store.rows(table.anchors)
        if len(rows) < 2:
            return
        order, sizes = balanced_clusters(vectors, self.num_clusters(len(rows), epoch), self.generator(epoch, stream=1))
        rest = (~self._seen).nonzero()[:, 0] if self.embeddings == "buffer" else rows[:0]  # type: ignore[operator]
        self._order, self._sizes = torch.cat([rows[order], rest]), torch.cat([sizes, torch.ones_like(rest)])


def balanced_clusters(
    vectors: Tensor, num_clusters: int, generator: torch.Generator, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Split rows into clusters whose sizes differ by at most one, by rounds of balanced spherical 2-means.

    Every cluster is split in every round until there are enough; all clusters of a round are split at once. Rows go
    to halves by the rank of ``x . (c1 - c0)``, never to the nearest centroid; ties keep their order.

    Args:
        vectors: (n, d), any length; normalised here.
        num_clusters: rounded up to a power of two, at most n.
        generator: draws the two starting rows of each split.
        tolerance: a split ends when its mean cosine gains less.

    Returns:
        order (n,) int64: rows, cluster after cluster; sizes (K',) int64.

    Raises:
        ValueError: vectors that are not finite, naming the first such row.

    Source:
        NGAME's balanced splits (pyxclib `b_kmeans_dense`), made simultaneous over the clusters of a round.
    """
    n = len(vectors)
    if not bool(torch.isfinite(vectors).all()):
        row = int((~torch.isfinite(vectors)).any(1).nonzero()[0])
        raise ValueError(f"cannot cluster: row {row} of {n} has a vector that is not finite (NaN or infinite).")
    num_clusters = 2 ** min(math.ceil(math.log2(max(num_clusters, 1))), int(math.log2(max(n, 1))))
    x = F.normalize(vectors.float(), dim=1)
    order, sizes = torch.arange(n), torch.tensor([n])
    while len(sizes) < num_clusters:
        order, sizes = _split_all(x, order, sizes, generator, tolerance)
    return order, sizes


def _split_all(
    x: Tensor, order: Tensor, sizes: Tensor, generator: torch.Generator, tolerance: float
) -> tuple[Tensor, Tensor]:
    """One round: every cluster in two. Sizes differ by at most one, so that padding costs one slot per cluster."""
    clusters, width = len(sizes), int(sizes.max())
    slot = torch.arange(width)
    valid = slot < sizes[:, None]  # (C, width)
    index = torch.zeros(clusters, width, dtype=torch.long)
    index[valid] = order
    first = (sizes + 1) // 2  # an odd row goes to the first half
    draws = torch.rand(clusters, 2, generator=generator, dtype=torch.float64)
    one = (draws[:, 0] * sizes).long()
    two = (draws[:, 1] * (sizes - 1)).long()
    two = two + (two >= one).long()  # distinct
    every = torch.arange(clusters)
    c0, c1 = x[index[every, one]], x[index[every, two]]
    points = x[index]  # (C, width, d)
    place = torch.zeros(clusters, width, dtype=torch.long)  # slots in order of preference for the second half
    best = torch.full((clusters,), -2.0)  # mean cosines cannot fall so low
    active = every
    while len(active):
        mine = points if len(active) == clusters else points[active]
        preference = torch.bmm(mine, (c1 - c0)[active, :, None])[:, :, 0]
        preference[~valid[active]] = 3.0  # padding stays last: differences of cosines end at 2
        ranked = preference.argsort(dim=1, stable=True)
        rank = torch.empty_like(ranked).scatter_(1, ranked, slot.expand_as(ranked))
        in_first = rank < first[active, None]
        halves = torch.stack([in_first, ~in_first & valid[active]], dim=1).to(mine.dtype)  # (A, 2, width)
        sums = torch.bmm(halves, mine)  # (A, 2, d)
        objective = sums.norm(dim=2).sum(1) / sizes[active]  # sum of x . c, since c is the normalised sum
        place[active] = ranked
        c0[active], c1[active] = F.normalize(sums[:, 0], dim=1), F.normalize(sums[:, 1], dim=1)
        gained = objective - best[active] >= tolerance
        best[active] = objective
        active = active[gained]
    taken = slot < first[:, None]
    rows = index.gather(1, place)
    halves_rows = torch.stack([rows, rows], dim=1)  # (C, 2, width): the same row list, two masks
    keep = torch.stack([taken, ~taken & valid], dim=1)
    return halves_rows[keep], torch.stack([first, sizes - first], dim=1).reshape(-1)


def _shuffle_clusters(order: Tensor, sizes: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) the clusters in random order, each with its rows as they stand."""
    starts = sizes.cumsum(0) - sizes
    chosen = torch.randperm(len(sizes), generator=generator)
    lengths = sizes[chosen]
    within = torch.arange(len(order)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return order[torch.repeat_interleave(starts[chosen], lengths) + within]
