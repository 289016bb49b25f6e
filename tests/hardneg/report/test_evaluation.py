from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import RetrievalData
from hardneg.metrics.retrieval import RetrievalMeasures, evaluate_retrieval
from hardneg.report import save_evaluation
from hardneg.report.evaluation import LONGEST_TEXT, read_evaluations
from miners.store import Store


@pytest.fixture
def data(sample_folder: Path) -> RetrievalData:
    data = RetrievalData(str(sample_folder))
    data.setup("test")
    return data


def ranked(data: RetrievalData, split: str, order: list[list[int]]) -> RetrievalMeasures:
    """Measures of rankings that are given: each query scores the documents of its list from 1 down, in steps of 0.1."""
    ids, _ = data.queries(split)
    corpus = Store(torch.eye(12), torch.arange(12), "document")
    queries = torch.full((len(ids), 12), -1.0)
    for row, documents in enumerate(order):
        queries[row, documents] = torch.tensor([1 - 0.1 * place for place in range(len(documents))])
    names = data.names("query")
    return evaluate_retrieval(queries, [names[int(i)] for i in ids], corpus, data.names("document"), data.qrels(split))


def test_what_is_saved_is_what_is_read(tmp_path: Path, data: RetrievalData) -> None:
    measures = ranked(data, "test", [[3, 9, 8, 0, 1, 2], [9, 0, 1, 2, 3]])  # q8: d8 grade 2, d9 grade 1; q9: d9
    file = save_evaluation(tmp_path / "run", "final", measures, data, "test", seconds=12.5, step=40)
    assert file == tmp_path / "run" / "evaluation.json"
    (read,) = read_evaluations(tmp_path / "run")
    assert (read.name, read.split, read.seconds, read.step) == ("final", "test", 12.5, 40)
    assert read.means == pytest.approx(dict(measures.means))
    assert read.query_names == ("q8", "q9")
    assert read.by_query["MRR@10"] == (0.5, 1.0)
    q8, q9 = read.queries
    assert (q8.text, q8.rank, q8.relevant) == ("where lives the fox?", 2, "d9")
    assert [(f.document, f.grade) for f in q8.top] == [("d3", 0), ("d9", 1), ("d8", 2), ("d0", 0), ("d1", 0)]
    assert [f.score for f in q8.top] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6])
    assert (q9.rank, q9.relevant) == (1, "d9")
    assert read.documents["d3"] == "owl the owl number 3 of the zoo"


def test_a_right_document_that_was_not_found_is_the_best_graded(tmp_path: Path, data: RetrievalData) -> None:
    whole = ranked(data, "test", [[3], [9]])
    cut = RetrievalMeasures(whole.means, whole.by_query, whole.scores[:, :1], whole.ids[:, :1])
    save_evaluation(tmp_path, "start", cut, data, "test")
    q8 = read_evaluations(tmp_path)[0].queries[0]
    assert (q8.rank, q8.relevant) == (None, "d8")  # grade 2, not the 1 of d9
    assert "d8" in read_evaluations(tmp_path)[0].documents


def test_one_of_the_same_name_is_replaced_and_others_stay(tmp_path: Path, data: RetrievalData) -> None:
    measures = ranked(data, "dev", [[6], [7]])
    for name, seconds in (("start", None), ("final", 1.0), ("final", 2.0)):
        save_evaluation(tmp_path, name, measures, data, "dev", seconds)
    assert [(each.name, each.seconds) for each in read_evaluations(tmp_path)] == [("start", None), ("final", 2.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json", "tiny"]


def test_texts_of_some_measures_of_all(tmp_path: Path, data: RetrievalData) -> None:
    save_evaluation(tmp_path, "final", ranked(data, "test", [[8], [9]]), data, "test", num_texts=1)
    (read,) = read_evaluations(tmp_path)
    assert [query.name for query in read.queries] == ["q8"]
    assert len(read.by_query["MAP"]) == 2


def test_long_documents_are_cut(tmp_path: Path, data: RetrievalData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "text_of", lambda ids, space: ["x" * 1000] * len(ids))
    save_evaluation(tmp_path, "final", ranked(data, "test", [[8], [9]]), data, "test")
    assert {len(text) for text in read_evaluations(tmp_path)[0].documents.values()} == {LONGEST_TEXT + 2}


def test_measures_of_another_split_are_refused(tmp_path: Path, data: RetrievalData) -> None:
    with pytest.raises(ValueError, match=r"not those of the 2 queries of the split 'dev'.*pass the split that was"):
        save_evaluation(tmp_path, "final", ranked(data, "test", [[8], [9]]), data, "dev")


def test_no_file_is_no_evaluation(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path) == []


def test_half_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"evaluations": [\n')
    with pytest.raises(ValueError, match=r"evaluation.json, line 2: no JSON .*evaluate again"):
        read_evaluations(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": None}, "lacks 'split'"),
        ({"by_query": {"MRR@10": [1.0]}}, "1 values of MRR@10, 2 queries"),
        ({"documents": {}}, "no text of document 'right' of query 'q0'"),
        ({"means": {"MRR@10": "high"}}, "could not convert string to float: 'high'"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(
    tmp_path: Path, make_evaluation: Callable[..., dict[str, Any]], change: dict[str, Any], words: str
) -> None:
    record = make_evaluation("start", [1, 2]) | change
    if change == {"split": None}:
        del record["split"]
    (tmp_path / "evaluation.json").write_text(json.dumps({"evaluations": [record]}))
    with pytest.raises(ValueError, match="save_evaluation writes it") as error:
        read_evaluations(tmp_path)
    assert words in str(error.value)
