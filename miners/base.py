"""The four moments at which a method of the literature acts, as small abstract types.

Before an epoch a `BatchMiner` decides who meets in a batch; at collate a `NegativeSource` decides which negatives
travel with a row; inside a step a `PoolMiner` decides what an anchor is pushed away from; offline, `miners.mine` writes
a table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from miners.draws import RowGenerator, generator_for
from miners.places import Places
from miners.ragged import Ragged

if TYPE_CHECKING:
    from miners.pool import Items, NegativePool
    from miners.store import Store


class PoolMiner(nn.Module, ABC):
    """Changes the pool of negatives inside a training step.

    ``forward`` is pure: it returns a new pool and leaves its input and itself as they were, so that it may run twice
    (gradient caching) or not at all (evaluation). What must be remembered is written in ``commit``, after backward.

    Attributes:
        needs: what the miner asks of the family or of the miners before it; see `miners.pool.ABILITIES`.
        provides: what it adds for the miners and the loss behind it.
        learning_rate: peak, of the weights of a model of the miner's own; None = as the module's.
    """

    needs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()
    learning_rate: float | None = None

    @abstractmethod
    def forward(self, pool: NegativePool) -> NegativePool:
        """Return a pool with a block, a mask or weights more, or with other positives."""

    def commit(self, pool: NegativePool) -> None:
        """Remember what this step showed (enqueue, statistics). Called once per step, after backward."""

    def aux_loss(self, pool: NegativePool) -> tuple[Tensor, Tensor] | None:
        """Loss of a model of the miner's own as (sum, count) terms, or None where there is none."""
        return None

    def statistics(
        self, pool: NegativePool, combine: Callable[[Tensor], Tensor] = lambda sums: sums
    ) -> dict[str, Tensor]:
        """What to log of a step beside `NegativePool.statistics`, by name: scalars without gradient.

        Args:
            pool: as the chain has left it.
            combine: adds up a vector over processes, so that these are the numbers of all anchors.
        """
        return {}

    def refresh(self, stores: Mapping[str, Store]) -> None:
        """Take fresh embeddings, one `Store` per space. Called by whoever re-encodes; the default keeps nothing."""


@dataclass(frozen=True)
class TrainingTable:
    """What batch miners and sources may know of the N training rows; no text, no picture, no model.

    Args:
        anchors: (N,) int64 id of each row's anchor, in the anchors' space.
        positives: N lists of ids that are known positives of the row's anchor; all of them, not only the drawn one.
        anchor_content: (N,) int64 content hash of each anchor (equal = the same thing), or None.
        document_content: (M,) int64 content hash by document id, or None.
        labels: (N,) int64 class of each row, -1 unknown, or None.
        anchor_names: external name of each anchor id (position = id), for tables that come from files; or None.
        document_names: external name of each document id (position = id), or None.
        document_places: where each document id is (position = id), or None.
        semi_positives: N lists of ids that are no positives of the row's anchor and must not be its negatives either
            (a tile that overlaps with the right one), or None.
        inputs: (N, F) numbers of each row, for sources that corrupt them; or None.
        features: (F,) which columns of ``inputs`` are one feature (a category takes several), or None = each its own.
    """

    anchors: Tensor
    positives: Ragged
    anchor_content: Tensor | None = None
    document_content: Tensor | None = None
    labels: Tensor | None = None
    anchor_names: Sequence[str] | None = None
    document_names: Sequence[str] | None = None
    document_places: Places | None = None
    semi_positives: Ragged | None = None
    inputs: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.anchors)

    @property
    def num_documents(self) -> int | None:
        """How many documents there are, where names or contents say so."""
        for of in (self.document_names, self.document_content):
            if of is not None:
                return len(of)
        return None


class Draw(NamedTuple):
    """Negatives drawn for B rows: ids (B, k) int64, usable (B, k) bool, and a tag that names the source."""

    ids: Tensor
    usable: Tensor
    tag: str


