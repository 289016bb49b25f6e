"""Tables of flows, sensors or nodes: csv, parquet, and the npz of a graph with sparse features; numbers come out.

Nothing in a file is run or unpickled. Mistakes are named with their file, column and row.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.readers import expand

log = logging.getLogger(__name__)

SPLIT = "split"
"""A column of this name says to which split a row belongs."""
MANY, UNIQUE = 20, 0.5  # a text column with more values than both is a name of the row and no category


@dataclass(frozen=True)
class Table:
    """N rows as they stand in their files.

    Args:
        numbers: numeric columns, (N,) float64 each, by name in the order of the file.
        texts: categories, (N,) str each, by name.
        labels: (N,) str.
        names: what each row is called: its file and its number there, from 1; all different.
        split: (N,) str, or None where no column says it.
    """

    numbers: Mapping[str, NDArray[np.float64]]
    texts: Mapping[str, NDArray[np.str_]]
    labels: NDArray[np.str_]
    names: tuple[str, ...]
    split: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Table:
        """Some rows, by number or by mask."""
        rows = np.arange(len(self))[rows]
        return Table(
            {name: column[rows] for name, column in self.numbers.items()},
            {name: column[rows] for name, column in self.texts.items()},
            self.labels[rows],
            tuple(self.names[row] for row in rows.tolist()),
            None if self.split is None else self.split[rows],
        )


def read_tables(
    paths: str | os.PathLike[str] | Sequence[str],
    label: str,
    drop: Sequence[str] = (),
    missing: Literal["refuse", "drop"] = "refuse",
    beside: Sequence[str | os.PathLike[str]] = (),
) -> Table:
    """Read tables of the same columns, one after the other.

    Args:
        paths: a file, or several: .csv (.csv.gz), .parquet, or .npz with a graph's features (see `read_graph`); "~" and
            variables such as $HARDNEG_DATA are filled in.
        label: column of the class; it is no feature.
        drop: further columns that are none.
        missing: what to do with rows that lack a number, or have an infinite one: "refuse" names the first, "drop"
            leaves them out together with their labels, and logs how many.
        beside: files of other tables: rows are called by the whole path where two files have one name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a missing column, a file without rows, other columns than the first file's, a missing number, a
            column of times or decimals, a split that some files have alone.
    """
    several = each_path(paths)
    short = [expand(path).name for path in (*several, *beside)]
    called = [name if short.count(name) == 1 else str(path) for name, path in zip(short, several, strict=False)]
    found = [_read(expand(path), name, label, drop, missing) for path, name in zip(several, called, strict=True)]
    first = found[0]
    for path, table in zip(several, found, strict=True):
        if (table.split is None) != (first.split is None):
            raise ValueError(
                f"one of {several[0]} and {path} alone says of which split its rows are (column '{SPLIT}'). Give all "
                "of them that column, or none."
            )
        for kind, ours, theirs in (("number", first.numbers, table.numbers), ("text", first.texts, table.texts)):
            if lacking := sorted(set(ours) ^ set(theirs)):
                raise ValueError(
                    f"{path} and {several[0]} differ in the column '{lacking[0]}', which is a {kind} in one of them "
                    "alone. Give tables of the same columns, or drop it (data.init_args.drop)."
                )
    return Table(
        {name: np.concatenate([table.numbers[name] for table in found]) for name in first.numbers},
        {name: np.concatenate([table.texts[name] for table in found]) for name in first.texts},
        np.concatenate([table.labels for table in found]),
        tuple(name for table in found for name in table.names),
        None if first.split is None else np.concatenate([table.split for table in found if table.split is not None]),
    )


def each_path(paths: str | os.PathLike[str] | Sequence[str]) -> list[str | os.PathLike[str]]:
    """One path or several, as a list."""
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _read(path: Path, called: str, label: str, drop: Sequence[str], missing: str) -> Table:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Wanted: a .csv, .csv.gz, .parquet or .npz file.")
    if path.suffix == ".npz":
        return read_graph(path)
    if not path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise ValueError(f"{path}: unknown format. Wanted: .csv, .csv.gz, .parquet, or .npz.")
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet

    try:
        read: Any = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}") from None
    read = read.rename_columns([name.strip() for name in read.column_names])  # CICIDS' own begin with a space
    for name in (label, *drop):
        if name not in read.column_names:
            raise ValueError(
                f"{path} has no column '{name}'; it has {', '.join(read.column_names)}. Set data.init_args.label and "
                "data.init_args.drop to columns that are there."
            )
    if not len(read):
        raise ValueError(f"{path} holds no row.")
    numbers: dict[str, NDArray[np.float64]] = {}
    texts: dict[str, NDArray[np.str_]] = {}
    for name in read.column_names:
        if name in (label, SPLIT, *drop):
            continue
        column = read[name]
        kind = column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            numbers[name] = pc.cast(column, pa.float64()).to_numpy()  # a null becomes NaN
        elif pa.types.is_null(kind):
            numbers[name] = np.full(len(read), np.nan)
        elif pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
            raise ValueError(
                f"{path}, column '{name}': holds {kind}, which is neither a number nor a category here. Write it as a "
                "number, or name it in data.init_args.drop."
            )
        else:
            texts[name] = _text(column)
    labels = _text(read[label])
    if (empty := labels == "").any():
        raise ValueError(f"{path}, row {int(empty.argmax()) + 1}: no label in the column '{label}'.")
    table = Table(
        numbers,
        texts,
        labels,
        tuple(f"{called} row {row}" for row in range(1, len(read) + 1)),
        _text(read[SPLIT]) if SPLIT in set(read.column_names) - set(drop) else None,
    )
    return _whole(path, table, missing)


def _whole(path: Path, table: Table, missing: str) -> Table:
    """The rows without a missing number; labels leave with their rows."""
    broken = np.zeros(len(table), dtype=bool)
    for name, column in table.numbers.items():
        bad = ~np.isfinite(column)
        if missing == "refuse" and bad.any():
            raise ValueError(
                f"{path}, column '{name}', row {int(bad.argmax()) + 1}: {column[bad.argmax()]} is no finite number "
                f"(in {int(bad.sum())} of {len(table)} rows). Set data.init_args.missing: drop to leave such rows out, "
                "or name the column in data.init_args.drop."
            )
        broken |= bad
    if broken.any():
        log.info("%s: %d of %d rows lack a number and are left out.", path, int(broken.sum()), len(table))
    if broken.all():
        raise ValueError(f"{path}: every row lacks a number. Name the empty columns in data.init_args.drop.")
    return table.take(~broken) if broken.any() else table


def _text(column: Any) -> NDArray[np.str_]:
    """(N,) as text; "" where there is nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return np.array(pc.fill_null(pc.cast(column, pa.string()), "").to_pylist(), dtype=np.str_)


