"""The BEIR layout: corpus.jsonl, queries.jsonl (each may be .gz) and qrels/<split>.tsv, in one folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path

import torch

from datamodules.judgements import Judgements
from datamodules.readers import Fields, Place, expand, id_field, read_records, text_field
from datamodules.samples import sample_folder
from datamodules.texts import Texts

LAYOUT = "A BEIR folder holds corpus.jsonl(.gz), queries.jsonl(.gz) and qrels/<split>.tsv"
HEADER = {"query-id", "corpus-id", "score"}
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def read_corpus(
    folder: Path,
    title: bool = True,
    max_documents: int | None = None,
    only: Mapping[str, Collection[str]] | None = None,
) -> Texts:
    """Read the documents; id = line, text = title and text joined by one space as BEIR does, or the text alone.

    Args:
        folder: of the corpus file.
        title: whether the title counts.
        max_documents: keep so many: every document that some split judges, and a fixed random fill. Ids then count the
            kept lines. None keeps all.
        only: split -> names of the queries whose judgements count there, for ``max_documents``; of other splits all do.

    Raises:
        FileNotFoundError: there is no corpus file.
        ValueError: a line that is no record, a duplicate id, a document without text (file and line are named), or
            more judged documents than ``max_documents``.
    """
    kept = None if max_documents is None else _kept(folder, max_documents, only or {})

    def documents() -> Iterator[tuple[Place, str, str]]:
        for place, fields in read_records(_find(folder, "corpus")):
            if kept is not None and id_field(place, fields, "_id") not in kept:
                continue
            text = text_field(place, fields, "text")
            if title and "title" in fields:
                text = f"{text_field(place, fields, 'title')} {text}".strip()
            yield place, id_field(place, fields, "_id"), text

    return Texts.read(documents(), "document")


def read_queries(folder: Path) -> Texts:
    """Read the queries; id = line.

    Raises:
        FileNotFoundError: there is no queries file.
        ValueError: a line that is no record, a duplicate id, a query without text; file and line are named.
    """
    records = read_records(_find(folder, "queries"))
    return Texts.read(((at, id_field(at, row, "_id"), text_field(at, row, "text")) for at, row in records), "query")


def read_qrels(
    folder: Path, split: str, queries: Texts, corpus: Texts, only: Collection[str] | None = None
) -> Judgements:
    """Read the judgements of a split.

    Args:
        folder: of qrels/<split>.tsv.
        split: name of the file.
        queries, corpus: whose ids the judgements name.
        only: names of the queries whose judgements are read; None reads all.

    Raises:
        FileNotFoundError: the split has no file; the splits that are there are named.
        ValueError: another header, an id that queries or corpus lack, a grade that is no whole number, or a pair
            judged twice and differently; file and line are named.
    """
    seen: dict[tuple[int, int], int] = {}  # keeps the file's order
    for place, row in _judged(folder, split):
        if only is not None and row["query-id"] not in only:
            continue
        query = queries.names.position(row["query-id"])
        document = corpus.names.position(row["corpus-id"])
        if query is None:
            raise ValueError(f"{place}: unknown query id '{row['query-id']}'; the queries file has no such _id.")
        if document is None:
            raise ValueError(f"{place}: unknown document id '{row['corpus-id']}'; the corpus file has no such _id.")
        grade = _grade(place, row["score"])
        if seen.setdefault((query, document), grade) != grade:
            raise ValueError(
                f"{place}: query '{row['query-id']}' and document '{row['corpus-id']}' were judged "
                f"{seen[query, document]} before and {grade} here."
            )
    pairs = torch.tensor(list(seen), dtype=torch.long).reshape(-1, 2)  # (V, 2)
    return Judgements(pairs[:, 0], pairs[:, 1], torch.tensor(list(seen.values()), dtype=torch.long))


def choose_queries(folder: Path, split: str, number: int, min_score: int = 1) -> set[str]:
    """Names of so many queries of a split that have a positive, those whose hashed names are smallest.

    Raises:
        FileNotFoundError: the split has no file; the splits that are there are named.
        ValueError: another header, or a grade that is no whole number.
    """
    names = {row["query-id"] for place, row in _judged(folder, split) if _grade(place, row["score"]) >= min_score}
    return set(sorted(names, key=_lot)[:number])


def open_folder(folder: str | os.PathLike[str]) -> Path:
    """Find a data folder: a path with "~" and environment variables filled in, or "sample:<name>" for a packaged one.

    Raises:
        FileNotFoundError: it is not there, or a variable in its name is not set.
    """
    if os.fspath(folder).startswith("sample:"):
        return sample_folder(os.fspath(folder).removeprefix("sample:"))
    path = expand(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"data folder {path} does not exist. {LAYOUT}; set data.init_args.folder to one.")
    return path


def _judged(folder: Path, split: str) -> Iterator[tuple[Place, Fields]]:
    """The lines of a split's qrels file."""
    path = folder / "qrels" / f"{split}.tsv"
    if not path.exists():
        found = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv"))) or "none"
        raise FileNotFoundError(
            f"{path} does not exist: no judgements for the split '{split}'; splits that are there: {found}. Set the "
            "split's name (train_split, val_split, test_split) to one of them, or val_split and test_split to null."
        )
    for place, row in read_records(path):
        if not row.keys() >= HEADER:
            raise ValueError(
                f"{path}, line 1: wants the header query-id, corpus-id, score (tabs between), got {', '.join(row)}."
            )
        yield place, row


def _kept(folder: Path, max_documents: int, only: Mapping[str, Collection[str]]) -> set[str]:
    """Names of the judged documents of all splits, filled up by those whose hashed names are smallest."""
    judged = {
        row["corpus-id"]
        for file in (folder / "qrels").glob("*.tsv")
        for _, row in read_records(file)
        if file.stem not in only or row["query-id"] in only[file.stem]
    }
    names = {id_field(place, fields, "_id") for place, fields in read_records(_find(folder, "corpus"))}
    judged &= names
    if len(judged) > max_documents:
        raise ValueError(
            f"max_documents={max_documents}: the splits of {folder} judge {len(judged)} documents, and all of them "
            f"must stay. Set data.init_args.max_documents to at least {len(judged)}, or train on fewer queries with "
            "data.init_args.max_queries."
        )
    return judged | set(sorted(names - judged, key=_lot)[: max_documents - len(judged)])


def _lot(name: str) -> tuple[bytes, str]:
    """Where a name stands in a random order: by its hash and not by a generator, so whatever the order of lines."""
    return blake2b(name.encode(), digest_size=8).digest(), name


def _find(folder: Path, stem: str) -> Path:
    for suffix in SUFFIXES:
        if (folder / f"{stem}{suffix}").exists():
            return folder / f"{stem}{suffix}"
    raise FileNotFoundError(f"{folder} has no {stem}{f', {stem}'.join(SUFFIXES)}. {LAYOUT}.")


def _grade(place: Place, score: str) -> int:
    try:
        return int(score)
    except ValueError:
        raise ValueError(f"{place}: score must be a whole number (0 = not relevant), got '{score}'.") from None
