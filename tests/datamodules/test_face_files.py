"""Lists of pairs, and ``.bin`` sets: read without running them, and every hostile one refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from datamodules.face_files import plain_pickle, read_bin, read_pairs

NAMES = ["Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", "Bob/Bob_0001.jpg", "Cy_X/Cy_X_0001.jpg", "Cy_X/Cy_X_0002.jpg"]


def test_a_table(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f"file_a,file_b,same,fold\n{NAMES[0]},{NAMES[1]},1,4\n{NAMES[0]},{NAMES[2]},0,2\n")
    pairs = read_pairs(path, NAMES)
    assert pairs.rows.tolist() == [[0, 1], [0, 2]]
    assert pairs.same.tolist() == [True, False]
    assert pairs.fold.tolist() == [1, 0]  # counted from 0, without gaps
    path.write_text("file_a,file_b,same\n" + f"{NAMES[0]},{NAMES[2]},false\n" * 20)
    assert read_pairs(path, NAMES).fold.tolist() == [row // 2 for row in range(20)]


@pytest.mark.parametrize(
    ("lines", "kind", "complaint"),
    [
        ("file_a,file_b,same\nAnn/Ann_0001.jpg,none.jpg,1\n", FileNotFoundError, r"line 2: there is no picture 'none"),
        ("file_a,file_b,same\nAnn/Ann_0001.jpg,Bob/Bob_0001.jpg,maybe\n", ValueError, "line 2: column 'same' must be"),
        ("file_a,file_b,same,fold\nAnn/Ann_0001.jpg,Bob/Bob_0001.jpg,0,x\n", ValueError, "'fold' must be a whole"),
        ("file_a,same\nAnn/Ann_0001.jpg,1\n", ValueError, "file_b"),
        ("file_a,file_b,same\n", ValueError, "holds no pair"),
    ],
)
def test_wrong_tables(tmp_path: Path, lines: str, kind: type[Exception], complaint: str) -> None:
    (tmp_path / "pairs.csv").write_text(lines)
    with pytest.raises(kind, match=complaint):
        read_pairs(tmp_path / "pairs.csv", NAMES)


def test_lfw(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("2\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\nCy_X\t1\t2\nBob\t1\tCy_X\t2\n")
    pairs = read_pairs(path, NAMES)
    assert pairs.rows.tolist() == [[0, 1], [0, 2], [3, 4], [2, 4]]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]
    path.write_text("1\nAnn 1 2\nAnn 1 Bob 1\n")  # as in pairsDevTest.txt: no folds of its own
    assert len(read_pairs(path, NAMES)) == 2


@pytest.mark.parametrize(
    ("text", "kind", "complaint"),
    [
        ("2 1\nAnn 1 2\n", ValueError, "the first line says 4 pairs, and there are 1"),
        ("1 1\nAnn 1 9\nAnn 1 Bob 1\n", FileNotFoundError, "line 2: there is no picture 'Ann/Ann_0009'"),
        ("1 1\nAnn 1\nAnn 1 Bob 1\n", ValueError, "line 2: wants 'name i j'"),
        ("folds\n", ValueError, "line 1: wants the number of folds"),
        ("", ValueError, "line 1: wants the number of folds"),
    ],
)
def test_wrong_lfw(tmp_path: Path, text: str, kind: type[Exception], complaint: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(kind, match=complaint):
        read_pairs(tmp_path / "pairs.txt", NAMES)


def test_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pairs.txt does not exist. Wanted"):
        read_pairs(tmp_path / "pairs.txt", NAMES)


# ---- .bin ------------------------------------------------------------------------------------------------------------


PICTURES = [b"\xff\xd8one", b"two" * 200, b"\x00\x80three", b"two" * 200]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", [tuple, list])
def test_a_bin_of_today(tmp_path: Path, protocol: int, kind: type) -> None:
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps(kind((PICTURES, [True, False])), protocol))
    files, pairs = read_bin(path)
    assert [files.read(name) for name in files.names()] == PICTURES
    assert pairs.rows.tolist() == [[0, 1], [2, 3]]
    assert pairs.same.tolist() == [True, False]


def test_a_bin_of_python_2(tmp_path: Path) -> None:
    """Protocol 2 of Python 2: bytes are BINSTRING, and the list of pictures is remembered and put into a tuple."""
    long = b"T" + (300).to_bytes(4, "little") + bytes(range(250)) + b"x" * 50
    path = tmp_path / "set.bin"
    path.write_bytes(b"\x80\x02]q\x00(U\x03\xff\xd8aq\x01" + long + b"q\x02e]q\x03(\x88e\x86q\x04.")
    files, pairs = read_bin(path)
    assert files.packed == [b"\xff\xd8a", bytes(range(250)) + b"x" * 50]
    assert pairs.same.tolist() == [True]


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_bin_is_refused_and_not_run(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set.bin").write_bytes(pickle.dumps(([Hostile(), b""], [True]), protocol))
    with pytest.raises(ValueError, match=r"set.bin: byte \d+: the instruction .*could run code"):
        read_bin(Path("set.bin"))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch ran'\ntR.",  # the classic
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"\x80\x02\x8a\x01\x05\x51.",  # a persistent id
        b"\x80\x02\x82\x01.",  # an extension
        b"}.",  # even a dictionary
        b"N.",
        b"G?\xf0\x00\x00\x00\x00\x00\x00.",  # a float
        b"(i__main__\nX\n.",
    ],
)
def test_other_instructions_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"x: byte \d+: the instruction [A-Z_0-9]+ is none of those"):
        plain_pickle(data, "x")


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04]", b"e.", b"h\x05.", b"]]a", b"\x80\x02U\x20ab.", b"K\x01K\x02.", b"0."]
)
def test_broken_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^x: "):
        plain_pickle(data, "x")


def test_appending_to_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="x: byte 4: appends to a int"):
        plain_pickle(b"K\x01K\x02a.", "x")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1, 2, 3], r"not \(pictures, same\)"),
        (([1, 2], [True]), "no list of packed pictures"),
        ((PICTURES, [b"1", b"0"]), "no list of booleans"),
        ((PICTURES, [True]), "4 pictures for 1 pairs; wanted two for each"),
        (([], []), "0 pictures for 0 pairs"),
    ],
)
def test_wrong_content(tmp_path: Path, content: object, complaint: str) -> None:
    (tmp_path / "set.bin").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(ValueError, match=complaint):
        read_bin(tmp_path / "set.bin")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_bin(tmp_path / "none.bin")