def read_graph(path: Path) -> Table:
    """Features of a graph's nodes: sparse parts ``<name>_indptr``, ``_indices``, ``_data``, ``_shape``; ``labels``.

    Arrays ``train``, ``val`` and ``test`` (row numbers) become the splits.

    Raises:
        ValueError: a missing array.
    """
    from scipy.sparse import csr_matrix

    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    prefix = next((name.removesuffix("_indptr") for name in found if name.endswith("_indptr")), "feat")
    wanted = ["labels", *(f"{prefix}_{part}" for part in ("data", "indices", "indptr", "shape")), "train", "test"]
    for name in wanted:
        if name not in found:
            raise ValueError(f"{path} has no array '{name}'; it has {', '.join(found)}.")
    data, indices, indptr, shape = (found[f"{prefix}_{part}"] for part in ("data", "indices", "indptr", "shape"))
    dense = csr_matrix((data.astype(np.float64), indices.astype(np.int64), indptr), tuple(shape.tolist())).toarray()
    split = np.full(len(dense), "", dtype="<U5")
    for name in ("train", "val", "test"):
        if name in found:
            split[found[name]] = name
    return Table(
        {f"{prefix}_{at}": column for at, column in enumerate(dense.T)},
        {},
        found["labels"].astype(np.str_),
        tuple(f"node {row}" for row in range(len(dense))),
        split,
    )


@dataclass(frozen=True)
class Columns:
    """How rows become numbers: what was learnt from training rows, and nothing of the rows themselves.

    Args:
        names: numeric columns.
        mean, scale: of each; 0 and 1 leave numbers as they are.
        categories: categorical column -> its values; each value is a column of 0 and 1, another value is 0 in all.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    categories: Mapping[str, tuple[str, ...]]

    @classmethod
    def fit(cls, table: Table, standardise: bool = True) -> Columns:
        """Learn mean, standard deviation and values; a constant column has a scale of 1.

        Raises:
            ValueError: a text that differs from row to row, each value of which would be a column.
        """
        names = tuple(table.numbers)
        mean, scale = [0.0] * len(names), [1.0] * len(names)
        if standardise:
            mean = [float(table.numbers[name].mean()) for name in names]
            scale = [float(table.numbers[name].std()) for name in names]
            # a constant's deviation may be round-off
            scale = [s if s > 1e-12 * max(abs(m), 1.0) else 1.0 for m, s in zip(mean, scale, strict=True)]
        values = {name: tuple(np.unique(column).tolist()) for name, column in table.texts.items()}
        for name, found in values.items():
            if len(found) > max(MANY, UNIQUE * len(table)):
                raise ValueError(
                    f"the column '{name}' has {len(found):,} values in {len(table):,} training rows, such as "
                    f"'{table.texts[name][0]}' ({table.names[0]}): it names rows, and each value would be a column. "
                    "Name it in data.init_args.drop."
                )
        return cls(names, tuple(mean), tuple(scale), values)

    def matrix(self, table: Table) -> NDArray[np.float32]:
        """(N, F) numbers, then the columns of each category.

        Raises:
            ValueError: a column that the table lacks.
        """
        for name in (*self.names, *self.categories):
            if name not in table.numbers and name not in table.texts:
                raise ValueError(
                    f"the column '{name}' of training is missing; there are {[*table.numbers, *table.texts]}."
                )
        parts = [np.stack([table.numbers[name] for name in self.names], 1)] if self.names else []
        parts = [(part - np.array(self.mean)) / np.array(self.scale) for part in parts]
        parts += [table.texts[name][:, None] == np.array(values) for name, values in self.categories.items()]
        return np.concatenate(parts, 1).astype(np.float32)

    @property
    def features(self) -> NDArray[np.int64]:
        """(F,) which columns of the matrix are one feature."""
        widths = [1] * len(self.names) + [len(values) for values in self.categories.values()]
        return np.repeat(np.arange(len(widths)), widths)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        plain: dict[str, Any] = {name: list(getattr(self, name)) for name in ("names", "mean", "scale")}
        return plain | {"categories": {name: list(values) for name, values in self.categories.items()}}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Columns:
        """What `as_dict` gave."""
        names, mean, scale = (tuple(given[name]) for name in ("names", "mean", "scale"))
        return cls(names, mean, scale, {name: tuple(values) for name, values in given["categories"].items()})
