from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.beir import open_folder, read_corpus, read_qrels, read_queries
from datamodules.samples import sample_folder


def test_a_tiny_folder(sample_folder: Path) -> None:
    queries, corpus = read_queries(sample_folder), read_corpus(sample_folder)
    assert (len(queries), queries.names[9], queries[9]) == (10, "q9", "where lives the hen?")
    assert (len(corpus), corpus.names[11], corpus[11]) == (12, "d11", "ape the ape number 11 of the zoo")
    assert read_corpus(sample_folder, title=False)[11] == "the ape number 11 of the zoo"
    judged = read_qrels(sample_folder, "train", queries, corpus)
    assert judged.queries.tolist() == [0, 0, 1, 1, 2, 3, 4, 5]
    assert judged.documents.tolist() == [0, 6, 1, 11, 2, 3, 4, 5]
    assert judged.grades.tolist() == [2, 1, 2, 0, 2, 2, 2, 2]
    assert judged.at_least(2).documents.tolist() == [0, 1, 2, 3, 4, 5]


def test_packed_files_are_the_same(sample_folder: Path) -> None:
    plain = list(read_corpus(sample_folder))
    for stem in ("corpus", "queries"):
        content = (sample_folder / f"{stem}.jsonl").read_bytes()
        (sample_folder / f"{stem}.jsonl.gz").write_bytes(gzip.compress(content))
        (sample_folder / f"{stem}.jsonl").unlink()
    assert list(read_corpus(sample_folder)) == plain
    assert len(read_queries(sample_folder)) == 10


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (
            "corpus.jsonl",
            '{"_id": "d3", "text": "x"}',
            "corpus.jsonl, line 5: duplicate id: document 'd3' was there before",
        ),
        (
            "corpus.jsonl",
            '{"_id": "d", "title": "", "text": " "}',
            "line 5: empty text: document 'd' has nothing to encode",
        ),
        (
            "corpus.jsonl",
            '{"_id": "d", "title": ""}',
            "corpus.jsonl, line 5: has no field 'text'; its fields are _id, title",
        ),
        (
            "corpus.jsonl",
            '{"id": "d", "text": "x"}',
            "corpus.jsonl, line 5: has no field '_id'; its fields are id, text",
        ),
        (
            "queries.jsonl",
            '{"_id": "q", "text": ""}',
            "queries.jsonl, line 5: empty text: query 'q' has nothing to encode",
        ),
        (
            "qrels/train.tsv",
            "q9\tnobody\t1",
            "train.tsv, line 5: unknown document id 'nobody'; the corpus file has no such _id",
        ),
        (
            "qrels/train.tsv",
            "nobody\td1\t1",
            "train.tsv, line 5: unknown query id 'nobody'; the queries file has no such _id",
        ),
        (
            "qrels/train.tsv",
            "q1\td1\tyes",
            "train.tsv, line 5: score must be a whole number (0 = not relevant), got 'yes'",
        ),
        ("qrels/train.tsv", "q0\td0\t0", "line 5: query 'q0' and document 'd0' were judged 2 before and 0 here"),
        ("qrels/train.tsv", "q1\td1", "train.tsv, line 5: has 2 fields, but the header names 3"),
    ],
)
def test_a_bad_line_is_named(sample_folder: Path, edit_lines: Callable, file: str, line: str, message: str) -> None:
    edit_lines(sample_folder / file, lambda lines: [*lines[:4], line])
    with pytest.raises(ValueError, match=re.escape(message)):
        read_qrels(sample_folder, "train", read_queries(sample_folder), read_corpus(sample_folder))


def test_a_qrels_file_without_its_header(sample_folder: Path, edit_lines: Callable) -> None:
    edit_lines(sample_folder / "qrels" / "train.tsv", lambda lines: lines[1:])
    with pytest.raises(
        ValueError, match=r"train\.tsv, line 1: wants the header query-id, corpus-id, score .*got q0, d0, 2"
    ):
        read_qrels(sample_folder, "train", read_queries(sample_folder), read_corpus(sample_folder))


def test_missing_files(sample_folder: Path) -> None:
    queries, corpus = read_queries(sample_folder), read_corpus(sample_folder)
    with pytest.raises(
        FileNotFoundError, match=r"val\.tsv does not exist: .*'val'; splits that are there: dev, test, train"
    ):
        read_qrels(sample_folder, "val", queries, corpus)
    (sample_folder / "corpus.jsonl").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"tiny has no corpus\.jsonl, corpus\.jsonl\.gz, corpus\.parquet\. A BEIR fol"
    ):
        read_corpus(sample_folder)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    assert open_folder("$SOME_DATA") == tmp_path
    with pytest.raises(
        FileNotFoundError, match=r"data folder .*none does not exist\. A BEIR folder holds .*data\.init_args"
    ):
        open_folder(tmp_path / "none")
    assert open_folder("sample:wordnet_senses") == sample_folder("wordnet_senses")
    with pytest.raises(FileNotFoundError, match="no packaged data set 'x'; there is wordnet_senses"):
        open_folder("sample:x")


def test_the_packaged_set_is_whole_and_small() -> None:
    folder = sample_folder("wordnet_senses")
    queries, corpus = read_queries(folder), read_corpus(folder)
    splits = {split: read_qrels(folder, split, queries, corpus) for split in ("train", "dev", "test")}
    assert sum(len(judged.queries.unique()) for judged in splits.values()) == len(queries)
    assert not set(splits["train"].documents.tolist()) & set(splits["test"].documents.tolist())
    assert "WordNet" in (folder / "LICENSE").read_text()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 3_000_000
