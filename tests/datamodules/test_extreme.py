"""The repository's layouts are read, and what is wrong in them is named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from datamodules import ExtremeData
from datamodules.extreme_files import read_label_matrix, read_labels

LABELS = [{"uid": f"L{n}", "title": f"label {n}", "content": f"about {n}"} for n in range(4)]
TRAIN = [
    {"uid": "A", "title": "one", "content": "first", "target_ind": [0, 2, 0]},
    {"uid": "B", "title": "two", "content": "", "target_ind": [1]},
    {"uid": "C", "title": "three", "content": "third", "target_ind": []},
]
TEST = [{"uid": "A", "title": "four", "content": "fourth", "target_ind": [3, 0]}]


def write(folder: Path, name: str, records: list[dict[str, object]]) -> None:
    with gzip.open(folder / name, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LF-AmazonTitles-131K in small."""
    write(tmp_path, "lbl.json.gz", LABELS)
    write(tmp_path, "trn.json.gz", TRAIN)
    write(tmp_path, "tst.json.gz", TEST)
    (tmp_path / "filter_labels_train.txt").write_text("0 2\n")
    (tmp_path / "filter_labels_test.txt").write_text("0 3\n0 1\n")
    return tmp_path


def ready(folder: Path, stage: str = "fit", **options: object) -> ExtremeData:
    data = ExtremeData(str(folder), **options)
    data.setup(stage)
    return data


def test_a_folder_of_the_repository(folder: Path) -> None:
    data = ready(folder)
    assert list(data.query_texts) == ["one first", "two", "three third", "four fourth"]
    assert data.query_texts.names[3] == "tst/A"
    assert list(data.corpus_texts)[3] == "label 3 about 3"
    assert data.table.anchors.tolist() == [0, 1]  # the third has no label
    assert data.table.positives.to_lists() == [[0], [1]]  # the filtered pair is no positive
    data.setup("test")
    assert data.queries("tst")[0].tolist() == [3]
    assert data.positives("tst").documents.tolist() == [0]
    assert torch.stack([data.excluded("tst").queries, data.excluded("tst").documents], 1).tolist() == [[3, 3], [3, 1]]


def test_without_filters_and_without_content(folder: Path) -> None:
    data = ready(folder, filters=False, content=False)
    assert data.table.positives.to_lists() == [[0, 2], [1]]
    assert len(data.excluded("trn")) == 0
    assert list(data.query_texts)[:2] == ["one", "two"]
    assert data.corpus_texts[0] == "label 0"


def test_some_instances_and_all_labels(folder: Path) -> None:
    write(folder, "trn.json.gz", [{**TRAIN[0], "uid": f"A{n}", "target_ind": [n % 4]} for n in range(20)])
    (folder / "filter_labels_train.txt").write_text("")
    kept = [ready(folder, max_instances=6).table.anchors.tolist() for _ in range(2)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 6
    assert kept[0] != list(range(6))
    data = ready(folder, max_instances=100)
    assert (len(data.table), len(data.corpus_texts)) == (20, 4)
    data.setup("test")
    assert data.queries("tst")[0].tolist() == [20]
    with pytest.raises(ValueError, match=r"max_instances=0.*at least 1"):
        ready(folder, max_instances=0)


def test_json_lines_with_text(tmp_path: Path) -> None:
    write(tmp_path, "labels.jsonl.gz", [{"title": "t", "text": "long"}, {"title": "u"}])
    write(tmp_path, "train.jsonl.gz", [{"uid": 7, "text": "x", "target_ind": [1]}])
    data = ready(tmp_path, train_split="train", test_split=None)
    assert list(data.corpus_texts) == ["t long", "u"]
    assert list(data.query_texts.names) == ["train/7"]


@pytest.mark.parametrize(
    "matrix", ["3 4\n0:1 2:1\n1:1 3:0\n\n", "3 10 4\n0,2 5:0.5 7:1\n1 3:2\n 4:1\n"], ids=["matrix", "bag of words"]
)
def test_labels_of_raw_texts_stand_in_a_sparse_file(folder: Path, matrix: str) -> None:
    (folder / "trn.json.gz").unlink()
    (folder / "lbl.json.gz").unlink()
    (folder / "trn.raw.txt").write_text("one\ntwo\nthree\n")
    (folder / "lbl.raw.txt").write_text("a\nb\nc\nd\n")
    (folder / "trn_X_Y.txt").write_text(matrix)
    data = ready(folder, filters=False)
    assert data.table.positives.to_lists() == [[0, 2], [1]]
    assert data.query_texts.names[1] == "trn/1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels\n", "line 1: wants the header 'N L' or 'N D L', got 'labels'"),
        ("1 4\n0:x\n", "line 2: cannot be read as labels: '0:x'"),
        ("1 4\n4:1\n", "line 2: label 4 does not exist; there are 4, counted from 0"),
        ("1 9 4\n0,7 1:1\n", "line 2: label 7 does not exist"),
        ("2 4\n0:1\n", "line 1: promises 2 instances, and 1 lines follow"),
        ("1 4\n0:1\n1:1\n", "line 1: promises 1 instances, and 2 lines follow"),
    ],
)
def test_a_bad_sparse_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "trn_X_Y.txt").write_text(text)
    with pytest.raises(ValueError, match=f"trn_X_Y.txt, {message}"):
        read_label_matrix(tmp_path / "trn_X_Y.txt")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"uid": "D", "title": "x", "target_ind": [4]}, "trn.json.gz, line 4: label 4 does not exist; there are 4"),
        ({"uid": "D", "title": "x", "target_ind": "1"}, "line 4: field 'target_ind' must be a list of whole numbers"),
        ({"uid": "A", "title": "x", "target_ind": [1]}, "line 4: duplicate id: query 'trn/A' was there before"),
        ({"uid": "D", "title": " ", "target_ind": [1]}, "line 4: empty text: query 'trn/D' has nothing to encode"),
        ({"uid": "D", "target_ind": [1]}, "line 4: has no field 'title'; its fields are uid, target_ind"),
    ],
)
def test_a_bad_record_is_named(folder: Path, record: dict[str, object], message: str) -> None:
    write(folder, "trn.json.gz", [*TRAIN, record])
    with pytest.raises(ValueError, match=message):
        ready(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3 0", "filter_labels_train.txt, line 2: instance 3 does not exist; 'trn' has 3"),
        ("0 4", "filter_labels_train.txt, line 2: label 4 does not exist"),
        ("0", "filter_labels_train.txt, line 2: wants an instance and a label, two numbers; got '0'"),
    ],
)
def test_a_bad_filter_is_named(folder: Path, line: str, message: str) -> None:
    (folder / "filter_labels_train.txt").write_text(f"0 2\n{line}\n")
    with pytest.raises(ValueError, match=message):
        ready(folder)


def test_missing_files_are_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(FileNotFoundError, match=r"dev.json.gz does not exist; splits that are there: trn, tst"):
        ready(folder, val_split="dev")
    write(folder, "trn.json.gz", [{"uid": "A", "title": "one"}])
    with pytest.raises(FileNotFoundError, match=r"no field 'target_ind' on every line, and .*trn_X_Y.txt does not"):
        ready(folder)
    (folder / "trn_X_Y.txt").write_text("2 4\n0:1\n1:1\n")
    with pytest.raises(ValueError, match=r"trn_X_Y.txt, line 1: is of 2 instances and 4 labels, but trn.json.gz has 1"):
        ready(folder)
    with pytest.raises(FileNotFoundError, match=r"has neither lbl.json.gz nor labels.json.gz"):
        read_labels(tmp_path_factory.mktemp("empty"))
