"""NGAME: batches made of clusters of similar anchors, so that in-batch negatives are hard."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from miners.base import BatchMiner, TrainingTable, process_count, process_rank
from miners.pool import Items

if TYPE_CHECKING:
    from miners.store import Store

log = logging.getLogger(__name__)

BLOCK_BYTES = 4 << 20  # clusters that are split together on a CPU: what a core's cache holds from one pass to the next


class NGAME(BatchMiner):
    """Cluster the anchors by their current embeddings; a batch is a union of clusters.

    An anchor and its positive are close once the encoder is half trained, so the positive of a neighbouring anchor is
    close and irrelevant: a hard negative that costs no index, no extra encoding and no list.

    Args:
        cluster_size: rows of a cluster; the number of clusters is the next power of two, so that real sizes lie in
            (cluster_size / 2, cluster_size]. 1 is plain shuffling. A rising list such as [1, 2, 4, 8, 16] is a
            curriculum, spread evenly over ``spread_epochs``. Ignored where ``halve_at`` is given.
        batch_size, drop_last, seed: as in `BatchMiner`.
        halve_at: the published curriculum: epochs at which the number of clusters, first one per row, is halved;
            clustering starts at the first of them. () uses ``cluster_size`` from ``warmup_epochs`` on.
        warmup_epochs: epochs of plain shuffling before the first clustering.
        refresh_interval: cluster anew at epochs that it divides.
        lag: 1 uses clusters one epoch after the embeddings they were made of, as the published code does.
        embeddings: "fresh" takes what a callback re-encodes (`hardneg.callbacks.RefreshNegatives`); "buffer" keeps what
            each anchor's own training step showed, at most one epoch old, at no extra cost.
        space: the anchors' space, as named in the stores of ``refresh``.
        spread_epochs: epochs, from ``warmup_epochs`` on, over which a list of sizes is spread; the last size stays.
            A size takes hold when its turn has come and ``refresh_interval`` lets the anchors be clustered.
        device: where anchors are clustered: "cpu", "cuda", "cuda:1", ...

    Source:
        NGAME, arXiv 2207.04452, algorithm 1, and its code's schedule and balanced splits. Differs: lag 0 by default;
        no more clusters than rows (the published loop would not end); several processes take the first one's clusters.
    """

    def __init__(
        self,
        cluster_size: int | Sequence[int] = 16,
        batch_size: int = 32,
        drop_last: bool = False,
        seed: int = 0,
        halve_at: Sequence[int] = (),
        warmup_epochs: int = 0,
        refresh_interval: int = 1,
        lag: Literal[0, 1] = 0,
        embeddings: Literal["fresh", "buffer"] = "fresh",
        space: str = "query",
        spread_epochs: int | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(batch_size, drop_last, seed)
        sizes = [cluster_size] if isinstance(cluster_size, int) else list(cluster_size)
        if min(sizes, default=0) < 1 or refresh_interval < 1 or lag not in (0, 1):
            raise ValueError(
                f"NGAME(cluster_size={cluster_size}, refresh_interval={refresh_interval}, lag={lag}): sizes and "
                "intervals are at least 1, lag is 0 or 1."
            )
        if sizes != sorted(set(sizes)):
            raise ValueError(f"NGAME(cluster_size={sizes}): a curriculum is a rising list, such as [1, 2, 4, 8, 16].")
        if (len(sizes) > 1) != (spread_epochs is not None) or (spread_epochs is not None and spread_epochs < 1):
            raise ValueError(
                f"NGAME(cluster_size={cluster_size}, spread_epochs={spread_epochs}): a list of sizes wants the number "
                "of epochs that it is spread over, at least 1, and a single size wants none."
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
        self.spread_epochs = spread_epochs
        self.device = device
        self._store: Store | None = None
        self._buffer: Tensor | None = None  # (N, d) what training showed of each row
        self._seen: Tensor | None = None  # (N,) rows that the buffer holds
        self._order: Tensor | None = None  # (N,) rows, cluster after cluster
        self._sizes: Tensor | None = None  # (K,) rows of each cluster

    def attach(self, table: TrainingTable) -> None:
        super().attach(table)
        self._order = self._sizes = self._buffer = self._seen = None

    def size_at(self, epoch: int) -> int:
        """The ``cluster_size`` whose turn it is at ``epoch``."""
        if isinstance(self.cluster_size, int):
            return self.cluster_size
        turn = max(epoch - self.warmup_epochs, 0) * len(self.cluster_size) // (self.spread_epochs or 1)
        return self.cluster_size[min(turn, len(self.cluster_size) - 1)]

    def num_clusters(self, num_rows: int, epoch: int) -> int:
        """K' that a clustering at ``epoch`` asks for: a power of two, at most ``num_rows``."""
        if self.halve_at:
            wanted = num_rows / 2 ** sum(at <= epoch for at in self.halve_at)
        else:
            wanted = num_rows / self.size_at(epoch)
        return 2 ** min(math.ceil(math.log2(max(wanted, 1))), int(math.log2(num_rows)))

    def due(self, epoch: int) -> bool:
        """Whether anchors are clustered at the start of ``epoch``."""
        if not self.halve_at and self.size_at(epoch) == 1:
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
        order, sizes = alike_on_all(self._clusters_of, vectors, epoch)
        rest = (~self._seen).nonzero()[:, 0] if self.embeddings == "buffer" else rows[:0]  # type: ignore[operator]
        self._order, self._sizes = torch.cat([rows[order], rest]), torch.cat([sizes, torch.ones_like(rest)])

    def _clusters_of(self, vectors: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        wanted = self.num_clusters(len(vectors), epoch)
        order, sizes = balanced_clusters(vectors.to(self.device), wanted, self.generator(epoch, stream=1))
        return order.cpu(), sizes


def balanced_clusters(
    vectors: Tensor, num_clusters: int, generator: torch.Generator, tolerance: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Split rows into clusters whose sizes differ by at most one, by rounds of balanced spherical 2-means.

    Every cluster is split in every round until there are enough. Rows go to halves by the rank of
    ``x . (c1 - c0)``, never to the nearest centroid; of equal ranks, the earlier row goes to the first half. A GPU
    splits all clusters of a round at once; a CPU takes as many together as its cache holds, on each of its threads.

    Args:
        vectors: (n, d), any length, on any device; normalised here.
        num_clusters: rounded up to a power of two, at most n.
        generator: of the CPU; draws the two starting rows of each split.
        tolerance: a split ends when its mean cosine gains less.

    Returns:
        order (n,) int64 on the vectors' device: rows, cluster after cluster, rising within each; sizes (K',) int64 on
        the CPU.

    Raises:
        ValueError: vectors that are not finite, naming the first such row.

    Source:
        NGAME's balanced splits (pyxclib `b_kmeans_dense`), made simultaneous over the clusters of a round.
    """
    n, dim = vectors.shape
    x = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32))
    norms = x.norm(dim=1, keepdim=True)  # (n, 1)
    if not bool(torch.isfinite(norms).all()) and not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise ValueError(f"cannot cluster: row {row} of {n} has a vector that is not finite (NaN or infinite).")
    x = x / norms.clamp_min(1e-12)
    rounds = min(math.ceil(math.log2(max(num_clusters, 1))), int(math.log2(max(n, 1))))
    order, sizes = torch.arange(n, device=x.device), torch.tensor([n])
    on_cpu = x.device.type == "cpu"

    def split(part: Tensor, of_part: Tensor, at: Tensor) -> Tensor:
        return _split(x, part, of_part, at, tolerance)

    with ThreadPoolExecutor(torch.get_num_threads() if on_cpu else 1) as pool:
        for _ in range(rounds):
            starts = _starts(sizes, generator)
            widest = int(sizes.max())
            together = max(1, BLOCK_BYTES // (4 * dim * widest)) if on_cpu else len(sizes)
            blocks = sizes.split(together)
            parts = order.split([int(block.sum()) for block in blocks])
            # a cluster larger than the cache keeps all threads busy by itself
            alone = not on_cpu or 4 * dim * widest > BLOCK_BYTES
            order = torch.cat(list((map if alone else pool.map)(split, parts, blocks, starts.split(together))))
            sizes = _halves(sizes)
    return order, sizes


def _halves(sizes: Tensor) -> Tensor:
    """(2C,) rows of both halves of each cluster; an odd row goes to the first."""
    first = (sizes + 1) // 2
    return torch.stack([first, sizes - first], dim=1).reshape(-1)


def _starts(sizes: Tensor, generator: torch.Generator) -> Tensor:
    """(C, 2) two distinct places in each cluster."""
    draws = torch.rand(len(sizes), 2, generator=generator, dtype=torch.float64)
    one = (draws[:, 0] * sizes).long()
    two = (draws[:, 1] * (sizes - 1)).long()
    return torch.stack([one, two + (two >= one).long()], dim=1)


def _split(x: Tensor, order: Tensor, sizes: Tensor, starts: Tensor, tolerance: float) -> Tensor:
    """Split C clusters in two, all at once; their sizes differ by at most one, so that padding costs a row of each.

    Args:
        x: (n, d) normalised rows of all clusters.
        order: (m,) the rows of these ones, cluster after cluster.
        sizes, starts: (C,), (C, 2) on the CPU.

    Returns:
        (m,) the same rows, half after half.
    """
    device, width = x.device, int(sizes.max())
    size = sizes.to(device)
    index, valid = order, torch.ones(len(order), dtype=torch.bool, device=device)
    if padded := len(order) < len(sizes) * width:
        valid = torch.arange(width, device=device) < size[:, None]
        index = order.new_zeros(valid.shape)
        index[valid] = order
    index, valid = index.view(len(sizes), width), valid.view(len(sizes), width)  # (C, width)
    points = x.index_select(0, index.view(-1)).view(*index.shape, -1)  # (C, width, d)
    if padded:
        points[~valid] = 0
    # with an odd width, a cluster that lacks a row lacks it in its first half: padding takes that place
    kept, padding = (width + 1) // 2, -3.0 if width % 2 else 3.0
    every = torch.arange(len(sizes), device=device)
    chosen = points[every[:, None], starts.to(device)]  # (C, 2, d)
    towards = chosen[:, 1] - chosen[:, 0]  # (C, d)
    total = _sums(points, valid)
    first = torch.zeros_like(valid)  # what is returned
    half = torch.zeros_like(valid)  # of the last pass
    sums = torch.zeros_like(total)  # of the first half
    held, going, present = every, torch.ones_like(every, dtype=torch.bool), valid
    best = total.new_full((len(sizes),), -2.0)  # mean cosines cannot fall so low
    while True:
        preference = _dots(points, towards)
        if padded:
            preference[~present] = padding
        now = _smallest(preference, kept) & present
        if len(held) == 1:  # one large cluster does not fit the cache: read again only the rows that changed halves
            moved = (now ^ half)[0].nonzero()[:, 0]
            sums = sums + (now[0, moved].to(x.dtype) * 2 - 1) @ points[0].index_select(0, moved)
        else:
            sums = _sums(points, now)
        half, rest = now, total - sums
        lengths = torch.stack([sums.norm(dim=1), rest.norm(dim=1)], dim=1)  # (H, 2)
        objective = lengths.sum(1) / size  # sum of x . c, since c is the normalised sum
        done = going & (objective - best < tolerance)
        best = objective
        if bool(done.any()):
            first[held[done]] = now[done]
            going = going & ~done
            left = int(going.sum())
            if left == 0:
                break
            if 4 * left <= 3 * len(held):  # else what is done goes on and nobody looks: cheaper than a copy
                stay = going.nonzero()[:, 0]
                points, present, half, total, sums, rest = (
                    part.index_select(0, stay) for part in (points, present, half, total, sums, rest)
                )
                lengths, size, best, held, going = (part[stay] for part in (lengths, size, best, held, going))
        unit = 1 / lengths.clamp_min(1e-12)
        towards = rest * unit[:, 1:] - sums * unit[:, :1]
    halves = torch.stack([first, ~first & valid], dim=1)  # (C, 2, width)
    return index[:, None].expand_as(halves)[halves]


def _dots(points: Tensor, towards: Tensor) -> Tensor:
    """(C, width) products of the rows (C, width, d) of each cluster with its own vector (C, d)."""
    if points.device.type != "cpu" or len(points) == 1:
        return torch.bmm(points, towards[:, :, None])[:, :, 0]
    # MKL's batched products take 15 times as long where one side has a single column
    return torch.from_numpy(np.vecdot(points.numpy(), towards[:, None].numpy()))


def _sums(points: Tensor, chosen: Tensor) -> Tensor:
    """(C, d) sums of the ``chosen`` (C, width) rows of each cluster (C, width, d)."""
    weights = chosen.to(points.dtype)
    if points.device.type != "cpu" or len(points) == 1:
        return torch.bmm(weights[:, None], points)[:, 0]
    return torch.from_numpy(np.einsum("cw,cwd->cd", weights.numpy(), points.numpy()))


def _smallest(values: Tensor, k: int) -> Tensor:
    """(C, width) which k of each row are smallest; of equal ones, the first."""
    if values.device.type == "cpu":
        highest = torch.from_numpy(np.partition(values.numpy(), k - 1, axis=1)[:, k - 1 : k])
    else:
        highest = values.kthvalue(k, dim=1, keepdim=True).values
    chosen = values <= highest
    if bool((chosen.sum(1) > k).any()):
        below, equal = values < highest, values == highest
        chosen = below | (equal & (equal.cumsum(1) <= k - below.sum(1, keepdim=True)))
    return chosen


def alike_on_all(make: Callable[..., tuple[Tensor, Tensor]], *arguments: Any) -> tuple[Tensor, Tensor]:
    """What the first process makes, on all: last digits may differ between machines, and orders must not."""
    if process_count() == 1:
        return make(*arguments)
    made: list[Any] = [make(*arguments) if process_rank() == 0 else None]
    torch.distributed.broadcast_object_list(made, src=0)
    return made[0]


def _shuffle_clusters(order: Tensor, sizes: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) the clusters in random order, each with its rows as they stand."""
    starts = sizes.cumsum(0) - sizes
    chosen = torch.randperm(len(sizes), generator=generator)
    lengths = sizes[chosen]
    within = torch.arange(len(order)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return order[torch.repeat_interleave(starts[chosen], lengths) + within]
