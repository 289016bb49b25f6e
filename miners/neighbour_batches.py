"""Sample4Geo: batches filled with neighbours, by place first and by similarity later."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from miners.base import BatchMiner, TrainingTable, process_rank
from miners.ngame import alike_on_all
from miners.no_duplicates import _keys_of
from miners.pool import NOBODY, among
from miners.ragged import Ragged

if TYPE_CHECKING:
    from miners.store import Store

log = logging.getLogger(__name__)

WAITING, NOT_HERE = -1, -2  # in no batch yet; handed out already
SEARCHED_ROWS = 4096  # rows whose neighbours are looked for at one time: what a search holds beside its table
Ints = NDArray[np.int64]


class NeighbourTable(ABC):
    """For each training row, other rows' documents, nearest first, never one of its own positives.

    Args:
        first_epoch: before it the table is not asked.
    """

    def __init__(self, first_epoch: int = 0) -> None:
        if first_epoch < 0:
            raise ValueError(f"{type(self).__name__}(first_epoch={first_epoch}): epochs count from 0.")
        self.first_epoch = first_epoch
        self.near: Tensor | None = None  # (N, R) int32 ids of documents, -1 behind the end of a shorter list
        self.table: TrainingTable | None = None
        self.left_out = Ragged.empty(0)
        self.depth = 0

    def attach(self, table: TrainingTable, depth: int, left_out: Ragged | None = None) -> None:
        """Learn the rows, how many neighbours of each are wanted, and which documents are none (None = positives)."""
        self.table, self.depth, self.near = table, depth, None
        self.left_out = table.positives if left_out is None else left_out

    def refresh(self, stores: Mapping[str, Store], epoch: int) -> bool:
        """Take fresh embeddings; whether neighbours are others now."""
        return False

    @abstractmethod
    def prepare(self) -> None:
        """Find the neighbours, if that has not been done and what it takes is there."""

    def state_dict(self) -> dict[str, Any]:
        """What cannot be found again from the files."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on where ``state_dict`` was taken."""

    def _collect(self, found: Iterator[tuple[slice, Tensor]]) -> Tensor:
        """(N, R) of blocks of candidates (n, k), nearest first, without what is a row's own."""
        assert self.table is not None
        near = torch.full((len(self.table), self.depth), NOBODY, dtype=torch.int32)
        for rows, candidates in found:
            own = self.left_out.select(torch.arange(rows.start, rows.stop))
            dropped = among(candidates, own) | (candidates == NOBODY)
            order = dropped.to(torch.uint8).argsort(dim=1, stable=True)[:, : self.depth]
            kept = torch.where(dropped, NOBODY, candidates).gather(1, order)
            near[rows, : kept.shape[1]] = kept.int()
        return near

    def _documents(self) -> Tensor:
        """Ids (M,) of the documents that are some row's positive, ascending: the others are in no batch."""
        assert self.table is not None
        return self.table.positives.values.unique()

    def _blocks(self) -> Iterator[slice]:
        assert self.table is not None
        for start in range(0, len(self.table), SEARCHED_ROWS):
            yield slice(start, min(start + SEARCHED_ROWS, len(self.table)))


class GeoTable(NeighbourTable):
    """The documents whose places are nearest on the ground to that of a row's (first) positive.

    A k-d tree of points on the sphere, or in the plane: N log N time and N x R memory, where all distances of 100,000
    places would be 80 GB. Neighbours never lie in another area. Equal distances: in no particular order, but the same
    each time.

    Args:
        first_epoch: as in `NeighbourTable`.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: a training set without places.

    Source:
        Sample4Geo, arXiv 2303.11851, section 3.3 (GPS sampling). Differs: degrees become radians before their sines
        are taken, where the published code hands degrees to a haversine of radians and finds a quarter of the true
        neighbours across a country.
    """

    def __init__(self, first_epoch: int = 0) -> None:
        super().__init__(first_epoch)
        try:
            import scipy.spatial  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "GeoTable needs SciPy, which is not installed. Run `pip install 'hardneg[train]'`, or use "
                "SimilarityTable, which needs no places."
            ) from error

    def attach(self, table: TrainingTable, depth: int, left_out: Ragged | None = None) -> None:
        super().attach(table, depth, left_out)
        if table.document_places is None:
            raise ValueError(
                "GeoTable looks for neighbours on the ground, and this training set has no places. Give its reader "
                "coordinates, or take SimilarityTable."
            )

    def prepare(self) -> None:
        if self.near is None:
            self.near = self._collect(self._search())

    def _search(self) -> Iterator[tuple[slice, Tensor]]:
        from scipy.spatial import cKDTree

        assert self.table is not None
        assert self.table.document_places is not None
        ids, own = self._documents(), self.table.positives
        points, apart = self.table.document_places.take(ids).separated()
        tree = cKDTree(points.numpy())
        first = torch.searchsorted(ids, _first_of(own).clamp(min=0))  # (N,) each row's place in ``ids``
        k = min(self.depth + int(self.left_out.lengths.max()), len(ids))
        for rows in self._blocks():
            _, at = tree.query(points[first[rows]].numpy(), k=np.arange(1, k + 1), distance_upper_bound=apart)
            missing = at == len(ids)
            found = torch.where(torch.from_numpy(missing), NOBODY, ids[torch.from_numpy(np.where(missing, 0, at))])
            yield rows, torch.where(own.lengths[rows, None] > 0, found, NOBODY)


