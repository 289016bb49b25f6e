"""insightface's records: identities and pictures as packed, and broken files named."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from datamodules.image_files import decode, read_pictures
from datamodules.record_files import RecordFiles
from tests.faces import face, write_rec


def test_pictures_and_identities(tmp_path: Path) -> None:
    pictures = read_pictures(write_rec(tmp_path), channels=1, size=16)
    assert pictures.names == tuple(str(key) for key in range(1, 13))
    assert pictures.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert pictures.classes == ("13", "14", "15", "16")
    picture, label, _ = pictures[4]
    assert label == 1
    assert (picture == decode(face(1, 5), "x", 1)).all()
    copy = pickle.loads(pickle.dumps(pictures.files))  # noqa: S301  our own bytes: what a worker gets
    assert copy.read("5") == pictures.files.read("5")


def broken(path: Path, change: str) -> Path:
    data = bytearray(path.read_bytes())
    offsets = [int(line.split()[1]) for line in path.with_suffix(".idx").read_text().splitlines()]
    if change == "cut":
        data = data[: offsets[1] + 30]
    elif change == "magic":
        data[offsets[1]] ^= 1
    elif change == "labels":
        data[offsets[1] + 10] = 9
    elif change == "head":
        data[8] = 0  # record 0 has no labels of its own
    elif change == "range":
        data[offsets[13] + 32 : offsets[13] + 36] = b"\0\0\xc8\x42"  # 100.0
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("cut", "record 1 is cut off"),
        ("magic", r"no whole record 1 begins at byte \d+"),
        ("labels", "record 1 says that it has .* labels"),
    ],
)
def test_broken_pictures_are_named(tmp_path: Path, change: str, complaint: str) -> None:
    files = RecordFiles(broken(write_rec(tmp_path), change))
    with pytest.raises(ValueError, match=complaint):
        files.read("1")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [("head", "does not say where identities begin"), ("range", "lie outside of records 1 to 12")],
)
def test_broken_identities_are_named(tmp_path: Path, change: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_pictures(broken(write_rec(tmp_path), change))


def test_an_index_that_is_missing_or_wrong(tmp_path: Path) -> None:
    path = write_rec(tmp_path)
    with pytest.raises(FileNotFoundError, match="its index has no record 99"):
        RecordFiles(path).read("99")
    path.with_suffix(".idx").write_text("1 2 3\nx\n")
    with pytest.raises(ValueError, match=r"train.idx: is no index"):
        RecordFiles(path)
    path.with_suffix(".idx").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.idx is not beside it"):
        RecordFiles(path)