class Corrupted(NamedTuple):
    """Negatives made of a batch's own inputs: inputs (N, ...), and of which row of the batch each was made, (N,)."""

    inputs: Any
    rows: Tensor


Edit = Callable[[Sequence[str]], list[tuple[int, str, str]]]
"""Captions -> (which one, a false caption made of it, kind)."""

Make = Callable[[str, str | Path | None, Edit | None], tuple[Ragged, Tensor, Sequence[str]]]
"""(space, table or None, edit or None) -> lists of ids by training row, the kind (V,) of each, and the kinds' names."""


class NegativeSource(ABC):
    """Draws the negatives that travel with a row into its batch; the family encodes them, with gradient.

    Draws happen in the main process and are a function of (seed, epoch, row) through the `RowGenerator` handed in.
    """

    space: str = "document"
    needs: frozenset[str] = frozenset({"drawn"})

    def take_made(self, make: Make) -> None:  # noqa: B027  (most draw what is there)
        """Ask for negatives that were made; data modules that bring or make some call it, before ``attach``."""

    def attach(self, table: TrainingTable) -> None:  # noqa: B027  (a source may need nothing)
        """Learn the rows of the training set; called once, before the first draw."""

    @abstractmethod
    def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
        """Draw for ``rows`` (B,), whose drawn positives are ``positives`` (B,) ids.

        Returns:
            ids (B, k) in ``space`` and usable (B, k): never a known positive of the row; unusable slots hold -1.
        """

    def corrupt(self, inputs: Any, rows: Tensor, generator: RowGenerator) -> Corrupted | None:
        """Make negatives of the raw ``inputs`` of ``rows`` (B,), in a worker; None where the source draws ids alone."""
        return None

    def refresh(self, stores: Mapping[str, Store]) -> None:  # noqa: B027
        """Take fresh embeddings, one `Store` per space; the default keeps nothing."""


