"""Read recordings from the files that activity data comes in. Nothing in a file is run or unpickled.

Five layouts, which the files themselves tell apart:

- packed: raw.npz (all recordings end to end) and meta.json with the names;
- clips: folders Inertial/ and Skeleton/, a file per clip: a<action>_s<subject>_t<trial>[_ses<n>_sc<n>]; UTD-MHAD's
  .mat, MMAct's .csv and .npy;
- table: recordings.csv with a row per recording (file or files, label, subject), and the csv or parquet files it names;
- windows: one .npz with ready windows (W, T, C), label, subject;
- long: one .csv or .parquet with a row per sample: recording, label, subject, and the sensor's columns.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.labelled import UNLABELLED
from datamodules.readers import Place, expand, inside, read_json, read_records
from datamodules.recordings import Recordings

LIST = "recordings.csv"
TIMES = ("time", "timestamp", "t", "ts", "seconds")
CLIP = re.compile(r"a(\d+)_s(\d+)_t(\d+)(?:_ses(\d+)_sc(\d+))?", re.ASCII)
NUMERIC_MAT = {"double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}


def read_recordings(path: str | os.PathLike[str], modality: str = "inertial") -> Recordings:
    """Read recordings of any layout; which one, the files tell.

    Args:
        path: a folder or a file; "~" and variables such as $HARDNEG_DATA are filled in.
        modality: what the signal is called where the files do not say.

    Raises:
        FileNotFoundError: nothing is there, or no layout that is known; says which there are.
        ValueError: a file that is not what its layout says; names file, line and column.
    """
    path = expand(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Wanted: a folder or file of recordings ({LAYOUTS}).")
    if path.is_file():
        if path.suffix == ".npz":
            return read_windows(path)
        if path.suffix in (".csv", ".parquet"):
            return read_long(path, modality)
        raise ValueError(f"{path}: unknown format. Wanted: .npz, .csv or .parquet, or a folder ({LAYOUTS}).")
    for file, reader in (("raw.npz", read_packed), (LIST, read_table)):
        if (path / file).exists():
            return reader(path, modality)
    if any((path / folder).is_dir() for folder in ("Inertial", "Skeleton")):
        return read_clips(path)
    if (path / "windows.npz").exists():
        return read_windows(path / "windows.npz")
    raise FileNotFoundError(f"{path} holds no recordings of a layout that is known: {LAYOUTS}.")


LAYOUTS = f"raw.npz and meta.json, {LIST}, Inertial/ and Skeleton/, windows.npz, one .npz, .csv or .parquet"


# ---- packed ----------------------------------------------------------------------------------------------------------


def read_packed(folder: Path, modality: str = "inertial") -> Recordings:
    """raw.npz: ``<modality>`` (S, ...) with ``<modality>_offset`` (R + 1,), or one array with ``offset``.

    ``label`` or ``action`` (R,), ``subject`` (R,) and any other (R,) array, which becomes a field. meta.json may name
    classes ("activities" as a list, "actions" by number) and subjects.
    """
    file = folder / "raw.npz"
    arrays = _npz(file)
    meta: Any = read_json(folder / "meta.json") if (folder / "meta.json").exists() else {}
    signals, offsets = {}, {}
    for name in [name for name in arrays if name.endswith("offset")]:
        own = name.removesuffix("_offset") if name != "offset" else _only_signal(file, arrays)
        if own not in arrays:
            raise ValueError(f"{file}: has '{name}' and no array '{own}'.")
        signals[own if name != "offset" else modality] = arrays[own].astype(np.float32)
        offsets[own if name != "offset" else modality] = arrays[name].astype(np.int64)
    if not signals:
        raise ValueError(f"{file}: no offsets. Wanted: an array <modality> and <modality>_offset (recordings + 1).")
    number = len(next(iter(offsets.values()))) - 1
    flat = {name: part for name, part in arrays.items() if part.ndim == 1 and len(part) == number}
    labels, classes = _classes(file, flat, meta)
    fields = {
        name: _named(part, meta.get(f"{name}s")) for name, part in flat.items() if name not in ("label", "action")
    }
    names = tuple(f"recording {row}" for row in range(number))
    return Recordings(signals, offsets, labels, classes, names, fields)


def read_splits(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The splits by subject that a packed set's meta.json brings: name -> {"train": subjects, ...}; {} without."""
    file = expand(path) / "meta.json"
    return read_json(file).get("splits", {}) if file.exists() else {}


