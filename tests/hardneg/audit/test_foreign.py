"""Files from anywhere become tables; what they lack is said, and what they say wrongly is refused with its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hardneg.audit.cli import vectors
from hardneg.audit.foreign import Columns, read_foreign, scored_by
from hardneg.encoders import TextEncoder
from hardneg.mining import EmbeddingCache
from miners.offline import mine
from tests.hardneg.audit.test_cli import HOSTILE, hardneg_audit

USUAL = Columns()
# two queries; "the dog" is a positive that the file holds as a negative too, "The  cat" a positive in other letters
LINES: list[dict[str, Any]] = [
    {"anchor": "cat?", "positive": "the cat", "negatives": ["the owl", "The  cat", "the fox"]},
    {"anchor": "cat?", "positive": "the cat lives", "negatives": ["the owl", "the bee"]},
    {"anchor": "dog?", "positive": "the dog", "negatives": ["the dog", "the owl"]},
]


def lists(path: Path, columns: Columns = USUAL) -> dict[str, tuple[list[str], list[str]]]:
    """Query -> (positives, negatives) as texts."""
    mined, inputs = read_foreign(path, columns)
    queries, corpus = inputs.queries_by_name(), inputs.documents_by_name()
    assert queries
    assert corpus
    found: dict[str, tuple[list[str], list[str]]] = {
        queries[row["query_id"]]: ([corpus[one] for one in row["positive_ids"]], [])
        for row in mined.queries.to_pylist()
    }
    for row in mined.table.to_pylist():
        found[queries[row["query_id"]]][1].append(corpus[row["doc_id"]])
    return found


EXPECTED = {
    "cat?": (["the cat", "the cat lives"], ["the owl", "The  cat", "the fox", "the bee"]),
    "dog?": (["the dog"], ["the dog", "the owl"]),
}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(lines), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, lines[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(lines)
    return path


def triplets() -> list[dict[str, Any]]:
    return [line | {"negatives": one} for line in LINES for one in line["negatives"]]


def tuples() -> list[dict[str, Any]]:
    return [
        {"anchor": line["anchor"], "positive": line["positive"]}
        | {f"negative_{slot + 1}": (line["negatives"] + ["", ""])[slot] for slot in range(3)}
        for line in LINES
    ]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_triplets_and_tuples_in_every_format(tmp_path: Path, kind: str) -> None:
    for lines in (triplets(), tuples()):
        assert lists(write(tmp_path / f"a.{kind}", lines)) == EXPECTED


def test_lists_of_negatives_and_columns_of_other_names(tmp_path: Path) -> None:
    assert lists(write(tmp_path / "a.jsonl", LINES)) == EXPECTED
    renamed = [{"q": line["anchor"], "answer": line["positive"], "wrong": line["negatives"]} for line in LINES]
    assert lists(write(tmp_path / "b.parquet", renamed), Columns("q", "answer", ["wrong"])) == EXPECTED


def test_flagembedding_with_and_without_scores(tmp_path: Path) -> None:
    lines = [{"query": line["anchor"], "pos": [line["positive"]], "neg": line["negatives"]} for line in LINES]
    path = write(tmp_path / "a.jsonl", lines)
    assert lists(path) == EXPECTED
    assert read_foreign(path, USUAL)[0].table["score"].null_count == 6
    for line in lines:
        line |= {"pos_scores": [0.5], "neg_scores": [0.25 * (at + 1) for at in range(len(line["neg"]))]}
    lines[1]["pos_scores"] = [0.125]
    table = read_foreign(write(path, lines), USUAL)[0].table
    assert table["score"].to_pylist() == [0.25, 0.5, 0.75, 0.5, 0.25, 0.5]  # the first line that has a pair counts
    assert table["positive_score"].to_pylist() == [0.125] * 4 + [0.5] * 2  # the lowest positive's


def test_tevatron_and_what_our_own_export_writes(tmp_path: Path) -> None:
    def passage(text: str) -> dict[str, str]:
        return {"docid": "7", "title": text.split()[0], "text": text.removeprefix(text.split()[0] + " ")}

    lines = [
        {
            "query_id": str(row),
            "query": line["anchor"],
            "positive_passages": [passage(line["positive"])],
            "negative_passages": [passage(text) for text in line["negatives"]],
        }
        for row, line in enumerate(LINES)
    ]
    assert lists(write(tmp_path / "a.jsonl", lines)) == EXPECTED
    vectors = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    texts = [f"text {row}" for row in range(6)]
    mined = mine(vectors[:2], vectors, [[0], [1, 2]], num_negatives=2)
    ids = mined.table["doc_id"].to_pylist()
    for layout in ("tevatron", "flagembedding"):
        mined.to_jsonl(tmp_path / "b.jsonl", layout, queries=["one?", "two?"], corpus=texts)
        assert lists(tmp_path / "b.jsonl") == {
            "one?": (["text 0"], [texts[one] for one in ids[:2]]),
            "two?": (["text 1", "text 2"], [texts[one] for one in ids[2:]]),
        }


def test_the_audit_counts_what_the_file_gets_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = write(tmp_path / "a.csv", triplets()), tmp_path / "a.json"
    assert hardneg_audit(path, "--json", report, "--html", tmp_path / "a.html") == 1
    told = json.loads(report.read_text())
    assert (told["known_positives"], told["equal_contents"], told["hardness"]) == (1, 2, None)
    assert told["use"]["most_used"][0][1:] == [2, "the owl"]
    assert "the file has no scores; --model makes them" in capsys.readouterr().out
    assert "the owl" in (tmp_path / "a.html").read_text()
    assert hardneg_audit(path, "--max-known-positives", 1) == 0


def test_a_model_scores_a_file_and_mines_it_again(tmp_path: Path, tiny_model: Path) -> None:
    lines = [{"anchor": f"{one} ?", "positive": f"the {one}", "negative": f"the {two}"} for one, two in
             [("cat", "dog"), ("dog", "cow"), ("cow", "owl"), ("owl", "bee"), ("bee", "cat")]]  # fmt: skip
    lines += [line | {"positive": line["positive"] + " lives"} for line in lines]
    path, report = write(tmp_path / "a.csv", lines), tmp_path / "a.json"
    common = ("--cache", tmp_path / "cache", "--json", report, "--model", tiny_model)
    assert hardneg_audit(path, *common, "--guide", tiny_model) == 0
    told = json.loads(report.read_text())
    encoder = TextEncoder(str(tiny_model))
    query, positives, negative = (
        torch.nn.functional.normalize(encoder.embed(texts, "document"), dim=1)
        for texts in (["cat ?"], ["the cat", "the cat lives"], ["the dog"])
    )
    mined, inputs = read_foreign(path, USUAL)
    scored = scored_by(mined, inputs, *vectors(inputs, EmbeddingCache(None), str(tiny_model), "cpu"))
    assert scored.table["score"].to_pylist()[0] == pytest.approx(float(query @ negative.T), abs=1e-6)
    assert scored.table["positive_score"].to_pylist()[0] == pytest.approx(float((query @ positives.T).min()), abs=1e-6)
    assert sum(told["hardness"].values()) == pytest.approx(1)
    assert told["guide"]["hardness"] == told["hardness"]  # the same model
    assert told["guide"]["correlation"] == pytest.approx(1)
    assert "false_negatives" not in told
    with_rate = (*common, "--mined-with", '{"num_negatives": 9, "min_score": -1.0}', "--max-false-negative-rate", 0.9)
    assert hardneg_audit(path, *with_rate) == 1  # nine of ten documents, every hidden one among them
    assert json.loads(report.read_text())["false_negatives"]["rate"] == 1.0
    guarded = (*common, "--mined-with", '{"max_score": -0.99}', "--max-false-negative-rate", 0.9)
    assert hardneg_audit(path, *guarded) == 0


def test_hostile_text_of_a_file_is_escaped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"anchor": HOSTILE, "positive": HOSTILE + "1", "negative": HOSTILE + "2"}])
    assert hardneg_audit(path, "--html", tmp_path / "a.html") == 0
    page = (tmp_path / "a.html").read_text()
    assert page.count("&lt;script&gt;") >= 4  # anchor, positive, negative, and the table of use
    assert "<script" not in page
    assert "<img" not in page


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"q": "a", "p": "b"}], r"a\.jsonl, line 1: has the columns q, p\. Wanted: anchor, positive and negative"),
        ([{"anchor": "a", "positive": "b"}], "has the columns anchor, positive. Wanted"),
        ([{"anchor": "a", "positive": "b", "negative": "c"}, {"anchor": " ", "positive": "b", "negative": "c"}],
         "line 2: has an empty anchor"),
        ([{"anchor": "a", "positive": "", "negative": "c"}], "line 1: has no positive"),
        ([{"anchor": "a", "positive": "b", "negative": 3}], "line 1: field 'negative' must be text, got 3"),
        ([{"anchor": "a", "positive": "b", "negative": ""}], "no line has a negative"),
        ([{"query": "a", "pos": "b", "neg": ["c"]}], "field 'pos' must be a list of texts, got str"),
        ([{"query": "a", "pos": ["b"], "neg": ["c"], "neg_scores": [1, 2]}], "'neg_scores' must hold one number"),
        ([{"query": "a", "positive_passages": ["b"], "negative_passages": []}], "must hold objects with a text"),
        ([{"query": "a", "positive_passages": [{"docid": "1"}]}], "has no field 'text'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, lines: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_foreign(write(tmp_path / "a.jsonl", lines), USUAL)


def test_options_that_do_not_go_together(tmp_path: Path, tiny_model: Path) -> None:
    path = write(tmp_path / "a.csv", triplets())
    mined = mine(torch.eye(3)[:1], torch.eye(3), [[0]], num_negatives=1, out=tmp_path / "ours.parquet")
    assert len(mined) == 1
    for options, message in [
        ((path, "--folder", tmp_path), "brings its own texts; leave --folder out"),
        ((path, "--max-false-negative-rate", 0.1), "does not say how it was mined: give --model and --mined-with"),
        ((path, "--mined-with", "{}"), "--mined-with needs --model"),
        ((path, "--anchor", "query"), "has no field 'query'"),
        ((tmp_path / "ours.parquet", "--anchor", "query"), "says itself how it was mined"),
    ]:
        with pytest.raises(ValueError, match=message):
            hardneg_audit(*options)
    options = (path, "--model", tiny_model, "--cache", tmp_path / "cache", "--mined-with", '{"depth": 3}')
    with pytest.raises(ValueError, match="--mined-with: `hardneg mine` has no option 'depth'"):
        hardneg_audit(*options)
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="not a parquet file that can be read"):
        hardneg_audit(tmp_path / "b.parquet")
