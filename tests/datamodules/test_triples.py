"""Knowledge graphs from files: names become ids, and what is not listed is named with its line."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from datamodules.triples import read_graph

FILES = {
    "entities.jsonl": [{"id": "e2", "name": "cat", "text": "a pet"}, {"id": "e1", "name": "dog"}, {"id": "e3"}],
    "relations.jsonl": [{"id": "likes"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, records in FILES.items():
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    for split, triple in (("train", "e1\tlikes\te2"), ("valid", "e2\tlikes\te3"), ("test", "e3\tlikes\te1")):
        (tmp_path / f"{split}.tsv").write_text(f"head\trelation\ttail\n{triple}\n")
    return tmp_path


def test_reads_names_texts_and_splits(folder: Path) -> None:
    text = (folder / "test.tsv").read_text()
    (folder / "test.tsv").unlink()
    with gzip.open(folder / "test.tsv.gz", "wt") as packed:
        packed.write(text)
    graph = read_graph(folder)
    assert list(graph.entities) == ["e2", "e1", "e3"]
    assert graph.texts == ("cat: a pet", "dog", "")
    assert [graph.triples[split].tolist() for split in ("train", "valid", "test")] == [
        [[1, 0, 0]],
        [[0, 0, 2]],
        [[2, 0, 1]],
    ]


def test_what_is_not_listed_is_named_with_its_line(folder: Path) -> None:
    (folder / "valid.tsv").write_text("head\trelation\ttail\ne2\tlikes\te1\ne2\tlikes\te9\n")
    with pytest.raises(ValueError, match=r"valid\.tsv, line 3: tail 'e9' is not among the entities of entities\.jsonl"):
        read_graph(folder)
    (folder / "valid.tsv").write_text("head\trelation\ttail\ne2\thates\te1\n")
    with pytest.raises(ValueError, match=r"line 2: relation 'hates' is not among the relations"):
        read_graph(folder)
    (folder / "relations.jsonl").write_text('{"id": "likes"}\n{"id": "likes"}\n')
    with pytest.raises(ValueError, match=r"relations\.jsonl, line 2: 'likes' stands among the relations twice"):
        read_graph(folder)
    (folder / "relations.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"relations\.jsonl does not exist"):
        read_graph(folder)


@pytest.mark.slow
@pytest.mark.skipif("HARDNEG_DATA" not in os.environ, reason="wants $HARDNEG_DATA/kg_wn18rr")
def test_the_real_graph() -> None:
    graph = read_graph("$HARDNEG_DATA/kg_wn18rr")
    assert len(graph.entities) == 40943
    assert len(graph.relations) == 11
    assert {split: len(of) for split, of in graph.triples.items()} == {"train": 86835, "valid": 3034, "test": 3134}