def _only_signal(file: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    wide = [name for name, part in arrays.items() if part.ndim > 1]
    if len(wide) != 1:
        raise ValueError(f"{file}: 'offset' belongs to one signal, and there are {wide}. Name it <modality>_offset.")
    return wide[0]


def _classes(file: Path, flat: Mapping[str, NDArray[Any]], meta: Any) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    column = next((flat[name] for name in ("label", "action") if name in flat), None)
    if column is None:
        raise ValueError(f"{file}: no array 'label' (or 'action') with one entry per recording.")
    named = meta.get("activities") or meta.get("actions") or {}
    values = np.unique(column)
    if isinstance(named, list):
        texts = dict(enumerate(named))
    else:
        texts = {int(number): str(text) for number, text in named.items()}
    if column.dtype.kind in "iu" and texts:
        if missing := sorted(set(values.tolist()) - set(texts)):
            raise ValueError(f"{file}: label {missing[0]} has no name in meta.json.")
        values = np.array(sorted(texts))
    classes = tuple(str(texts.get(value, value)) for value in values.tolist())
    return np.searchsorted(values, column).astype(np.int64), classes


def _named(column: NDArray[Any], names: Any) -> NDArray[np.str_]:
    if isinstance(names, list) and column.dtype.kind in "iu":
        return np.array(names)[column]
    return column.astype(np.str_)


# ---- one file per clip -----------------------------------------------------------------------------------------------


def read_clips(folder: Path) -> Recordings:
    """UTD-MHAD's folders Inertial/ and Skeleton/, and MMAct's in the same layout; clips that lack one are left out.

    Clips are matched on action, subject and trial, or, where the names have them, on scene and session instead of the
    trial, which MMAct counts for each sensor by itself.
    """
    readers: Mapping[str, Callable[[Path], NDArray[np.float32]]] = {".mat": read_mat, ".csv": _csv, ".npy": _npy}
    found: dict[str, dict[tuple[str, ...], Path]] = {}
    for sub in ("Inertial", "Skeleton"):
        if not (folder / sub).is_dir():
            continue
        clips = found[sub.lower()] = {}
        for file in sorted((folder / sub).iterdir()):
            name = CLIP.match(file.name)
            if file.suffix not in readers:
                continue
            if name is None:
                raise ValueError(f"{file}: the name is not a<action>_s<subject>_t<trial>[_ses<session>_sc<scene>].")
            action, subject, trial, session, scene = name.groups()
            key = (action, subject, trial) if session is None else (action, subject, session, scene)
            if key in clips:
                raise ValueError(f"{file}: another file of the same clip is {clips[key].name}.")
            clips[key] = file
    both = sorted(set.intersection(*map(set, found.values())), key=lambda key: [int(part) for part in key])
    if not both:
        raise ValueError(f"{folder}: no clip has a file in each of {sorted(found)}.")
    signals: dict[str, NDArray[np.float32]] = {}
    offsets: dict[str, NDArray[np.int64]] = {}
    for modality, clips in found.items():
        parts = [_time_first(readers[clips[key].suffix](clips[key]), modality) for key in both]
        signals[modality], offsets[modality] = _end_to_end(parts, [str(clips[key]) for key in both])
    columns = np.array(both).T
    actions = np.unique(columns[0].astype(int))
    kinds = ("action", "subject", "trial") if len(columns) == 3 else ("action", "subject", "session", "scene")
    return Recordings(
        signals,
        offsets,
        np.searchsorted(actions, columns[0].astype(int)).astype(np.int64),
        tuple(str(action) for action in actions),
        tuple(_clip_name(kinds, key) for key in both),
        {kind: column for kind, column in zip(kinds, columns, strict=True) if kind != "action"},
    )


def _clip_name(kinds: Sequence[str], key: Sequence[str]) -> str:
    short = {"action": "a", "subject": "s", "trial": "t", "session": "ses", "scene": "sc"}
    return "_".join(short[kind] + part for kind, part in zip(kinds, key, strict=True))


def read_mat(file: Path) -> NDArray[np.float32]:
    """The one numeric array of a MATLAB file up to version 7.2.

    Raises:
        ValueError: objects, functions, structures, text, or more than one array; or a version 7.3 file.
    """
    from scipy.io import loadmat, whosmat

    try:
        listed = whosmat(str(file))
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise ValueError(f"{file}: is no MATLAB file that can be read ({error}).") from None
    if len(listed) != 1 or listed[0][2] not in NUMERIC_MAT:
        raise ValueError(f"{file}: wanted one numeric array, found {[(name, kind) for name, _, kind in listed]}.")
    name = listed[0][0]
    array = loadmat(str(file), variable_names=[name])[name]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":  # sparse, or complex
        raise ValueError(f"{file}: '{name}' is no plain array of real numbers.")
    return array.astype(np.float32)


def _npy(file: Path) -> NDArray[np.float32]:
    return np.load(file, allow_pickle=False).astype(np.float32)


def _time_first(array: NDArray[np.float32], modality: str) -> NDArray[np.float32]:
    """Joints come as (J, D, frames)."""
    return np.moveaxis(array, 2, 0) if array.ndim == 3 and modality == "skeleton" else array


def _csv(file: Path) -> NDArray[np.float32]:
    return _columns(file)[0]


# ---- a table of files ------------------------------------------------------------------------------------------------


def read_table(folder: Path, modality: str = "inertial") -> Recordings:
    """recordings.csv: a row per recording, with ``label``, ``subject`` and the file or files of its signals.

    The column ``file`` names the file of a single modality; columns ``file_<modality>`` those of several, which need
    neither the same rate nor the same length. An empty label is unknown. Every other column becomes a field. Files have
    one row per sample; a header is optional, and a time column is left out.
    """
    records = list(read_records(folder / LIST))
    if not records:
        raise ValueError(f"{folder / LIST}: has a header and no recording.")
    header = list(records[0][1])
    files = (
        {"file": modality}
        if "file" in header
        else {n: n.removeprefix("file_") for n in header if n.startswith("file_")}
    )
    if not files:
        raise ValueError(f"{folder / LIST}: no column 'file' or 'file_<modality>'; there are {', '.join(header)}.")
    for wanted in ("label", "subject"):
        if wanted not in header:
            raise ValueError(f"{folder / LIST}: no column '{wanted}'; there are {', '.join(header)}.")
    signals, offsets = {}, {}
    for column, name in files.items():
        parts = [_member(folder, place, str(fields[column])) for place, fields in records]
        signals[name], offsets[name] = _end_to_end(parts, [str(fields[column]) for _, fields in records])
    labels, classes = _coded([str(fields["label"]) for _, fields in records])
    rest = [name for name in header if name not in files and name != "label"]
    return Recordings(
        signals,
        offsets,
        labels,
        classes,
        tuple(str(fields[next(iter(files))]) for _, fields in records),
        {name: np.array([str(fields[name]) for _, fields in records]) for name in rest},
    )


def _member(folder: Path, place: Place, name: str) -> NDArray[np.float32]:
    if not name:
        raise ValueError(f"{place}: names no file. Leave the recording out, or name its file.")
    file = folder / inside(name, folder, place)
    if not file.is_file():
        raise FileNotFoundError(f"{place}: '{name}' is not in {folder}.")
    return _columns(file)[0]


def _columns(file: Path) -> tuple[NDArray[np.float32], list[str]]:
    """(samples, columns) of a csv or parquet file without its time column, and the columns' names.

    Raises:
        ValueError: a column that holds text, no sample, or no column.
    """
    table = _table(file)
    names = [name for name in table.column_names if name.strip().lower() not in TIMES]
    return _matrix(file, table, names), names


def _table(file: Path) -> Any:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if file.suffix == ".parquet":
            return parquet.read_table(file)
        with file.open(encoding="utf-8-sig") as lines:
            first = lines.readline().strip().split(",")
        headless = all(_is_number(cell) for cell in first)
        return csv.read_csv(file, read_options=csv.ReadOptions(autogenerate_column_names=headless, use_threads=False))
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: is no table that can be read ({error}).") from None


def _matrix(file: Path, table: Any, names: Sequence[str]) -> NDArray[np.float32]:
    import pyarrow as pa

    for name in names:
        kind = table.schema.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise ValueError(
                f"{file}: column '{name}' holds {kind}, not numbers. Take it out of the file, or call it 'time' where "
                "it is one."
            )
    if not names or not table.num_rows:
        raise ValueError(
            f"{file}: has {table.num_rows} samples in {len(names)} columns of numbers; wanted at least one."
        )
    columns = [table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names]
    return np.stack(columns, axis=1).astype(np.float32)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return not cell.strip()
    return True


# ---- ready windows, and long tables ----------------------------------------------------------------------------------


def read_windows(file: Path) -> Recordings:
    """A .npz of ready windows: float arrays (W, T, C) or (W, T, J, D) by modality, ``label`` (W,), ``subject`` (W,).

    ``recording`` (W,) says which windows were cut from one recording; without it each is one of its own. Any other (W,)
    array becomes a field.
    """
    arrays = _npz(file)
    wide = {name: part for name, part in arrays.items() if part.ndim in (3, 4) and part.dtype.kind == "f"}
    if not wide:
        raise ValueError(
            f"{file}: no array of windows (W, T, C); there are { {n: a.shape for n, a in arrays.items()} }."
        )
    number = len(next(iter(wide.values())))
    flat = {name: part for name, part in arrays.items() if part.ndim == 1}
    for name, part in {**wide, **flat}.items():
        if len(part) != number:
            raise ValueError(f"{file}: '{name}' has {len(part)} entries for {number} windows.")
    labels, classes = _classes(file, flat, {})
    signals = {name: part.reshape(-1, *part.shape[2:]).astype(np.float32) for name, part in wide.items()}
    offsets = {name: np.arange(number + 1, dtype=np.int64) * part.shape[1] for name, part in wide.items()}
    fields = {name: part.astype(np.str_) for name, part in flat.items() if name not in ("label", "action")}
    return Recordings(signals, offsets, labels, classes, tuple(f"window {row}" for row in range(number)), fields)


def read_long(file: Path, modality: str = "inertial") -> Recordings:
    """A .csv or .parquet with a row per sample: ``recording``, ``label``, ``subject``, and the sensor's columns.

    Samples of a recording stand together, in their order; every column of text becomes a field.
    """
    import pyarrow as pa

    table = _table(file)
    if missing := [name for name in ("recording", "label", "subject") if name not in table.column_names]:
        raise ValueError(f"{file}: no column {missing}; there are {', '.join(table.column_names)}.")
    texts = {
        name: np.array(["" if v is None else str(v) for v in table.column(name).to_pylist()])
        for name in table.column_names
        if name in ("recording", "label", "subject") or not _numeric(table.schema.field(name).type, pa)
    }
    names = [n for n in table.column_names if n not in texts and n.strip().lower() not in TIMES]
    matrix = _matrix(file, table, names)
    of = texts["recording"]
    starts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]])
    if len(set(of[starts].tolist())) < len(starts):
        twice = next(name for name in of[starts] if (of[starts] == name).sum() > 1)
        raise ValueError(f"{file}: recording '{twice}' stands in two places. Sort the file by recording and time.")
    ends = np.r_[starts[1:], len(of)]
    for name, column in texts.items():
        if name != "recording" and (column != np.repeat(column[starts], ends - starts)).any():
            row = int(np.flatnonzero(column != np.repeat(column[starts], ends - starts))[0])
            raise ValueError(f"{file}, row {row + 1}: {name} changes inside recording '{of[row]}'.")
    labels, classes = _coded(texts["label"][starts].tolist())
    offsets = np.r_[starts, len(of)].astype(np.int64)
    fields = {name: column[starts] for name, column in texts.items() if name not in ("label", "recording")}
    return Recordings({modality: matrix}, {modality: offsets}, labels, classes, tuple(of[starts].tolist()), fields)


def _numeric(kind: Any, pa: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


# ---- shared ----------------------------------------------------------------------------------------------------------


def _npz(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except ValueError as error:
        raise ValueError(f"{file}: holds Python objects, which are not read ({error}).") from None


def _coded(labels: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Positions in the sorted class names; "" is unknown."""
    classes = sorted(set(labels) - {""})
    place = {name: number for number, name in enumerate(classes)} | {"": UNLABELLED}
    return np.array([place[label] for label in labels], dtype=np.int64), tuple(classes)


def _end_to_end(
    parts: Sequence[NDArray[np.float32]], names: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    for part, name in zip(parts, names, strict=True):
        if part.ndim not in (2, 3) or part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(f"{name}: shape {part.shape}, where the first has {parts[0].shape}; columns must agree.")
    lengths = [len(part) for part in parts]
    return np.concatenate(parts), np.r_[0, np.cumsum(lengths)].astype(np.int64)
