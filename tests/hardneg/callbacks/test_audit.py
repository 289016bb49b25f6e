"""The audit of a training: the numbers of `hardneg audit`, at the right moments, and nothing else changes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.nn.functional import normalize

from datamodules import RetrievalData
from hardneg.audit.measure import audit, came_back, hide
from hardneg.callbacks import AuditNegatives
from hardneg.callbacks.audit import flat
from hardneg.modules import RetrievalModule
from miners import Ragged, StaticNegatives, Store
from miners.draws import generator_for
from miners.offline import MaxScore, RankWindow, mine
from tests.distributed.tiny import TinyEncoder
from tests.hardneg.modules.runs import write_data


def curves(folder: Path) -> dict[str, list[float]]:
    rows = list(csv.DictReader((folder / "version_0" / "metrics.csv").open()))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def train(folder: Path, *callbacks: pl.Callback, sources: Any = (), epochs: int = 2, **module: Any) -> RetrievalModule:
    """Fifty queries, seventy documents, batches of ten."""
    data = folder / "beir"
    if not data.exists():
        write_data(data)
    trained = RetrievalModule(TinyEncoder(), learning_rate=0.05, schedule="constant", **module)
    pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=CSVLogger(folder, name=None),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
        default_root_dir=folder,
    ).fit(trained, RetrievalData(str(data), batch_size=10, sources=sources))
    return trained


def data_in(folder: Path) -> RetrievalData:
    data = RetrievalData(str(folder / "beir"), batch_size=10)
    data.setup("fit")
    return data


class Recorded(AuditNegatives):
    """Keeps the vectors that the last audit saw.

    A text's vector depends by rounding on the batch it was encoded in, so that near-ties of vectors encoded once more
    may change places: counts are compared over the same vectors.
    """

    def measure(self, queries: Store, corpus: Store, *rest: Any) -> dict[str, Any]:
        self.queries_seen, self.corpus_seen = queries, corpus
        return super().measure(queries, corpus, *rest)


def test_it_logs_what_an_audit_of_the_same_table_says(tmp_path: Path) -> None:
    callback = Recorded(num_negatives=20, filters=[RankWindow(2, 40)], queries=30)
    module = train(tmp_path, callback)
    data = data_in(tmp_path)
    rows = torch.randperm(50, generator=generator_for(0))[:30].sort().values
    known, content = data.table.positives.select(rows), data.corpus_texts.content
    asked, corpus = callback.queries_seen, callback.corpus_seen
    assert torch.equal(asked.ids, data.table.anchors[rows])
    assert torch.equal(corpus.ids, torch.arange(len(data.corpus_texts)))
    for seen, texts, kind in ((asked, data.query_texts, "query"), (corpus, data.corpus_texts, "document")):
        again = normalize(module.encoder.embed([texts[one] for one in seen.ids.tolist()], kind), dim=1)
        assert torch.allclose(seen.vectors, again, atol=1e-5)
    how: dict[str, Any] = {"num_negatives": 20, "filters": [RankWindow(2, 40)]}
    expected = audit(mine(asked, corpus, known, **how), dict(enumerate(content.tolist())))
    found = dict(callback.report)
    assert found["negatives"] == 600
    assert {name: found[name] for name in expected} == expected
    left, query, document = hide(known, content, 0.1, 0)
    again = mine(asked, corpus, left, **how)
    rate = came_back(again, list(zip(asked.ids[query].tolist(), document.tolist(), strict=True)), 0)
    assert rate["passed"] >= 1
    assert found["false_negatives"] == rate
    logged = curves(tmp_path)
    assert len(logged["audit/beats_the_positive"]) == 2  # two epochs
    for name, value in flat(callback.report).items():
        assert logged[f"audit/{name}"][-1] == pytest.approx(value, abs=1e-6)
    assert {"audit/false_negative_rate_low", "audit/false_negative_rate_high", "audit/known_positives"} <= logged.keys()


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    with_audit = train(tmp_path / "with", AuditNegatives(every_n_steps=2)).state_dict()
    without = train(tmp_path / "without").state_dict()
    assert all(torch.equal(with_audit[name], without[name]) for name in without)


def test_by_step(tmp_path: Path) -> None:
    train(tmp_path, AuditNegatives(every_n_epochs=None, every_n_steps=4))
    rows = list(csv.DictReader((tmp_path / "version_0" / "metrics.csv").open()))
    told = [int(row["step"]) for row in rows if row["audit/known_positives"]]
    assert told == [4, 8]


def test_the_guide_has_its_own_opinion_under_its_own_name(tmp_path: Path) -> None:
    callback = AuditNegatives()
    train(tmp_path, callback, guide=TinyEncoder(seed=3))
    logged = curves(tmp_path)
    assert logged["audit/guide/beats_the_positive"] != logged["audit/beats_the_positive"]
    assert callback.report["guide"]["correlation"] < 0.999
    same = AuditNegatives()
    module = train(tmp_path / "same", same, guide=TinyEncoder(), allow_same_guide=True, epochs=1)
    assert len(module.guide_stores) == 2
    assert same.report["guide"]["correlation"] > callback.report["guide"]["correlation"]


def test_what_a_source_draws_is_scored_as_the_model_is_now(tmp_path: Path) -> None:
    lists = Ragged.from_lists([[(row + 30) % 70] for row in range(50)])
    callback = Recorded()
    train(tmp_path, callback, sources=[StaticNegatives(lists)])
    data = data_in(tmp_path)
    queries, corpus = callback.queries_seen.rows(data.table.anchors), callback.corpus_seen.vectors
    bands = callback.report["static"]["hardness"]
    assert sum(bands.values()) == pytest.approx(1)
    beats = [
        float(queries[row] @ corpus[negative]) >= min(float(queries[row] @ corpus[one]) for one in positives)
        for row, ([negative], positives) in enumerate(
            zip(lists.to_lists(), data.table.positives.to_lists(), strict=True)
        )
        if negative not in positives
    ]
    assert bands["beats the positive"] == pytest.approx(sum(beats) / len(beats))
    assert curves(tmp_path)["audit/static/beats_the_positive"][-1] == pytest.approx(bands["beats the positive"])


def test_a_training_set_of_single_positives_and_no_negatives(
    fit: Callable[..., pl.Trainer], sample_folder: Path, edit_lines: Any
) -> None:
    edit_lines(
        sample_folder / "qrels" / "train.tsv", lambda lines: [x for x in lines if x[:2] != "q5" and "d6" not in x]
    )
    callback = AuditNegatives(filters=[MaxScore(-1.0)])
    fit(callback, logger=False)
    assert callback.report["negatives"] == 0
    assert callback.report["without_negatives"] == callback.report["queries"] == 5
    assert callback.report["false_negatives"]["rate"] is None
    assert "false_negative_rate" not in flat(callback.report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": None}, "would never audit"),
        ({"every_n_steps": 0}, r"every_n_steps=0\): wants at least 1"),
        ({"queries": 0}, r"queries=0\): wants at least 1"),
        ({"num_negatives": 0}, r"num_negatives=0\): wants at least 1"),
        ({"hidden_share": 1.0}, r"hidden_share=1.0\): a share"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AuditNegatives(**options)
