"""Labels by their names in sentences, and overlaps with what is evaluated."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from datamodules import DistantLabelsData
from datamodules.beir import read_corpus, read_qrels, read_queries
from datamodules.readers import read_records
from hardneg.metrics.retrieval import r_precision
from miners import Ragged
from miners.phrases import find_names

REAL = Path(os.environ.get("HARDNEG_DATA", "nowhere")) / "esco_skills"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    labels = ["risk management", "enterprise risk management", "plan", "Java", "c"]
    queries = {
        "own": "about java",
        "dev0": "we plan risk management",
        "dev1": "no label in here",
        "test0": "NO label in  here",
        "test1": "java again",
    }
    (tmp_path / "qrels").mkdir()
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(labels)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"_id": name, "text": text} for name, text in queries.items()]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    judged = {
        "train": [("own", "d0")],
        "dev": [("dev0", "d0"), ("dev1", "d1")],
        "test": [("test0", "d1"), ("test1", "d3")],
    }
    for split, pairs in judged.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{label}\t1" for query, label in pairs)]
        (tmp_path / "qrels" / f"{split}.tsv").write_text("\n".join(lines))
    sentences = [
        ["Java", "and", "enterprise", "risk", "management"],
        "java and Enterprise Risk-Management",  # other punctuation, so another text
        "JAVA  and Enterprise Risk-Management",  # the same text again
        "we plan risk management",  # an evaluation query
        "we plan nothing",
        "java, java and c",
        "",
    ]
    (tmp_path / "sentences.jsonl").write_text("\n".join(json.dumps({"words": text}) for text in sentences))
    return tmp_path


def data_of(folder: Path, **options: object) -> DistantLabelsData:
    data = DistantLabelsData(str(folder), [str(folder / "sentences.jsonl")], "words", **options)  # type: ignore[arg-type]
    data.setup("fit")
    return data


def positives(data: DistantLabelsData) -> dict[str, list[str]]:
    table = data.table
    return {
        data.query_texts[int(anchor)]: [data.corpus_texts[i] for i in own]
        for anchor, own in zip(table.anchors, table.positives.to_lists(), strict=True)
    }


def test_the_longest_name_of_a_sentence_is_its_label(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = positives(data_of(folder))
    assert found == {
        "about java": ["risk management", "Java"],  # its own, and what its text names
        "Java and enterprise risk management": ["enterprise risk management", "Java"],
        "java and Enterprise Risk-Management": ["enterprise risk management", "Java"],
        "java, java and c": ["Java"],  # one letter is no name
    }
    assert "3 sentences are empty, there twice, or a query of the folder; left out" in caplog.text
    assert "1 queries of 'dev' are test queries too; removed from it" in caplog.text


def test_common_names_and_bounds(folder: Path) -> None:
    assert "we plan nothing" in positives(data_of(folder, stop_names=[]))
    bounded = positives(data_of(folder, max_per_label=1))
    assert sum("Java" in labels for labels in bounded.values()) == 1
    assert bounded["about java"][0] == "risk management"
    with pytest.raises(ValueError, match=r"max_per_label=0\): wants at least 1"):
        data_of(folder, max_per_label=0)


def test_validation_queries_that_are_test_queries_are_removed(folder: Path) -> None:
    data = data_of(folder)
    assert data.queries("dev")[1] == ["we plan risk management"]
    assert len(data.queries("test")[0]) == 2


needs_data = pytest.mark.skipif(not REAL.exists(), reason="HARDNEG_DATA does not hold esco_skills")


@needs_data
@pytest.mark.parametrize(
    ("split", "queries", "pairs", "rp5", "mrr"),
    [
        ("test_tech", 338, 581, 0.1431, 0.183),
        ("test_house", 262, 529, 0.1307, 0.168),
        ("test_techwolf", 326, 584, 0.0856, 0.133),
    ],
)
def test_t6_literal_matching_on_the_benchmark(split: str, queries: int, pairs: int, rp5: float, mrr: float) -> None:
    """All names in a sentence, nested ones too, the one of most words first, then from left to right; each once."""
    texts, labels = read_queries(REAL), read_corpus(REAL)
    assert len(labels) == 13896
    judged = read_qrels(REAL, split, texts, labels)
    ids = judged.queries.unique()
    assert (len(ids), len(judged)) == (queries, pairs)
    found = find_names(list(labels), texts.take(ids))
    order = (found.text * 10_000_000 - found.length * 100_000 + found.start).argsort(stable=True)
    lists = Ragged.from_pairs(found.text[order], found.name[order], len(ids)).to_lists()
    ranked = [list(dict.fromkeys(names)) for names in lists]
    gold = Ragged.from_pairs(judged.queries, judged.documents, len(texts)).select(ids)
    assert float(r_precision(Ragged.from_lists(ranked).padded(), gold, 5).mean()) == pytest.approx(rp5, abs=5e-5)
    hits = [[name in own for name in names] for names, own in zip(ranked, gold.to_lists(), strict=True)]
    first = [1 / (1 + row.index(True)) if True in row else 0.0 for row in hits]
    assert sum(first) / len(first) == pytest.approx(mrr, abs=5e-4)


@needs_data
def test_a_perfect_ranking_counted_by_rows() -> None:
    """The benchmark names a skill once per span; tech lacks three rows whose label is not in the list (else 0.9361)."""
    by_query: dict[str, list[int]] = {}
    for _, row in read_records(REAL / "span_annotations.tsv.gz"):
        if row["skill-id"]:
            by_query.setdefault(row["query-id"], []).append(int(row["skill-id"][1:]))
    for name, rows, perfect in (
        ("tech_test", 671, 0.9371),
        ("house_test", 568, 0.9590),
        ("techwolf_test", 588, 0.9969),
    ):
        gold = Ragged.from_lists([of for query, of in by_query.items() if query.startswith(name)])
        assert len(gold.values) == rows
        best = Ragged.from_lists([list(dict.fromkeys(of)) for of in gold.to_lists()]).padded()
        assert float(r_precision(best, gold, 5, "rows").mean()) == pytest.approx(perfect, abs=5e-5)
        assert float(r_precision(best, gold, 5).mean()) == 1.0


@needs_data
def test_sentences_of_tech_validation_that_are_in_its_test_leave_it() -> None:
    """The benchmark's files share nine sentences; eight of them have a gold skill in both."""
    data = DistantLabelsData(str(REAL), val_split="dev_tech", test_split="test_tech")
    data.query_texts, data.corpus_texts = data.read_texts()
    assert len(data.judgements("dev_tech").queries.unique()) == 75 - 8
