"""The mined table in other trainers' formats, and row by row against sentence-transformers' own miner."""

from __future__ import annotations

import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from miners.offline import (
    AbsoluteMargin,
    MaxScore,
    MinedNegatives,
    MinScore,
    Random,
    RankWindow,
    RelativeMargin,
    Rescore,
    mine,
)
from miners.store import Store
from miners.transaction import Damaged

TEXTS = [f"document {number}" for number in range(120)]
ASKED = [f"query {number}" for number in range(25)]


def gaussian(rows: int, dim: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


class ReadyEmbeddings:
    """A stub of a SentenceTransformer that looks its embeddings up."""

    device = torch.device("cpu")
    model_card_data = SimpleNamespace(base_model=None)

    def __init__(self, queries: dict[str, np.ndarray], corpus: dict[str, np.ndarray]) -> None:
        self.queries, self.corpus = queries, corpus

    def encode_query(self, texts: list[str], **_: object) -> np.ndarray:
        return np.stack([self.queries[text] for text in texts])

    def encode_document(self, texts: list[str], **_: object) -> np.ndarray:
        return np.stack([self.corpus[text] for text in texts])

    def similarity(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(one) @ torch.as_tensor(other).T

    def similarity_pairwise(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (torch.as_tensor(one) * torch.as_tensor(other)).sum(-1)

    def get_embedding_dimension(self) -> int:
        return len(next(iter(self.corpus.values())))


class ReadyScores:
    """A stub of a CrossEncoder that looks its scores up."""

    def __init__(self) -> None:
        table = torch.rand(len(ASKED), len(TEXTS), generator=torch.Generator().manual_seed(9))
        self.scores = {(q, d): table[i, j] for i, q in enumerate(ASKED) for j, d in enumerate(TEXTS)}

    def predict(self, pairs: list[tuple[str, str]], **_: object) -> torch.Tensor:
        return torch.stack([self.scores[tuple(pair)] for pair in pairs])


QUERIES = gaussian(len(ASKED), 12, 0)
CORPUS = gaussian(len(TEXTS), 12, 1)
# one positive of rank about ten, and for every third query a second one
NEAR = (QUERIES @ CORPUS.T).argsort(dim=1, descending=True)
KNOWN = [[int(NEAR[row, 9])] + ([int(NEAR[row, 2])] if row % 3 == 0 else []) for row in range(len(ASKED))]


def theirs(**settings: object) -> list[dict]:
    """Run sentence-transformers' miner on the same embeddings."""
    datasets = pytest.importorskip("datasets")
    util = pytest.importorskip("sentence_transformers.util")
    rows = [(ASKED[query], TEXTS[document]) for query, known in enumerate(KNOWN) for document in known]
    dataset = datasets.Dataset.from_dict({"anchor": [one for one, _ in rows], "positive": [one for _, one in rows]})
    model = ReadyEmbeddings(
        dict(zip(ASKED, QUERIES.numpy(), strict=True)), dict(zip(TEXTS, CORPUS.numpy(), strict=True))
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        mined = util.mine_hard_negatives(dataset, model, corpus=TEXTS, verbose=False, output_scores=True, **settings)
    return mined.to_list()


def ours(format: str, filters: list, num_negatives: int = 3, depth: int = 42, **settings: object) -> list[dict]:
    mined = mine(
        QUERIES,
        CORPUS,
        KNOWN,
        num_negatives=num_negatives,
        search_depth=depth,
        filters=filters,
        ranks="survivors",
        **settings,
    )
    return mined.to_hf(format, queries=ASKED, corpus=TEXTS, scores=True).to_list()


@pytest.mark.parametrize("format", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
@pytest.mark.parametrize(
    ("their", "filters"),
    [
        ({}, [RankWindow(1, 40)]),
        ({"relative_margin": 0.05}, [RelativeMargin(0.05), RankWindow(1, 40)]),
        ({"absolute_margin": 0.1}, [AbsoluteMargin(0.1), RankWindow(1, 40)]),
        ({"max_score": 0.4, "min_score": 0.1}, [MaxScore(0.4), MinScore(0.1), RankWindow(1, 40)]),
        ({"range_min": 5, "relative_margin": 0.02}, [RelativeMargin(0.02), RankWindow(6, 40)]),
        (
            {"absolute_margin": 0.01, "relative_margin": 0.1, "max_score": 0.5, "range_min": 1},
            [AbsoluteMargin(0.01), RelativeMargin(0.1), MaxScore(0.5), RankWindow(2, 40)],
        ),
    ],
    ids=["top", "relative", "absolute", "bounds", "window", "all"],
)
def test_row_by_row_as_sentence_transformers(format: str, their: dict, filters: list) -> None:
    expected = theirs(num_negatives=3, range_max=40, output_format=format, **their)
    rows = ours(format, filters)
    assert len(rows) == len(expected) > 0
    for mined, reference in zip(rows, expected, strict=True):
        for name, value in reference.items():
            assert mined[name] == (pytest.approx(value, abs=1e-6) if name.startswith("score") else value)
        assert mined.keys() == reference.keys()


def test_rescored_as_sentence_transformers_does_with_a_cross_encoder() -> None:
    reranker = ReadyScores()
    expected = theirs(
        num_negatives=3, range_max=40, relative_margin=0.05, output_format="triplet", cross_encoder=reranker
    )
    rows = ours("triplet", [Rescore(reranker.predict, ASKED, TEXTS), RelativeMargin(0.05), RankWindow(1, 40)])
    assert [(row["anchor"], row["positive"], row["negative"]) for row in rows] == [
        (row["anchor"], row["positive"], row["negative"]) for row in expected
    ]


def test_random_draws_come_from_the_same_candidates() -> None:
    expected = theirs(num_negatives=3, range_min=5, range_max=15, sampling_strategy="random", output_format="triplet")
    rows = ours("triplet", [RankWindow(6, 15)], sampling=Random())
    assert len(rows) == len(expected)
    window = ours("triplet", [RankWindow(6, 15)], num_negatives=10)
    allowed = {(row["anchor"], row["negative"]) for row in window}
    assert {(row["anchor"], row["negative"]) for row in rows} <= allowed
    assert {(row["anchor"], row["negative"]) for row in expected} <= allowed


def small() -> MinedNegatives:
    queries = Store(QUERIES[:2], torch.tensor([5, 8]), "query", names=["q5", "q8"])
    corpus = Store(CORPUS, names=TEXTS)
    return mine(queries, corpus, KNOWN[:2], num_negatives=2, search_depth=10)


def test_saved_and_loaded_it_is_the_same(tmp_path) -> None:
    mined = small()
    mined.to_parquet(tmp_path / "mined.parquet")
    back = MinedNegatives.load(tmp_path / "mined.parquet")
    assert back.table.equals(mined.table)
    assert back.queries.equals(mined.queries)
    assert back.metadata == json.loads(json.dumps(mined.metadata))
    (tmp_path / "mined.queries.parquet").unlink()
    with pytest.raises(Damaged, match=r"mined\.queries\.parquet is missing"):
        MinedNegatives.load(tmp_path / "mined.parquet")


def test_files_for_other_trainers(tmp_path) -> None:
    mined = small()
    texts = {name: name.upper() for name in TEXTS}
    asked = {"q5": "first?", "q8": "second?"}
    first = mined.table.slice(0, 2).to_pylist()
    negatives = [row["doc_id"] for row in first]

    mined.to_jsonl(tmp_path / "f.jsonl", "flagembedding", queries=asked, corpus=texts)
    line = json.loads((tmp_path / "f.jsonl").read_text().splitlines()[0])
    assert line["query"] == "first?"
    assert line["pos"] == [TEXTS[one].upper() for one in KNOWN[0]]
    assert line["neg"] == [one.upper() for one in negatives]
    assert line["neg_scores"] == [row["score"] for row in first]
    assert len(line["pos_scores"]) == len(line["pos"])

    mined.to_jsonl(tmp_path / "t.jsonl", "tevatron", queries=asked, corpus=texts)
    line = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[1])
    assert (line["query_id"], line["query"]) == ("q8", "second?")
    assert line["negative_passages"][0].keys() == {"docid", "title", "text"}

    mined.to_jsonl(tmp_path / "n.json", "nemo", queries=asked)
    record = json.loads((tmp_path / "n.json").read_text())
    assert [one["id"] for one in record["data"][0]["neg_doc"]] == negatives
    assert record["data"][0]["question"] == "first?"

    with pytest.raises(ValueError, match="layout='dpr'"):
        mined.to_jsonl(tmp_path / "x", "dpr")
    with pytest.raises(ValueError, match="do not fit the items"):
        mined.to_jsonl(tmp_path / "x", queries={"q5": "only one"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.jsonl", "n.json", "t.jsonl"]


def test_padding_slots_never_reach_a_trainer() -> None:
    pytest.importorskip("datasets")
    mined = mine(QUERIES, CORPUS, KNOWN, num_negatives=4, search_depth=8, filters=[RelativeMargin(0.2)], too_few="pad")
    assert mined.table["doc_id"].null_count > 0
    for format in ("triplet", "n-tuple", "labeled-pair", "labeled-list"):
        assert None not in [value for row in mined.to_hf(format).to_list() for value in row.values()]


def test_summary_and_picture() -> None:
    mined = mine(QUERIES, CORPUS, KNOWN, num_negatives=3, search_depth=30, filters=[RelativeMargin(0.05)])
    text = mined.summary()
    assert f"{len(mined)} negatives of 25 queries (3 asked for each)" in text
    assert f"dropped by relative_margin: {mined.dropped()['relative_margin']:,}" in text
    pytest.importorskip("matplotlib")
    axes = mined.plot().axes[0]
    assert axes.get_xlabel() == "score against the query"


def test_summary_says_how_many_negatives_score_above_the_positive() -> None:
    mined = mine(QUERIES, CORPUS, KNOWN, num_negatives=60, search_depth=70)
    above = [
        n > p for n, p in zip(*(mined.table[name].to_pylist() for name in ("score", "positive_score")), strict=True)
    ]
    assert 0.05 < sum(above) / len(above) < 0.95
    assert f"negatives above their query's lowest positive: {sum(above) / len(above):.0%}" in mined.summary()
    below = mine(QUERIES, CORPUS, KNOWN, num_negatives=8, search_depth=30, filters=[RelativeMargin(0.05)])
    assert "negatives above their query's lowest positive: 0%" in below.summary()


def test_a_query_without_negatives_stays_in_the_report() -> None:
    mined = mine(QUERIES, CORPUS, KNOWN, num_negatives=3, search_depth=10, filters=[MaxScore(-1)])
    assert len(mined) == 0
    assert mined.queries["found"].to_pylist() == [0] * 25
    assert "with none: 25" in mined.summary()
    assert len(mined.to_hf("labeled-list")) == 0


@pytest.mark.slow
def test_the_table_trains_a_sentence_transformer(tmp_path) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    models = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    tokenizer = Tokenizer(
        kinds.WordLevel({"[UNK]": 0, "document": 1, "query": 2} | {str(n): n + 3 for n in range(120)}, "[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = models.SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    mined = mine(QUERIES, CORPUS, KNOWN, num_negatives=2)
    for format in ("triplet", "n-tuple"):
        arguments = models.SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
        )
        data = mined.to_hf(format, queries=ASKED, corpus=TEXTS)
        trainer = models.SentenceTransformerTrainer(model, arguments, data, loss=MultipleNegativesRankingLoss(model))
        assert np.isfinite(trainer.train().training_loss)