class Row(NamedTuple):
    """One training row on its way to the data set: plain ints, cheap to send to a worker.

    With the ``epoch`` a worker can draw (crops of a picture) as a function of (seed, epoch, row): it lives longer.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a row
    positive: int
    negatives: tuple[int, ...] = ()
    epoch: int = 0


class BatchMiner(Sampler[list[int]], ABC):
    """Decides which training rows meet in a batch.

    Subclasses write ``arrange``: a global order of rows, which this class cuts into global batches and shares between
    processes (each takes a contiguous slice of every global batch, so that a cluster stays together). Order first,
    share afterwards: W processes of B rows see exactly the batches of one process with W x B rows.

    Args:
        batch_size: rows of one process' batch.
        drop_last: leave the last, shorter batch out.
        seed: seeds every order; the same on all processes.
    """

    def __init__(self, batch_size: int = 32, drop_last: bool = False, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"{type(self).__name__}(batch_size={batch_size}): wants at least 1.")
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0
        self.table: TrainingTable | None = None
        self._trained = 0  # batches of this epoch that went through backward
        self._sequence: Tensor | None = None  # rows of this epoch as they are handed out, over all processes
        self._handed: int | None = None  # how many of them are handed out; None = nobody has asked yet
        self._resuming = False  # the next iter goes on in the loaded sequence

    def attach(self, table: TrainingTable) -> None:
        """Learn the rows of the training set; called once by the data module."""
        if len(table) == 0:
            raise ValueError(f"{type(self).__name__} got a training set without rows.")
        self.table = table

    @abstractmethod
    def arrange(self, rows: Tensor, epoch: int) -> Tensor:
        """Order ``rows`` (n,) int64 for ``epoch``: all rows at its start, what is left of them after a refresh.

        Returns:
            (m,) int64, m <= n, each at most once. A function of (seed, epoch, what refresh and observe showed).
        """

    def refresh(self, stores: Mapping[str, Store]) -> None:
        """Take fresh embeddings, one `Store` per space; rows not yet handed out are arranged anew.

        At once, not when the next batch is asked for: a checkpoint taken in between holds the new order.
        """
        if self._sequence is not None and self._handed is not None and self._handed < len(self._sequence):
            left = self.arrange(self._sequence[self._handed :].sort().values, self.epoch)
            self._sequence = torch.cat([self._sequence[: self._handed], left])

    def observe(self, rows: Tensor, anchors: Items) -> None:
        """See the anchors of a trained batch: the ``rows`` (G,) of all processes and their embeddings, no gradient."""

    def batch_trained(self) -> None:
        """Count a batch that went through backward; what a checkpoint stores, since loaders draw ahead."""
        self._trained += 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next ``iter`` yields."""
        if epoch != self.epoch:
            self._trained, self._sequence, self._handed, self._resuming = 0, None, None, False
        self.epoch = epoch

    def generator(self, epoch: int, stream: int = 0) -> torch.Generator:
        """A generator seeded by (seed, epoch, stream), alike on all processes."""
        return generator_for(self.seed, epoch, stream)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, over all processes."""
        return len(self._attached())

    @property
    def together(self) -> int:
        """So many rows, one after the other in ``arrange``, stay on one process; batch_size is a multiple of it."""
        return 1

    def shares(self, rows: Tensor) -> list[Tensor]:
        """The part of each process of the rows (n,) of a step."""
        return [part.flatten() for part in torch.tensor_split(rows.view(-1, self.together), process_count())]

    def __len__(self) -> int:
        whole, rest = divmod(self.num_rows, self._global_batch_size())
        return whole + (not self.drop_last and rest >= process_count() * self.together)

    def __iter__(self) -> Iterator[list[int]]:
        rank = process_rank()
        for rows in self.global_batches():
            yield self.shares(rows)[rank].tolist()

    def global_batches(self) -> Iterator[Tensor]:
        """The rows (n,) of each step, over all processes: what ``iter`` gives each process its share of."""
        processes, size = process_count(), self._global_batch_size()
        if not self._resuming or self._sequence is None:
            self._sequence, self._trained = self.arrange(torch.arange(len(self._attached())), self.epoch), 0
        self._resuming, self._handed = False, self._trained * size
        # a process without rows would keep the others waiting, so a last batch smaller than their number is left out
        while len(self._sequence) - self._handed >= (size if self.drop_last else processes * self.together):
            now = self._sequence[self._handed : self._handed + size]
            self._handed += size
            yield now

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the very next batch: the order too, since embeddings have moved on."""
        return {"epoch": self.epoch, "trained": self._trained, "sequence": self._sequence}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.epoch, self._trained, self._sequence = int(state["epoch"]), int(state["trained"]), state["sequence"]
        self._resuming, self._handed = True, None

    def _attached(self) -> TrainingTable:
        if self.table is None:
            raise RuntimeError(
                f"{type(self).__name__} knows no rows yet: call attach(TrainingTable(...)), as data modules do."
            )
        return self.table

    def _global_batch_size(self) -> int:
        return self.batch_size * process_count()


class Shuffled(BatchMiner):
    """Random batches: the plain shuffled order, as the default and as the baseline."""

    def arrange(self, rows: Tensor, epoch: int) -> Tensor:
        return rows[torch.randperm(len(rows), generator=self.generator(epoch))]


@dataclass
class _Clock:
    """Stands as ``batch_sampler.sampler``: the one place where Lightning looks for ``set_epoch``."""

    batches: DrawnBatches = field(repr=False)

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)