class SimilarityTable(NeighbourTable):
    """The documents that the current encoder finds most similar to a row's anchor (Dynamic Similarity Sampling).

    Fresh embeddings of both sides come from `RefreshNegatives`; the table is made of those that arrive when it is due
    and stays until it is due again. Beside the embeddings it holds the index and N x R numbers, never N x M.

    Args:
        first_epoch: as in `NeighbourTable`. With 0 the embeddings of the untrained encoder count.
        refresh_interval: epochs, from ``first_epoch`` on, between two tables; embeddings in between are not looked at.
        index: what is searched: "Flat" (FAISS, exact), "torch" (exact, without FAISS), or any FAISS factory string.
        device: of the index.
        anchor_space, document_space: as stores are named.

    Source:
        Sample4Geo, arXiv 2303.11851, section 3.3. Differs: a table per row where the published code keeps one per
        satellite tile, the last of its panoramas.
    """

    def __init__(
        self,
        first_epoch: int = 4,
        refresh_interval: int = 4,
        index: str = "Flat",
        device: str = "auto",
        anchor_space: str = "query",
        document_space: str = "document",
    ) -> None:
        super().__init__(first_epoch)
        if refresh_interval < 1:
            raise ValueError(f"SimilarityTable(refresh_interval={refresh_interval}): wants at least 1 epoch.")
        self.refresh_interval = refresh_interval
        self.index, self.device = index, device
        self.anchor_space, self.document_space = anchor_space, document_space
        self.made_at: int | None = None  # epoch
        self._stores: Mapping[str, Store] | None = None

    def attach(self, table: TrainingTable, depth: int, left_out: Ragged | None = None) -> None:
        super().attach(table, depth, left_out)
        self.made_at = self._stores = None

    def refresh(self, stores: Mapping[str, Store], epoch: int) -> bool:
        """Take stores where a table is due.

        Raises:
            ValueError: it is due, and a space is not among ``stores``.
        """
        since = epoch - self.first_epoch
        # a table of the present period is there: younger embeddings wait for the next one
        if since < 0 or (self.made_at is not None and self.made_at >= epoch - since % self.refresh_interval):
            return False
        for space in (self.anchor_space, self.document_space):
            if space not in stores:
                raise ValueError(
                    f"SimilarityTable compares '{self.anchor_space}' with '{self.document_space}' and was handed "
                    f"{sorted(stores)}: let the refresh encode both (RefreshNegatives' spaces)."
                )
        self._stores, self.made_at = stores, epoch
        return True

    def prepare(self) -> None:
        if self._stores is not None:
            self.near, self._stores = self._collect(self._search(self._stores)), None

    def _search(self, stores: Mapping[str, Store]) -> Iterator[tuple[slice, Tensor]]:
        from miners.index import build_index
        from miners.store import Store

        assert self.table is not None
        anchors, documents = stores[self.anchor_space], stores[self.document_space]
        ids = self._documents()
        if not torch.equal(ids, documents.ids):
            documents = Store(documents.rows(ids), ids, documents.space)
        index = build_index(self.index, documents, self.device)
        k = min(self.depth + int(self.left_out.lengths.max()), len(documents))
        for rows in self._blocks():
            yield rows, index.search(anchors.rows(self.table.anchors[rows]), k)[1].cpu()

    def state_dict(self) -> dict[str, Any]:
        if process_rank() == 0:  # whose table is used, and saved: embeddings that wait for an epoch would be lost
            self.prepare()
        return {"near": self.near, "made_at": self.made_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.near, self.made_at = state["near"], state["made_at"]


class NeighbourBatches(BatchMiner):
    """Fill a batch with an anchor and its neighbours, then with another anchor and its neighbours, until it is full.

    All hardness of Sample4Geo is who meets in a batch. Half of an anchor's companions are its nearest ones, the other
    half is drawn from the rest of a wider list, so that batches differ from epoch to epoch; a neighbour that the epoch
    has used up is not replaced. No two rows of a batch share an anchor or a positive, wherever that is possible: the
    others are logged, and the pool masks them. Set ``drop_last``: what is left for the last batch are the remains of
    all neighbourhoods.

    Args:
        tables: over time; at each epoch the last one whose ``first_epoch`` has come counts. None = [GeoTable(),
            SimilarityTable()], the paper's: by place for 4 epochs, by similarity of the embeddings before epochs 4, 8,
            ... then. [] shuffles. A table that has no neighbours yet shuffles too, and says so.
        neighbour_select: companions of an anchor, half of them its nearest; None = half of a batch of all processes.
        neighbour_range: length of the list that they come from; None = a batch of all processes.
        forbid: semi-positives (`TrainingTable.semi_positives`) are no neighbours, and do not meet in a batch: they are
            never negatives, so they would only take up room. The published code lets them meet, as wrong negatives.
        batch_size, drop_last, seed: as in `BatchMiner`.

    Raises:
        ValueError: numbers out of range, a range shorter than the companions (perhaps only in ``attach``, which knows
            the batch), tables in another order than their epochs.

    Source:
        Sample4Geo, arXiv 2303.11851, section 3.3, and its code's ``shuffle``: 128 rows, 64 neighbours of a range of
        128. Differs: what does not fit is tried again in the next batch, not at the end of the epoch; rows without a
        place in a whole batch are not lost; one order for all processes, drawn from (seed, epoch).
    """

    def __init__(
        self,
        tables: Sequence[NeighbourTable] | None = None,
        neighbour_select: int | None = None,
        neighbour_range: int | None = None,
        forbid: bool = False,
        batch_size: int = 32,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, drop_last, seed)
        self.tables = [GeoTable(), SimilarityTable()] if tables is None else list(tables)
        starts = [table.first_epoch for table in self.tables]
        if starts != sorted(set(starts)):
            raise ValueError(f"NeighbourBatches: the first epochs of its tables are {starts}, and they should rise.")
        for name, value in (("neighbour_select", neighbour_select), ("neighbour_range", neighbour_range)):
            if value is not None and value < 2:
                raise ValueError(f"NeighbourBatches({name}={value}): wants at least 2.")
        if neighbour_select and neighbour_range and neighbour_select > neighbour_range:
            raise ValueError(
                f"NeighbourBatches(neighbour_select={neighbour_select}, neighbour_range={neighbour_range}): companions "
                "come from the range, which has to be as long at least."
            )
        self.neighbour_select, self.neighbour_range = neighbour_select, neighbour_range
        self.forbid = forbid
        self._select = 2
        self._meetings: _Meetings | None = None

    def attach(self, table: TrainingTable) -> None:
        super().attach(table)
        self._select = self.neighbour_select or max(self._global_batch_size() // 2, 2)
        depth = self.neighbour_range or max(self._global_batch_size(), self._select)
        if self.tables and depth < self._select:
            raise ValueError(
                f"NeighbourBatches(neighbour_range={depth}): half of {self._select} companions, which is half of a "
                f"batch, would be drawn from a list of {depth}. Set neighbour_select to at most {depth}."
            )
        left_out = table.positives.joined(table.semi_positives) if self.forbid and table.semi_positives else None
        for each in self.tables:
            each.attach(table, depth, left_out)
        self._meetings = _Meetings(table, self.forbid)

    def table_at(self, epoch: int) -> NeighbourTable | None:
        """Whose turn it is at ``epoch``."""
        return next((table for table in reversed(self.tables) if table.first_epoch <= epoch), None)

    def refresh(self, stores: Mapping[str, Store]) -> None:
        changed = [table.refresh(stores, self.epoch) for table in self.tables]
        if any(changed):
            super().refresh(stores)

    def arrange(self, rows: Tensor, epoch: int) -> Tensor:
        order, left = alike_on_all(self._arrange, rows, epoch)
        size = self._global_batch_size()
        dropped = len(order) % size if self.drop_last else 0
        if (meeting := int(left) - dropped) > 0:  # those that are left stand at the end
            log.warning(
                "NeighbourBatches: %d of %d rows share an anchor or a positive with a row of their batch, and no batch "
                "is free of their like; a smaller batch_size would be. The pool masks them as negatives.",
                meeting,
                len(order),
            )
        return order

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"tables": [table.state_dict() for table in self.tables]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for table, of in zip(self.tables, state["tables"], strict=True):
            table.load_state_dict(of)

    def _arrange(self, rows: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """The order, and how many rows at its end found no place in a batch."""
        random = np.random.default_rng(self.generator(epoch).initial_seed())
        near = self._near(epoch)
        order, left = self._fill(_shuffled(rows.numpy(), random), near, random)
        return torch.from_numpy(order), torch.tensor(left)

    def _near(self, epoch: int) -> NDArray[np.int32] | None:
        """(N, R) whose turn it is; None where rows are shuffled."""
        table = self.table_at(epoch)
        if table is None:
            return None
        table.prepare()
        if table.near is None:
            log.warning(
                "NeighbourBatches: epoch %d is shuffled, since %s has no embeddings yet. The callback RefreshNegatives "
                "hands them over (its start_epoch must be no later).",
                epoch,
                type(table).__name__,
            )
            return None
        return table.near.numpy()

    def _fill(self, order: Ints, near: NDArray[np.int32] | None, random: np.random.Generator) -> tuple[Ints, int]:
        """Rows batch after batch, and how many of them could not be kept from their like.

        Each choice depends on all before it, so this is a loop: over anchors, and over those neighbours that are free.
        """
        assert self._meetings is not None
        batches = _Batches(self._meetings, order, self._global_batch_size())
        waiting: deque[int] = deque(order.tolist())
        later: list[int] = []
        while waiting:
            row = waiting.popleft()
            if batches.batch_of[row] != WAITING:
                continue
            if not batches.add(row):
                later.append(row)
                continue
            if near is not None and batches.now:
                chosen = half_nearest_half_random(near[row][near[row] >= 0], self._select, random)
                for document in chosen[batches.free[chosen] > 0].tolist():
                    if batches.add_one_of(document) and not batches.now:
                        break
            if not batches.now:  # one is full: what did not fit comes first in the next
                waiting.extendleft(reversed(later))
                later = []
        return batches.finish(later)


def half_nearest_half_random(listed: Ints, select: int, random: np.random.Generator) -> Ints:
    """The first half of ``select`` from a list, nearest first, and as many at random from the rest of it.

    A shorter list gives what it has; nothing is repeated.

    Example:
        >>> half_nearest_half_random(np.arange(10), 4, np.random.default_rng(0))[:2]
        array([0, 1])
    """
    half = select // 2
    rest = random.permutation(listed[half:])[:half]
    return np.concatenate([listed[:half], rest])


def _shuffled(rows: Ints, random: np.random.Generator) -> Ints:
    return random.permutation(rows)


def _first_of(lists: Ragged) -> Tensor:
    """(N,) the first value of each list; -1 where it is empty."""
    values = torch.cat([lists.values, lists.values.new_full((1,), NOBODY)])
    return torch.where(lists.lengths > 0, values[lists.offsets[:-1]], NOBODY)


class _Lists:
    """A `Ragged` whose lists are NumPy arrays, quick to ask for one by one."""

    def __init__(self, lists: Ragged) -> None:
        self.offsets, self.values = lists.offsets.tolist(), lists.values.numpy()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Ints:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def of(self, rows: Sequence[int]) -> list[Ints]:
        return [self[row] for row in rows]


class _Meetings:
    """Which rows may not meet: those that share an anchor, a positive or content; with ``forbid``, semi-positives."""

    def __init__(self, table: TrainingTable, forbid: bool) -> None:
        rows, keys = _keys_of(table)
        documents = 1 + int(table.positives.values.max()) if len(table.positives.values) else 0
        self.pairs = table.positives.row_of_value.numpy(), table.positives.values.numpy()
        self.positives = _Lists(table.positives)
        self.holders = _Lists(Ragged.from_pairs(table.positives.values, table.positives.row_of_value, documents))
        self.documents = documents
        number = 1 + int(keys.max()) if len(keys) else 0
        self.keys = Ragged.from_pairs(rows, keys, len(table)).to_lists()
        self.with_key = _Lists(_turned(rows, keys, number))
        shared = torch.bincount(keys, minlength=number) > 1
        self.alone = torch.ones(len(table), dtype=torch.bool)  # rows that may meet everybody
        self.alone[rows[shared[keys]]] = False
        self.semi: _Lists | None = None
        if forbid and table.semi_positives is not None:
            owner, near = table.semi_positives.row_of_value, table.semi_positives.values
            known = near < documents
            owner, near = owner[known], near[known]
            self.semi = _Lists(Ragged.from_pairs(owner, near, len(table)))
            self.shunned_by = _Lists(_turned(owner, near, documents))
            touched = torch.zeros(documents, dtype=torch.bool).index_fill_(0, near, True)
            self.alone[owner] = False
            self.alone[table.positives.row_of_value[touched[table.positives.values]]] = False

    def of(self, row: int) -> Ints:
        """Rows that ``row`` may not meet; perhaps itself, perhaps some of them twice."""
        found = self.with_key.of(self.keys[row])
        if self.semi is not None:
            found += self.holders.of(self.semi[row].tolist()) + self.shunned_by.of(self.positives[row].tolist())
        return np.concatenate(found) if found else np.empty(0, np.int64)


def _turned(rows: Tensor, values: Tensor, number: int) -> Ragged:
    """For each of ``number`` values, its rows."""
    return Ragged.from_pairs(values, rows, number)


class _Batches:
    """Batches in the making."""

    def __init__(self, meetings: _Meetings, order: Ints, size: int) -> None:
        self.meetings, self.size = meetings, size
        rows = len(meetings.alone)
        self.alone = meetings.alone.tolist()
        self.batch_of = np.full(rows, NOT_HERE)  # of each row
        self.batch_of[order] = WAITING
        self.place = np.zeros(rows, np.int64)
        self.place[order] = np.arange(len(order))  # the order is random: the earliest of several rows is a random one
        owners, documents = meetings.pairs
        waits = self.batch_of[owners] == WAITING
        self.free = np.bincount(documents[waits], minlength=meetings.documents)  # waiting rows by document
        # numbers of the last batch that a key, a document, or a document as a semi-positive has come into
        self.taken = [NOT_HERE] * len(meetings.with_key)
        self.held, self.shunned = (np.full(meetings.documents, NOT_HERE) for _ in range(2))
        self.done: list[list[int]] = []
        self.now: list[int] = []

    def add(self, row: int) -> bool:
        """Put a waiting row into the present batch, and close that when it is full; False where it may not be there."""
        number = len(self.done)
        if not self.alone[row] and not self._take(row, number):
            return False
        self.now.append(row)
        self.batch_of[row] = number
        self.free[self.meetings.positives[row]] -= 1
        if len(self.now) == self.size:
            self.done.append(self.now)
            self.now = []
        return True

    def _take(self, row: int, number: int) -> bool:
        """Note that a row comes into the present batch, unless it meets its like there: then False."""
        keys, positives, semi = self.meetings.keys[row], self.meetings.positives[row], self.meetings.semi
        if any(self.taken[key] == number for key in keys):
            return False
        if semi is not None:
            if bool((self.held[semi[row]] == number).any() or (self.shunned[positives] == number).any()):
                return False
            self.shunned[semi[row]] = number
        self.held[positives] = number
        for key in keys:
            self.taken[key] = number
        return True

    def add_one_of(self, document: int) -> bool:
        """Put a waiting row of a document into the present batch, whichever may be there."""
        if len(self.done) in (self.held[document], self.shunned[document]):
            return False  # none of them may
        rows = self.meetings.holders[document]
        rows = rows[self.batch_of[rows] == WAITING]
        return any(self.add(row) for row in rows[self.place[rows].argsort()].tolist())

    def finish(self, later: Sequence[int]) -> tuple[Ints, int]:
        """All rows in order; at the end those (and how many) that found no place at all."""
        left = [row for row in later if not self.add(row) and not self._swap(row)]
        return np.array([row for batch in (*self.done, self.now, left) for row in batch], dtype=np.int64), len(left)

    def _swap(self, row: int) -> bool:
        """Give ``row`` the place of one that may be in the unfinished batch in its stead."""
        refused = set(self.batch_of[self.meetings.of(row)].tolist())
        for number in range(len(self.done) - 1, -1, -1):
            if number not in refused:
                for at, other in enumerate(self.done[number]):
                    if self.add(other):  # which also moves its batch_of to the unfinished batch
                        self.done[number][at] = row
                        self.batch_of[row] = number
                        return True
        return False
