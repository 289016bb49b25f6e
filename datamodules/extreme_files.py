"""The files of the Extreme Classification Repository: texts, labels of each instance, pairs to leave out.

A folder holds the labels' texts (``lbl.json.gz``, ``labels.jsonl.gz`` or ``lbl.raw.txt``) and, for each split, the
instances (``trn.json.gz``, ``train.jsonl.gz`` or ``trn.raw.txt``). JSON lines have ``title`` and ``content`` (or
``text``), ``uid``, and for instances ``target_ind``, the numbers of their labels. Where they have no ``target_ind``,
``<split>_X_Y.txt`` says the same as a sparse matrix. ``filter_labels_<split>.txt`` holds pairs of instance and label
that are the same thing. Everything is counted from 0, in the order of the lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datamodules.readers import Place, id_field, read_json_lines, read_lines, text_field
from datamodules.texts import Texts, TextsBuilder
from miners.ragged import Ragged

LABELS, INSTANCES = ("lbl", "labels"), (".json.gz", ".json", ".jsonl.gz", ".jsonl", ".raw.txt")
FILTERS = {"trn": "train", "tst": "test"}  # the repository writes these names out in its filter files, and only there
LAYOUT = "A folder of the Extreme Classification Repository has lbl.json.gz, trn.json.gz and tst.json.gz"


class LabelMatrix(NamedTuple):
    """Which labels N instances have: N lists of columns below ``num_labels``."""

    labels: Ragged
    num_labels: int


def read_labels(folder: Path, content: bool = True) -> Texts:
    """Read the texts of the labels; id = line.

    Args:
        content: title and content (or text), with a space between; False reads the title alone where there is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is no record, a name that was there before, a label without text; file and line are
            named.
    """
    path = next((found for stem in LABELS if (found := _find(folder, stem)) is not None), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has neither {' nor '.join(f'{stem}.json.gz' for stem in LABELS)}. {LAYOUT}.")
    return Texts.read(((place, name, text) for place, name, text, _ in _records(path, content)), "document")


def read_instances(folder: Path, split: str, content: bool, num_labels: int, into: TextsBuilder) -> list[list[int]]:
    """Read the instances of a split into ``into``, named "<split>/<uid>", and give the labels of each.

    Raises:
        FileNotFoundError: the split has no file, or its labels stand nowhere.
        ValueError: a line that is no record, a name that was there before, an instance without text, a label that
            does not exist, as many lists of labels as there are not instances; file and line are named.
    """
    path = _find(folder, split)
    if path is None:
        stems = {file.name.split(".")[0] for suffix in INSTANCES for file in folder.glob(f"*{suffix}")}
        found = ", ".join(sorted(stems - set(LABELS))) or "none"
        raise FileNotFoundError(
            f"{folder / split}{INSTANCES[0]} does not exist; splits that are there: {found}. Set train_split, "
            "val_split and test_split to them, val_split and test_split to null for none."
        )
    lists: list[list[int]] = []
    given = True
    for place, name, text, fields in _records(path, content):
        into.add(place, f"{split}/{name}", text)
        given = given and "target_ind" in fields
        lists.append(_targets(place, fields["target_ind"], num_labels) if given else [])
    if given:
        return lists
    matrix_file = folder / f"{split}_X_Y.txt"
    if not matrix_file.exists():
        raise FileNotFoundError(f"{path} has no field 'target_ind' on every line, and {matrix_file} does not exist.")
    labels, columns = read_label_matrix(matrix_file)
    if len(labels) != len(lists) or columns > num_labels:
        raise ValueError(
            f"{matrix_file}, line 1: is of {len(labels)} instances and {columns} labels, but {path.name} has "
            f"{len(lists)} lines and there are {num_labels} labels."
        )
    return labels.to_lists()


def read_label_matrix(path: Path) -> LabelMatrix:
    """Read the labels of a sparse text file.

    Header ``N L``: each line is ``label:value label:value ...``; labels of value 0 are left out. Header ``N D L``, with
    bag-of-words features: each line is ``label,label,... feature:value ...``, and the features are skipped.

    Raises:
        ValueError: another header, a line that cannot be read, a label that does not exist, more or fewer lines than
            the header says; file and line are named.
    """
    lines = read_lines(path)
    header = next(lines, (Place(path, 1), ""))[1].split()
    if len(header) not in (2, 3) or not all(number.isdigit() for number in header):
        raise ValueError(f"{path}, line 1: wants the header 'N L' or 'N D L', got '{' '.join(header)}'.")
    rows, num_labels = int(header[0]), int(header[-1])
    parse: Callable[[str], list[int]] = _first_column if len(header) == 3 else _columns
    lists: list[list[int]] = []
    for place, line in lines:
        if not line and len(lists) == rows:
            continue  # an empty line at the end; elsewhere it is an instance without labels
        try:
            lists.append(parse(line))
        except ValueError:
            raise ValueError(f"{place}: cannot be read as labels: '{line[:60]}'.") from None
        _check_labels(place, lists[-1], num_labels)
    if len(lists) != rows:
        raise ValueError(f"{path}, line 1: promises {rows} instances, and {len(lists)} lines follow.")
    return LabelMatrix(Ragged.from_lists(lists), num_labels)


def read_filter(folder: Path, split: str, num_instances: int, num_labels: int) -> torch.Tensor:
    """(V, 2) pairs (instance, label) of ``filter_labels_<split>.txt``; none where there is no such file.

    Raises:
        ValueError: a line that is not two numbers, or an instance or label that does not exist; file and line are
            named.
    """
    path = folder / f"filter_labels_{FILTERS.get(split, split)}.txt"
    pairs: list[tuple[int, int]] = []
    for place, line in read_lines(path) if path.exists() else ():
        if not (numbers := line.split()):
            continue
        if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
            raise ValueError(f"{place}: wants an instance and a label, two numbers; got '{line[:60]}'.")
        instance, label = map(int, numbers)
        if instance >= num_instances:
            raise ValueError(f"{place}: instance {instance} does not exist; '{split}' has {num_instances}, from 0 on.")
        _check_labels(place, [label], num_labels)
        pairs.append((instance, label))
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def _find(folder: Path, stem: str) -> Path | None:
    return next((folder / f"{stem}{suffix}" for suffix in INSTANCES if (folder / f"{stem}{suffix}").exists()), None)


def _records(path: Path, content: bool) -> Iterator[tuple[Place, str, str, Mapping[str, Any]]]:
    """Place, name, text and fields of each line; a line without ``uid`` is named by its number, from 0."""
    if path.name.endswith(".raw.txt"):
        for place, line in read_lines(path):
            yield place, str(place.number - 1), line, {}
        return
    for place, fields in read_json_lines(path):
        name = id_field(place, fields, "uid") if "uid" in fields else str(place.number - 1)
        names = [field for field in ("title", "content", "text") if field in fields] or ["title"]
        if not content:
            names = names[:1]
        yield place, name, " ".join(filter(None, (text_field(place, fields, field) for field in names))), fields


def _targets(place: Place, labels: Any, num_labels: int) -> list[int]:
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise ValueError(f"{place}: field 'target_ind' must be a list of whole numbers, got {labels!r:.60}.")
    _check_labels(place, labels, num_labels)
    return labels


def _check_labels(place: Place, labels: list[int], num_labels: int) -> None:
    for label in labels:
        if not 0 <= label < num_labels:
            raise ValueError(f"{place}: label {label} does not exist; there are {num_labels}, counted from 0.")


def _columns(line: str) -> list[int]:
    pairs = [entry.split(":") for entry in line.split()]
    return [int(label) for label, value in pairs if float(value)]


def _first_column(line: str) -> list[int]:
    labels = line.split(" ", 1)[0]
    return [] if not labels or ":" in labels else [int(label) for label in labels.split(",")]