class DrawnBatches(Sampler[list[Row]]):
    """A batch sampler of `Row`: a `BatchMiner`'s batches with a positive and the sources' negatives drawn for each row.

    One positive is drawn uniformly from each row's known positives, and negatives from every source, in the main
    process: workers never hold a stale copy, and what is drawn is a function of (seed, epoch, row) alone.

    Args:
        miner: who meets in a batch; already attached.
        sources: which negatives travel along; already attached.
        seed: seeds positives and draws.

    Attributes:
        before_epoch: called with the epoch before its rows are arranged, and not when a run goes on in the middle of
            one: the moment for fresh embeddings. Later would be too late, since loaders draw ahead.
    """

    def __init__(self, miner: BatchMiner, sources: Sequence[NegativeSource] = (), seed: int = 0) -> None:
        self.miner = miner
        self.sources = tuple(sources)
        self.seed = seed
        self.before_epoch: list[Callable[[int], None]] = []
        self._ahead: deque[list[Row]] = deque()  # handed to the loader and not trained yet
        self._resuming = False
        self.sampler = _Clock(self)
        self.batch_size = miner.batch_size
        self.drop_last = miner.drop_last

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.miner.epoch:
            self._resuming = False
        self.miner.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.miner)

    def __iter__(self) -> Iterator[list[Row]]:
        if not self._resuming:
            self._ahead.clear()
            for prepare in self.before_epoch:
                prepare(self.miner.epoch)
        self._resuming = False
        batches = iter(self.miner)
        for drawn in list(self._ahead):  # drawn before the checkpoint, perhaps from an older table
            next(batches)
            yield drawn
        for batch in batches:
            drawn = self._draw(batch)
            self._ahead.append(drawn)
            yield drawn

    def _draw(self, batch: list[int]) -> list[Row]:
        rows, epoch = torch.tensor(batch), self.miner.epoch
        positives = self._positives(rows, epoch)
        negatives: list[list[int]] = [[] for _ in batch]
        for number, source in enumerate(self.sources):
            draw = source.draw(rows, positives, epoch, RowGenerator(self.seed, epoch, stream=number + 1))
            taken = Ragged.from_pairs(draw.usable.nonzero()[:, 0], draw.ids[draw.usable], len(batch))
            negatives = [old + new for old, new in zip(negatives, taken.to_lists(), strict=True)]
        return [
            Row(index, positive, tuple(drawn), epoch)
            for index, positive, drawn in zip(batch, positives.tolist(), negatives, strict=True)
        ]

    def _positives(self, rows: Tensor, epoch: int) -> Tensor:
        """(B,) one known positive of each row, uniformly; -1 where a row has none."""
        known = self.miner._attached().positives.select(rows)
        share = RowGenerator(self.seed, epoch).uniform(rows, 1)[:, 0]
        at = known.offsets[:-1] + (share * known.lengths).long()
        values = torch.cat([known.values, known.values.new_full((1,), -1)])
        return torch.where(known.lengths > 0, values[at.clamp(max=len(known.values))], -1)

    def trained(self, rows: Tensor, anchors: Items) -> None:
        """Tell the miner that a batch went through backward: the ``rows`` (G,) of all processes and their anchors."""
        self.miner.observe(rows, anchors)
        self.miner.batch_trained()
        if self._ahead:
            self._ahead.popleft()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the very next batch. Call it on every process.

        What sources have drawn ahead is kept too: a refresh may have changed their tables in the meantime.
        """
        state: dict[str, Any] = {"miner": self.miner.state_dict()}
        if self.sources:
            state["ahead"] = _of_all_processes([[tuple(row) for row in batch] for batch in self._ahead])
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            ValueError: a state of another number of processes.
        """
        ahead = state.get("ahead", [[]] * process_count())
        if len(ahead) != process_count():
            raise ValueError(
                f"this checkpoint was made by {len(ahead)} processes, and {process_count()} go on with it: their "
                "batches differ. Use as many, or start a new run from its weights."
            )
        self.miner.load_state_dict(state["miner"])
        self._ahead = deque([Row(*row) for row in batch] for batch in ahead[process_rank()])
        self._resuming = state["miner"]["sequence"] is not None


def process_rank() -> int:
    """This process' number among those that train together; 0 alone."""
    return torch.distributed.get_rank() if _distributed() else 0


def process_count() -> int:
    """How many processes train together; 1 alone."""
    return torch.distributed.get_world_size() if _distributed() else 1


def _of_all_processes(mine: Any) -> list[Any]:
    """Plain values of every process, in the order of ranks."""
    if process_count() == 1:
        return [mine]
    everyone: list[Any] = [None] * process_count()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
