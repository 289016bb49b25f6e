from __future__ import annotations

import csv
import gzip
import json
import string
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from datamodules.readers import BLOCK_ROWS, Place, expand, id_field, read_records, text_field, texts_field

here = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
texts = st.text(st.characters(exclude_categories=["Cs"]))
tables = st.lists(st.fixed_dictionaries({"_id": texts, "text": texts}), max_size=5)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with (
        gzip.open(path, "wt", encoding="utf-8", newline="")
        if path.suffix == ".gz"
        else path.open("w", encoding="utf-8", newline="") as file
    ):
        file.write(text)


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file, ["_id", "text"], delimiter="\t" if path.suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL
        )
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict]) -> None:
    parquet.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema([("_id", pa.string()), ("text", pa.string())])), path
    )


def write_folder(path: Path, rows: list[dict]) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in ("_id", "text")}).save_to_disk(path)


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_jsonl,
    "a.csv": write_csv,
    "a.tsv": write_csv,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
@here
@given(rows=tables)
def test_what_was_written_is_read(tmp_path: Path, name: str, rows: list[dict]) -> None:
    WRITERS[name](tmp_path / name, rows)
    read = list(read_records(tmp_path / name))
    assert [fields for _, fields in read] == rows
    assert len({place.number for place, _ in read}) == len(rows)


def test_a_datasets_folder_is_read_in_its_own_order(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"_id": str(number), "text": f"text {number}"} for number in range(BLOCK_ROWS + 5)]
    shuffled = datasets.Dataset.from_list(rows).select(range(len(rows) - 1, -1, -1))
    shuffled.save_to_disk(tmp_path / "saved")
    read = list(read_records(tmp_path / "saved"))
    assert [fields for _, fields in read] == rows[::-1]
    assert str(read[-1][0]).endswith(f"saved, row {len(rows)}")


def test_a_datasets_folder_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        ValueError, match=r"holds several splits \(train, test\). Give the folder of one, such as .*train"
    ):
        read_records(tmp_path / "saved")
    assert [fields for _, fields in read_records(tmp_path / "saved" / "test")] == [{"text": "a"}]


def test_the_first_bytes_may_be_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext\na\n")
    for name in ("a.jsonl", "a.csv"):
        assert [fields for _, fields in read_records(tmp_path / name)] == [{"text": "a"}]


def test_blank_lines_count_but_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "a"}\n\n{"text": "b"}')
    assert [place.number for place, _ in read_records(tmp_path / "a.jsonl")] == [2, 4]


def test_a_csv_record_over_two_lines_has_the_number_of_its_last(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"two\nlines"\n2,b\n')
    read = list(read_records(tmp_path / "a.csv"))
    assert [(place.number, fields["text"]) for place, fields in read] == [(3, "two\nlines"), (4, "b")]


def test_a_csv_field_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1," + "x" * 200_000)
    assert [len(fields["text"]) for _, fields in read_records(tmp_path / "a.csv")] == [200_000]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: is not JSON \(Expecting value at column"),
        (
            "a.jsonl",
            b'{"text": "a"}\n["b"]\n',
            r"a\.jsonl, line 2: must be one JSON object \{...\}, got \['b'\] \(list\)",
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"text": "\xff"}\n',
            r"a\.jsonl, line 3: is not UTF-8 \(invalid start byte at byte",
        ),
        ("a.jsonl.gz", b'{"text": "a"}\n', r"a\.jsonl\.gz: damaged gzip file after line 0"),
        ("a.csv", b"id,text\n1,a\n2\n", r"a\.csv, line 3: has 1 fields, but the header names 2"),
        ("a.csv", b"id,text\n1,a,b\n", r"a\.csv, line 2: has 3 fields, but the header names 2"),
        ("a.csv", b'id,text\n1,"a" b\n', r"a\.csv, line 2: ',' expected after '\"'"),
        ("a.csv", b"id,text\n1,\xe9\n", r"a\.csv, line 2: is not UTF-8"),
        ("a.csv", b"id,id\n1,2\n", r"a\.csv, line 1: the header names a column twice: id, id"),
        ("a.csv", b"", r"a\.csv: is empty. Wanted: a header line"),
        ("a.parquet", b"PAR", r"a\.parquet: is not a parquet file that can be read"),
        ("a.pkl", b"x", r"a\.pkl: unknown format. Wanted: a file ending in \.jsonl, \.jsonl\.gz, \.csv"),
    ],
)
def test_a_bad_file_names_itself_and_the_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_records(tmp_path / name))


def test_a_cut_gzip_file_names_the_last_good_line(tmp_path: Path) -> None:
    rows = [{"text": f"{number:08d}"} for number in range(50_000)]
    write_jsonl(tmp_path / "a.jsonl.gz", rows)
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: damaged gzip file after line \d{4}"):
        list(read_records(tmp_path / "a.jsonl.gz"))


def test_a_missing_file_says_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"b\.jsonl does not exist. Wanted: a file ending in \.jsonl"):
        read_records(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match=r"is a folder, but not one written by `Dataset\.save_to_disk`"):
        read_records(tmp_path)


def test_paths_hold_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    assert expand("$SOME_DATA/a") == tmp_path / "a"
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(FileNotFoundError, match=r"\$SOME_DATA/a: the environment variable in this path is not set"):
        expand("$SOME_DATA/a")


PLACE = Place(Path("a.jsonl"), 7)


@pytest.mark.parametrize(
    ("field", "fields", "message"),
    [
        (text_field, {"txt": "a", "id": 1}, r"a\.jsonl, line 7: has no field 'text'; its fields are txt, id"),
        (text_field, {"text": 3}, r"line 7: field 'text' must be text, got 3 \(int\)"),
        (text_field, {"text": "\ud83d"}, r"line 7: field 'text' is not valid unicode"),
        (id_field, {"text": ""}, r"line 7: field 'text' is empty; every record needs an id"),
        (id_field, {"text": True}, r"line 7: field 'text' must be text, got True \(bool\)"),
        (texts_field, {"text": ["a", 1.5]}, r"line 7: field 'text' must hold texts, got 1.5 \(float\) in its list"),
        (texts_field, {}, r"line 7: has no field 'text'; its fields are none"),
    ],
)
def test_a_bad_field_names_the_line(field: Callable, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        field(PLACE, fields, "text")


def test_good_fields() -> None:
    assert text_field(PLACE, {"text": None}, "text") == ""
    assert id_field(PLACE, {"_id": 31}, "_id") == "31"
    assert texts_field(PLACE, {"n": ["a", "", None, " ", "b"]}, "n") == ["a", "b"]
    assert texts_field(PLACE, {"n": "a"}, "n") == ["a"]
    assert texts_field(PLACE, {"n": None}, "n") == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet", "folder"])
def test_readers_stream(tmp_path: Path, name: str) -> None:
    """18 MB of text are read in less than 5 MB."""
    rows = [{"_id": str(number), "text": string.ascii_letters * 8} for number in range(44_000)]
    {**WRITERS, "folder": write_folder}[name](tmp_path / name, rows)
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_records(tmp_path / name))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == len(rows)
    assert peak < 5e6
