"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

try:
    from hypothesis import settings
except ImportError:  # tests/gpu run with torch alone
    pass
else:
    # The suite passes or fails for the code, not for the draw: examples are drawn from the test's own text. To look for
    # new ones: pytest --hypothesis-profile=explore. No deadline: a busy machine is no fault.
    settings.register_profile("repeatable", derandomize=True, deadline=None)
    settings.register_profile("explore", derandomize=False, deadline=None)
    settings.load_profile("repeatable")

WORDS = "the cat dog cow owl bee ant elk fox hen eel ape number of zoo where lives"


@pytest.fixture
def sample_folder(tmp_path: Path) -> Path:
    """A tiny retrieval set in the BEIR layout: 12 documents, 6 training queries, 2 of dev and 2 of test.

    Query q<i> is about document d<i>; q0 has a second, less relevant document d6 (grade 1 against 2), q5 asks what q4
    asks in other letters, d7 has the text of d1, and d11 is judged irrelevant for q1.
    """
    return write_beir(tmp_path / "tiny")


@pytest.fixture
def edit_lines() -> Callable[[Path, Callable[[list[str]], list[str]]], None]:
    """Rewrite the lines of a file: how a test breaks one."""

    def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return edit


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A sentence-transformers folder with one vector per word."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["[UNK]", *WORDS.split()])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu").save_pretrained(
        str(tmp_path / "tiny_model")
    )
    return tmp_path / "tiny_model"


def write_beir(folder: Path) -> Path:
    things = ["cat", "dog", "cow", "owl", "bee", "ant", "elk", "cat", "fox", "hen", "eel", "ape"]
    documents = [
        {"_id": f"d{i}", "title": thing, "text": f"the {thing} number {i} of the zoo"} for i, thing in enumerate(things)
    ]
    documents[7] = {**documents[1], "_id": "d7"}
    queries = [{"_id": f"q{i}", "text": f"where lives the {things[i]}?"} for i in range(10)]
    queries[5]["text"] = "WHERE lives  the bee?"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    judged = {
        "train": [(0, 0, 2), (0, 6, 1), (1, 1, 2), (1, 11, 0), (2, 2, 2), (3, 3, 2), (4, 4, 2), (5, 5, 2)],
        "dev": [(6, 6, 1), (7, 7, 1)],
        "test": [(8, 8, 2), (8, 9, 1), (9, 9, 1), (9, 0, 0)],
    }
    for split, rows in judged.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{query}\td{document}\t{grade}" for query, document, grade in rows)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder
