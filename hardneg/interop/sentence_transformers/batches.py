"""Batch miners as batch samplers of the trainer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor

from miners.base import BatchMiner, TrainingTable, process_count
from miners.ragged import Ragged

DATASET_NAME = "dataset_name"
"""Column that the trainer adds to each of several data sets; no text."""

READ_ROWS = 4096


class MinerBatches:
    """A batch miner for ``SentenceTransformerTrainingArguments(batch_sampler=...)``.

    Called by the trainer once for each data set, which gets its own copy of the miner, with the trainer's batch size,
    seed and drop_last. The first column is the anchor, the second its positive; equal texts are one anchor, and the
    positives of all rows of an anchor are known to be its own.

    With `RefreshNegatives` among the callbacks only training is mined: evaluation keeps the order of its data set.

    Args:
        miner: `miners.NGAME`, `miners.NoDuplicates`, ...; not attached yet.

    Raises:
        ValueError: a miner that learns from training steps (``embeddings="buffer"``), which this trainer does not show.
    """

    def __init__(self, miner: BatchMiner) -> None:
        part: BatchMiner | None = miner
        while part is not None:
            if getattr(part, "embeddings", None) == "buffer":
                raise ValueError(
                    f"{type(part).__name__}(embeddings='buffer') learns from the rows of each step, and the trainer of "
                    "sentence-transformers does not tell which rows those are. Set embeddings='fresh', and add the "
                    "callback RefreshNegatives."
                )
            part = getattr(part, "inner", None)
        self.miner = miner
        self.refreshed = False  # a callback hands out embeddings, and tells training from evaluation

    def __call__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> MinerBatchSampler:
        return MinerBatchSampler(
            dataset,
            batch_size,
            drop_last,
            valid_label_columns,
            generator,
            seed,
            miner=self.miner,
            training=not self.refreshed,
        )


class MinerBatchSampler(DefaultBatchSampler):
    """The batches of one data set, as `MinerBatches` makes it.

    The trainer shares batches between processes itself: batch i goes to process i modulo their number. So this yields
    the slices of every global batch in the order of ranks, and W processes see what one process with W times the batch
    size would see.

    Args:
        miner: copied, and given the batch size, drop_last and seed.
        training: False keeps the order of the data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        *,
        miner: BatchMiner,
        training: bool = True,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        self.dataset = dataset
        self.training = training
        self.columns = text_columns(dataset, valid_label_columns or ())
        self.miner = copy.deepcopy(miner)
        self._in_order = _InOrder(batch_size, drop_last, seed)
        self._in_order.attach(TrainingTable(torch.arange(len(dataset)), Ragged.empty(len(dataset))))
        self._first_rows: Tensor | None = None

    def attach(self) -> Tensor:
        """Show the miner its rows, the first time; (A,) the first row of each anchor, whose place is its id."""
        if self._first_rows is None:
            table, self._first_rows = table_of(self.dataset, self.columns, self.valid_label_columns or ())
            self.miner.batch_size, self.miner.drop_last, self.miner.seed = self.batch_size, self.drop_last, self.seed
            self.miner.attach(table)
        return self._first_rows

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.miner.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._in_order) * process_count()

    def __iter__(self) -> Iterator[list[int]]:
        if self.training:
            self.attach()
        miner = self.miner if self.training else self._in_order
        for rows in miner.global_batches():
            for share in miner.shares(rows):
                yield share.tolist()

    def state_dict(self) -> dict[str, Any]:
        """The epoch's order. The trainer counts the batches that are behind, and skips them when it goes on."""
        return self.miner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Yield the epoch of ``state_dict`` again, from its first batch."""
        self.attach()  # first, since it forgets the order
        self.miner.load_state_dict(state)
        self.epoch = self.miner.epoch


class _InOrder(BatchMiner):
    """The order of the data set, for evaluation."""

    def arrange(self, rows: Tensor, epoch: int) -> Tensor:
        return rows


def text_columns(dataset: Dataset, labels: Sequence[str]) -> list[str]:
    """The columns that are encoded, in their order: anchor, positive, negatives. Labels are none of them."""
    first = dataset[0] if len(dataset) else dict.fromkeys(dataset.column_names)
    return [name for name in first if name not in labels and name != DATASET_NAME]


def table_of(dataset: Dataset, columns: Sequence[str], labels: Sequence[str] = ()) -> tuple[TrainingTable, Tensor]:
    """What a batch miner may know of a data set's rows, and the first row of each anchor (position = its id)."""
    named = columns[:2] if all(isinstance(dataset[0][name], str) for name in columns[:2]) else []
    label = next((name for name in labels if name in dataset[0] and isinstance(dataset[0][name], int)), None)
    read: dict[str, list[Any]] = {name: [] for name in (*named, *([label] if label else ()))}
    for part in dataset.iter(READ_ROWS) if read else ():
        for name, values in read.items():
            values.extend(part[name])
    rows = torch.arange(len(dataset))  # pictures and the like are not compared: each row is its own
    anchors, first_rows = _codes_of(read[named[0]]) if named else (rows, rows)
    documents = _codes_of(read[named[1]])[0] if len(named) > 1 else rows
    pairs = torch.stack([anchors, documents], dim=1).unique(dim=0)
    positives = Ragged.from_pairs(pairs[:, 0], pairs[:, 1], len(first_rows)).select(anchors)
    classes = torch.tensor(read[label]) if label else None
    return TrainingTable(anchors, positives, labels=classes), first_rows


def _codes_of(texts: list[str]) -> tuple[Tensor, Tensor]:
    """(N,) number of each text, equal texts alike, and the place where each number is met first."""
    codes = torch.tensor(pa.array(texts, pa.large_string()).dictionary_encode().indices.to_numpy()).long()
    first = torch.full((int(codes.max()) + 1,), len(codes))
    return codes, first.scatter_reduce_(0, codes, torch.arange(len(codes)), "amin")
