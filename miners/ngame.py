"""NGAME: batches made of clusters of similar anchors, so that in-batch negatives are hard."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from miners.base import BatchMiner, TrainingTable, process_count, process_rank
from miners.pool import Items

if TYPE_CHECKING:
    from miners.store import Store

log = logging.getLogger(__name__)

BLOCK_BYTES = 8 << 20  # clusters that are split together on a CPU: what a core's cache holds from one pass to the next
ROWS_AT_ONCE = 512  # of a larger cluster, what a thread copies or sums at a time


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
    splits all clusters of a round at once. A CPU splits large clusters one by one, on all threads; smaller ones go
    through all further rounds in blocks, each on one thread. Beside ``vectors`` it holds one copy of them, and two
    blocks for each thread.

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
    x = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32)).contiguous()
    norms = x.norm(dim=1, keepdim=True)  # (n, 1)
    if not bool(torch.isfinite(norms).all()) and not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise ValueError(f"cannot cluster: row {row} of {n} has a vector that is not finite (NaN or infinite).")
    norms = norms.clamp_min(1e-12)
    rounds = min(math.ceil(math.log2(max(num_clusters, 1))), int(math.log2(max(n, 1))))
    sizes, starts = [torch.tensor([n])], []
    if rounds == 0:
        return torch.arange(n, device=x.device), sizes[0]
    for _ in range(rounds):
        starts.append(_starts(sizes[-1], generator))
        sizes.append(_halves(sizes[-1]))
    if not x.is_cpu:
        return _all_rounds(x / norms, sizes[0], starts, tolerance), sizes[-1]

    order, points = torch.arange(n), _room(x, n)  # fresh memory is slow: this copy serves every round
    most = max(1, BLOCK_BYTES // (x.element_size() * dim))  # rows of a block
    level, threads = 0, torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            while level < rounds and int(sizes[level][0]) > most:
                for rows, pair in zip(order.split(sizes[level].tolist()), starts[level].split(1), strict=True):
                    own, all_valid = points[: len(rows)], torch.ones(1, len(rows), dtype=torch.bool)
                    list(pool.map(partial(_fill, x, norms), rows.split(ROWS_AT_ONCE), own.split(ROWS_AT_ONCE)))
                    first = _split(own[None], all_valid, pair, tolerance, pool)[0]
                    rows.copy_(torch.cat([rows[first], rows[~first]]))
                level += 1
            together = max(1, most // int(sizes[level][0]))
            blocks = sizes[level].split(together)
            lengths = [int(block.sum()) for block in blocks]

            def finish(rows: Tensor, own: Tensor, block: Tensor, *pairs: Tensor) -> None:
                _fill(x, norms, rows, own)
                rows.copy_(rows[_all_rounds(own, block, pairs, tolerance)])

            pairs = [part.split(together << below) for below, part in enumerate(starts[level:])]
            list(pool.map(finish, order.split(lengths), points.split(lengths), blocks, *pairs))
    finally:
        torch.set_num_threads(threads)  # what the pool's threads set is what later threads would begin with
    return order, sizes[-1]


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


def _fill(x: Tensor, norms: Tensor, rows: Tensor, points: Tensor) -> None:
    """Write the normalised ``rows`` (m,) of x (n, d) to ``points`` (m, d)."""
    _copy(x, rows, points)
    points /= norms[rows]


def _all_rounds(points: Tensor, sizes: Tensor, starts: Sequence[Tensor], tolerance: float) -> Tensor:
    """Split C clusters by one round for each of ``starts``, all clusters of a round at once.

    Args:
        points: (m, d) their normalised rows, cluster after cluster.
        sizes: (C,) on the CPU; they differ by at most one, so that padding costs a row of each.
        starts: (C, 2), (2C, 2), ... on the CPU.

    Returns:
        (m,) places of the same rows, part after part.
    """
    order = torch.arange(len(points), device=points.device)
    room = _room(points, len(points) + (len(sizes) << len(starts)))  # with all padding
    for pair in starts:
        width = int(sizes.max())
        valid = torch.arange(width, device=points.device) < sizes.to(points.device)[:, None]  # (C, width)
        index = order.new_zeros(valid.shape)
        index[valid] = order
        padded = room[: index.numel()]
        _copy(points, index.view(-1), padded)
        first = _split(padded.view(*index.shape, -1), valid, pair, tolerance)
        halves = torch.stack([first, ~first & valid], dim=1)  # (C, 2, width)
        order = index[:, None].expand_as(halves)[halves]
        sizes = _halves(sizes)
    return order


def _split(points: Tensor, valid: Tensor, starts: Tensor, tolerance: float, pool: Executor | None = None) -> Tensor:
    """Balanced 2-means of C clusters, all at once.

    Args:
        points: (C, width, d) normalised rows; clusters change places there.
        valid: (C, width) False for padding, at most the last of each cluster.
        starts: (C, 2) places of the two rows to start from.
        pool: splits one large cluster (C = 1) on all its threads.

    Returns:
        (C, width) which rows are the first half.
    """
    width, size = points.shape[1], valid.sum(1)
    # with an odd width, a cluster that lacks a row lacks it in its first half: padding takes that place
    kept, padding = (width + 1) // 2, -3.0 if width % 2 else 3.0
    held = torch.arange(len(points), device=points.device)  # clusters that go on
    chosen = points[held[:, None], starts.to(points.device)]  # (C, 2, d)
    towards = chosen[:, 1] - chosen[:, 0]  # (C, d)
    first = torch.zeros_like(valid)  # what is returned
    half, sums = first.clone(), torch.zeros_like(towards)  # of the last pass
    total = _sums(points, valid, half, sums)
    best = total.new_full((len(points),), -2.0)  # mean cosines cannot fall so low
    while True:
        preference = _dots(points, towards, pool)
        preference[~valid] = padding
        now = _smallest(preference, kept) & valid
        sums = _sums(points, now, half, sums)
        both = torch.stack([sums, total - sums], dim=1)  # (H, 2, d)
        lengths = torch.linalg.vector_norm(both, dim=2)
        objective = lengths.sum(1) / size  # sum of x . c, since c is the normalised sum
        both /= lengths.clamp_min(1e-12)[:, :, None]
        towards = both[:, 1] - both[:, 0]
        done = objective - best < tolerance
        half, best = now, objective
        if bool(done.any()):
            first[held[done]] = now[done]
            left = len(done) - int(done.sum())
            if left == 0:
                return first
            # clusters that go on from the end take the places of those that are done
            stay, gaps = torch.arange(left, device=held.device), done[:left].nonzero()[:, 0]
            stay[gaps] = left + (~done[left:]).nonzero()[:, 0]
            _move(points, stay[gaps], gaps)
            points = points[:left]
            held, valid, size, towards, half, sums, total, best = (
                part[stay] for part in (held, valid, size, towards, half, sums, total, best)
            )


# On a CPU, NumPy copies rows and multiplies them: PyTorch copies at half the speed or less, and MKL takes 3 times as
# long for products with one vector, 15 times as long for a batch of such.


def _room(like: Tensor, rows: int) -> Tensor:
    """Empty (rows, d) for rows of ``like`` (n, d)."""
    shape = (rows, like.shape[1])
    # NumPy asks for large pages: a sixth of the time of all
    return torch.from_numpy(np.empty(shape, like.numpy().dtype)) if like.is_cpu else like.new_empty(shape)


def _copy(points: Tensor, index: Tensor, out: Tensor) -> None:
    """Write the rows ``index`` (m,) of points (n, d) to ``out`` (m, d)."""
    if not points.is_cpu:
        torch.index_select(points, 0, index, out=out)
    else:
        np.take(points.numpy(), index.numpy(), axis=0, out=out.numpy(), mode="clip")  # "raise" would copy twice


def _move(points: Tensor, source: Tensor, to: Tensor) -> None:
    """points[to] = points[source]."""
    if not points.is_cpu:
        points[to] = points[source]
    else:
        points.numpy()[to.numpy()] = points.numpy()[source.numpy()]


def _dots(points: Tensor, towards: Tensor, pool: Executor | None) -> Tensor:
    """(C, width) products of the rows (C, width, d) of each cluster with its own vector (C, d)."""
    if not points.is_cpu:
        return torch.bmm(points, towards[:, :, None])[:, :, 0]
    if pool is None:
        return torch.from_numpy(np.vecdot(points.numpy(), towards[:, None].numpy()))
    parts = pool.map(np.vecdot, np.array_split(points[0].numpy(), 4 * torch.get_num_threads()), repeat(towards.numpy()))
    return torch.from_numpy(np.concatenate(list(parts)))[None]


def _sums(points: Tensor, chosen: Tensor, before: Tensor, sums: Tensor) -> Tensor:
    """(C, d) sums of the ``chosen`` (C, width) rows of each cluster (C, width, d).

    A CPU starts from the ``sums`` of those chosen ``before``, and reads again only rows that changed.
    """
    if not points.is_cpu:
        return torch.bmm(chosen[:, None].to(points.dtype), points)[:, 0]
    clusters, width = chosen.shape
    changed = (chosen ^ before).view(-1).nonzero()[:, 0]
    sign = chosen.view(-1)[changed].to(points.dtype) * 2 - 1
    bounds = torch.arange(0, clusters * width, width if clusters > 1 else ROWS_AT_ONCE)
    bags = torch.searchsorted(changed, bounds)
    moved = F.embedding_bag(changed, points.view(clusters * width, -1), bags, mode="sum", per_sample_weights=sign)
    return sums + (moved if clusters > 1 else moved.sum(0))


def _smallest(values: Tensor, k: int) -> Tensor:
    """(C, width) which k of each row are smallest; of equal ones, the first."""
    if not values.is_cpu:
        highest = values.kthvalue(k, dim=1, keepdim=True).values
    else:
        highest = torch.from_numpy(np.partition(values.numpy(), k - 1, axis=1)[:, k - 1 : k])
    chosen = values <= highest
    if int(chosen.sum()) > k * len(values):
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
