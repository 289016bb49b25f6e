"""Rows of tables: flows, sensors, nodes with features. One class to learn from, or all rows without their labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.labelled import LabelledData, nested_draw, rank_in_class
from datamodules.table_files import SPLIT, Columns, Table, each_path, read_tables
from miners.base import Row, TrainingTable
from miners.draws import RowGenerator
from miners.pool import NOBODY, Items
from miners.ragged import Ragged

log = logging.getLogger(__name__)

SPACE, DRAWN = "row", "drawn"
"""Sides of a batch: the rows, and what sources drew or made for them."""


class TabularData(LabelledData):
    """Train on rows of numbers and categories, without labels or on one class alone.

    With ``benign``, only rows of that class are trained on (and numbers are standardised by them alone); evaluation
    asks whether rows of other classes are told from it. Without, it asks what frozen features know of classes.

    Args:
        train: file or files, as `datamodules.table_files.read_tables` reads them. A column "split" (or a graph's
            arrays) says which rows are of "train", "val" and "test", and which of none (""); otherwise all are of
            "train".
        val: of the validation split; None = ``val_share`` of the training files' rows, by class.
        test: of the test split.
        label: column of the class.
        benign: the one class that is trained on; None = no such class.
        drop: columns that are neither features nor the class (addresses, times, other labels).
        missing: rows that lack a number: "refuse" or "drop" them.
        standardise: numbers to a mean of 0 and a deviation of 1 over the training rows.
        all_rows: train on the rows of all splits, without their labels; for graphs, whose nodes are all there.
        val_share: of the training rows, held out where there is no validation split, in (0, 1).
        mask_labels: never take a row of the same class as a negative: an oracle, for analysis.
        loading: batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed; see `RowsData`.

    Raises:
        ValueError: numbers out of range; no row of the benign class; a test split without other classes, or (without
            ``benign``) with a class that no training row has; a split without rows; splits that a column names and
            other files too.
    """

    features: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __init__(
        self,
        train: str | Sequence[str],
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        label: str = "label",
        benign: str | None = None,
        drop: Sequence[str] = (),
        missing: Literal["refuse", "drop"] = "refuse",
        standardise: bool = True,
        all_rows: bool = False,
        val_share: float = 0.2,
        mask_labels: bool = False,
        **loading: Any,
    ) -> None:
        self.train = train
        super().__init__(**loading)
        if missing not in ("refuse", "drop"):
            raise ValueError(f"TabularData(missing='{missing}'): wants 'refuse' or 'drop'.")
        if not 0 < val_share < 1:
            raise ValueError(f"TabularData(val_share={val_share}): a share, so 0 < val_share < 1.")
        if all_rows and benign is not None:
            raise ValueError(
                "TabularData(all_rows=True) would train on rows that are not benign. Leave one of them out."
            )
        self.val, self.test, self.label, self.benign = val, test, label, benign
        self.drop, self.missing, self.standardise, self.all_rows = tuple(drop), missing, standardise, all_rows
        self.val_share, self.mask_labels = val_share, mask_labels
        self.val_split: str | None = "val"
        self.test_split: str | None = "test"

    # What Lightning calls

    def setup(self, stage: str) -> None:
        if not hasattr(self, "features"):
            self._read()
        if stage == "fit" and self.batches is None:
            rows = self.training_rows
            table = TrainingTable(
                rows,
                Ragged.from_lists([[row] for row in rows.tolist()]),
                labels=self.labels[rows],
                anchor_names=self.names(SPACE),
                document_names=self.names(SPACE),
                inputs=self.features[rows],
                features=torch.from_numpy(self.columns.features),
            )
            self.start(table, self.sources)
            if not len(self.batches):  # type: ignore[arg-type]  # start() has just made them
                raise ValueError(
                    f"{self}: {len(rows)} training rows are fewer than a batch, and drop_last leaves them out. Set "
                    f"data.init_args.batch_size to {max(len(rows) // 2, 2)} or less."
                )
            log.info("%s: %d rows of %d columns to train on", self, len(rows), self.features.shape[1])

    def collate_rows(self) -> CollateRows:
        return CollateRows(self, training=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Evaluated rows of the validation split."""
        return self._rows_loader(self.queries("val")[0])

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Evaluated rows of the test split; none without one."""
        return [] if self.test_split is None else self._rows_loader(self.queries("test")[0])

    def predict_dataloader(self) -> DataLoader[Batch]:
        """All rows."""
        return self._rows_loader(torch.arange(len(self.features)))

    # What modules, callbacks and reports ask for

    @property
    def spaces(self) -> tuple[str, ...]:
        return (SPACE,)

    @property
    def training_rows(self) -> Tensor:
        """(N,) what is trained on: the benign rows of the training split, all of it, or the rows of all splits."""
        if self.all_rows:
            return torch.arange(len(self.features))
        rows = self.ids("train")
        return rows if self.benign is None else rows[self.labels[rows] == self.classes.index(self.benign)]

    def few_labels(self, per_class: int, seed: int) -> Tensor:
        """Training rows (n,): so many of each class, fewer where there are not as many; more contain fewer."""
        rows = self.labelled()
        return rows[rank_in_class(self.labels[rows], seed) < per_class]

    def everything(self, space: str) -> tuple[Tensor, Tensor]:
        """What training meets: ids and rows (N, F)."""
        rows = self.training_rows
        return rows, self.features[rows]

    def names(self, space: str) -> Sequence[str]:
        """What a report calls each row; position = id."""
        return self._names

    def queries(self, split: str) -> tuple[Tensor, Sequence[str]]:
        """Rows of a split that are evaluated: those that are not benign, each against the benign ones; else all."""
        if self.benign is None:
            return super().queries(split)
        ids = self.ids(split)
        ids = ids[self.labels[ids] != self.classes.index(self.benign)]
        return ids, self.text_of(ids, SPACE)

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """For each evaluated row by name, the training rows of its class; itself where training has none."""
        return {name: right or {name: 1} for name, right in super().qrels(split).items()}

    def __str__(self) -> str:
        return f"TabularData({self.train if isinstance(self.train, str) else self.train[0]})"

    # Inside

    def _read(self) -> None:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        given = {name: each_path(paths) for name, paths in parts.items() if paths is not None}
        tables = {}
        for name, paths in given.items():
            beside = [path for other in given if other != name for path in given[other]]
            tables[name] = read_tables([str(path) for path in paths], self.label, self.drop, self.missing, beside)
        train = tables["train"]
        named = [name for name, table in tables.items() if table.split is not None]
        if named and len(tables) > 1:
            raise ValueError(
                f"{self}: the files of '{named[0]}' say of which split their rows are (column '{SPLIT}'), and so does "
                "data.init_args. Give data.init_args.train alone, or name the column in data.init_args.drop."
            )
        if train.split is not None:
            known = train.split
            if strange := sorted(set(known.tolist()) - {*parts, ""}):
                raise ValueError(
                    f"{self}: the column '{SPLIT}' says '{strange[0]}'; wanted {', '.join(parts)}, or nothing."
                )
            tables = {name: train.take(known == name) for name in parts if (known == name).any()}
            if self.all_rows and (rest := known == "").any():
                tables["rest"] = train.take(rest)
            if "train" not in tables:
                raise ValueError(f"{self}: no row is of the split 'train'; there are {sorted(set(known.tolist()))}.")
        if "val" not in tables:
            held = _held_out(tables["train"].labels, self.val_share)
            tables |= {"val": tables["train"].take(held), "train": tables["train"].take(~held)}
        self._check(tables)
        ends = np.cumsum([len(table) for table in tables.values()])
        self._ids = {
            name: torch.arange(end - len(table), end) for (name, table), end in zip(tables.items(), ends, strict=True)
        }
        if "test" not in tables:
            self.test_split = None
        labels = np.concatenate([table.labels for table in tables.values()])
        known = np.unique(labels).tolist()
        self.classes = tuple(sorted(known, key=lambda name: (name != self.benign, name)))  # benign is class 0
        code = {name: number for number, name in enumerate(self.classes)}
        self.labels = torch.tensor([code[name] for name in labels.tolist()])
        self._names = tuple(name for table in tables.values() for name in table.names)
        learnt = tables["train"]
        if self.benign is not None:
            learnt = learnt.take(learnt.labels == self.benign)
        self.columns = Columns.fit(learnt, self.standardise)
        self.features = torch.from_numpy(np.concatenate([self.columns.matrix(table) for table in tables.values()]))

    def _check(self, tables: dict[str, Table]) -> None:
        train = set(tables["train"].labels.tolist())
        for name in ("train", "val", "test"):
            if name not in tables:
                continue
            there = set(tables[name].labels.tolist())
            if self.benign is not None and self.benign not in there:
                raise ValueError(
                    f"{self}: no row of the split '{name}' has the label '{self.benign}' in the column '{self.label}'; "
                    f"there are {', '.join(sorted(there)[:20])}. Set data.init_args.benign."
                )
            if self.benign is not None and name != "train" and len(there) == 1:
                raise ValueError(
                    f"{self}: all rows of the split '{name}' are '{self.benign}'. Nothing can be told apart there: "
                    "give it rows of other classes."
                )
            if self.benign is None and (strange := sorted(there - train)):
                raise ValueError(
                    f"{self}: the split '{name}' has rows of the class '{strange[0]}', which no training row has. "
                    "Leave them out, or set data.init_args.benign to detect what is not of one class."
                )

    def _rows_loader(self, ids: Tensor) -> DataLoader[Batch]:
        return self._loader(ids.tolist(), CollateRows(self, training=False), batch_size=self.eval_batch_size)


class CollateRows:
    """Turn B `Row`, or ids, into a `Batch` with the side "row", and "drawn" where there are sources."""

    def __init__(self, data: TabularData, training: bool) -> None:
        self.features, self.seed = data.features, data.seed
        self.labels = data.labels if data.mask_labels else None
        self.sources = data.sources if training else ()
        self.anchors = data.table.anchors if training else None

    def __call__(self, rows: Sequence[Row] | Sequence[int]) -> Batch:
        if not isinstance(rows[0], Row):
            ids = torch.tensor(rows)
            return Batch({SPACE: self.features[ids]}, {SPACE: Items(ids=ids, space=SPACE)}, _alone(ids), ids)
        assert self.anchors is not None
        index = torch.tensor([row.index for row in rows])  # type: ignore[union-attr]
        ids = self.anchors[index]
        inputs = {SPACE: self.features[ids]}
        labels = None if self.labels is None else self.labels[ids]
        items = {SPACE: Items(ids=ids, labels=labels, space=SPACE)}
        if self.sources:
            inputs[DRAWN], items[DRAWN] = self._drawn(rows, index, inputs[SPACE])  # type: ignore[arg-type]
        return Batch(inputs, items, _alone(ids), index)

    def _drawn(self, rows: Sequence[Row], index: Tensor, inputs: Tensor) -> tuple[Tensor, Items]:
        """Rows that sources drew by id, then corrupted copies, whose id is -1."""
        ids = torch.tensor([negative for row in rows for negative in row.negatives], dtype=torch.long)
        lengths = torch.tensor([len(row.negatives) for row in rows])
        parts, names, brought = [self.features[ids]], [ids], [torch.arange(len(rows)).repeat_interleave(lengths)]
        for number, source in enumerate(self.sources):
            made = source.corrupt(inputs, index, RowGenerator(self.seed, rows[0].epoch, stream=-1 - number))
            if made is not None:
                parts.append(made.inputs)
                names.append(torch.full((len(made.rows),), NOBODY))
                brought.append(made.rows)
        return torch.cat(parts), Items(ids=torch.cat(names), space=SPACE, rows=torch.cat(brought))


def _alone(ids: Tensor) -> Ragged:
    """Each row is its own known positive."""
    return Ragged(torch.arange(len(ids) + 1), ids)


def _held_out(labels: np.ndarray[Any, Any], share: float) -> np.ndarray[Any, Any]:
    """(N,) bool, a share of each class, the same in every run: which rows those are belongs to the data."""
    codes = torch.from_numpy(np.unique(labels, return_inverse=True)[1].astype(np.int64))
    held = nested_draw(codes, share, seed=0).numpy()
    alone = np.isin(codes.numpy(), np.flatnonzero(np.bincount(codes.numpy()) == 1))
    return held & ~alone  # a class of one row stays in training
