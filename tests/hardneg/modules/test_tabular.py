"""CLAN's family: pools, scores, few labels, and that it learns what it is made for on a set where that is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from datamodules import TabularData
from hardneg.encoders import RawFeatures, TabularEncoder
from hardneg.losses import PairMargin
from hardneg.metrics import AnomalyMeasures, ClassMeasures
from hardneg.modules import TabularModule
from hardneg.modules.tabular import fit_few_labels, predict_classes
from miners import AugmentedNegatives, ClusterWeights, InBatch, Resample, StepContext
from tests.oracles import clan
from tests.tables import write_flows, write_graph

COLUMNS = 6  # of the flows: four numbers and two protocols


def one_class(folder: Path, **options: Any) -> TabularData:
    given: dict[str, Any] = {"sources": [AugmentedNegatives(Resample(0.3))], "batch_size": 16, "drop_last": True}
    data = TabularData(
        str(folder / "train_20percent.csv.gz"),
        test=str(folder / "test.csv.gz"),
        label="category",
        benign="normal",
        drop=["note"],
        **(given | options),
    )
    data.setup("fit")
    return data


def small(columns: int = COLUMNS, **options: Any) -> TabularModule:
    torch.manual_seed(0)
    return TabularModule(TabularEncoder(columns, dim=8, width=32, blocks=2), **options)


def fit(module: TabularModule, data: TabularData, steps: int) -> pl.Trainer:
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)
    return trainer


def pool_of(module: TabularModule, data: TabularData, **options: Any) -> Any:
    batch = next(iter(data.train_dataloader()))
    sides = module.encode(batch)
    context = StepContext(global_rows=len(batch), rows=len(batch), **options)
    (pool,) = module.pools(sides, batch, context)
    return pool, sides


def test_all_rows_are_positives_and_all_copies_negatives(tmp_path: Path) -> None:
    data, module = one_class(write_flows(tmp_path)), small(loss=PairMargin())
    pool, sides = pool_of(module, data)
    mined = InBatch()(pool)
    assert torch.equal(pool.usable_of(pool.positives), ~torch.eye(16, dtype=torch.bool))
    assert mined.count().tolist() == [16] * 16
    own = InBatch(drawn="own")(pool)
    assert own.count().tolist() == [1] * 16
    total, count = module.loss(mined)
    expected = clan.released(sides["row"].embeddings, sides["drawn"].embeddings, 0.5)
    torch.testing.assert_close(total / count, expected)


def test_a_copy_is_the_positive(tmp_path: Path) -> None:
    data, module = one_class(write_flows(tmp_path)), small(positives="copies")
    pool, sides = pool_of(module, data)
    mined = InBatch()(pool)
    assert mined.count().tolist() == [15] * 16
    expected = torch.cosine_similarity(sides["row"].embeddings, sides["drawn"].embeddings)
    torch.testing.assert_close(mined.scores(mined.positives)[:, 0], expected)


def test_positives_stay_in_the_class_where_classes_are_known(tmp_path: Path) -> None:
    graph = str(write_graph(tmp_path / "graph.npz"))
    data = TabularData(graph, mask_labels=True, batch_size=12, sources=[AugmentedNegatives()])
    data.setup("fit")
    pool, sides = pool_of(small(12), data)
    labels = sides["row"].labels
    usable = pool.usable_of(pool.positives)
    assert torch.equal(usable, (labels[:, None] == labels[None]) & ~torch.eye(12, dtype=torch.bool))


def test_it_learns_to_tell_what_it_never_saw(tmp_path: Path) -> None:
    """Attacks break how bytes follow duration, which no feature alone shows."""
    data = one_class(write_flows(tmp_path, rows=400), batch_size=32)
    module = small(learning_rate=3e-3)
    before = module.evaluate("test", data)
    fit(module, data, 60)
    after = module.evaluate("test", data)
    assert isinstance(before, AnomalyMeasures)
    assert after.means["AUROC"] > max(before.means["AUROC"] + 0.05, 0.8)
    assert set(after.means) >= {"AUROC by class", "AUROC dos", "AUROC probe"}


def test_the_score_is_that_of_unnormalised_vectors(tmp_path: Path) -> None:
    data, module = one_class(write_flows(tmp_path)), small()
    ids = data.ids("test")
    centre = module.encoder.embed(data.features[data.training_rows]).mean(0)
    expected = -torch.cosine_similarity(module.encoder.embed(data.features[ids]), centre[None])
    torch.testing.assert_close(module.anomaly_scores(data, ids), expected)
    raw = TabularModule(RawFeatures(COLUMNS), score="norm")
    torch.testing.assert_close(raw.anomaly_scores(data, ids), data.features[ids].norm(dim=1))
    assert raw.evaluate("val", data).means["AUROC"] > 0


def test_classes_are_probed_and_clusters_refreshed(tmp_path: Path) -> None:
    sources = [AugmentedNegatives(Resample(0.3, "zero"))]
    graph = str(write_graph(tmp_path / "graph.npz"))
    data = TabularData(graph, standardise=False, all_rows=True, sources=sources, batch_size=20)
    data.setup("fit")
    module = small(12, positives="copies", miners=[InBatch(), ClusterWeights([2, 3])])
    module.trainer = fit(module, data, 1)
    (chain,) = module.chains.values()
    chain[1].refresh({"row": module.embed("row")})  # type: ignore[index]
    pool, _ = pool_of(module, data)
    for miner in chain:  # type: ignore[union-attr]
        pool = miner(pool)
    assert int(pool.dropped["one_cluster"]) > 0
    measures = module.evaluate("test", data)
    assert isinstance(measures, ClassMeasures)
    assert measures.means["accuracy"] > 0.5


def test_few_labels(tmp_path: Path) -> None:
    data, encoder = one_class(write_flows(tmp_path, rows=400)), small().encoder
    rows = data.few_labels(100, 0)
    before, how = encoder.fingerprint(), {"epochs": 40, "learning_rate": 3e-3}
    model = fit_few_labels(encoder, data.features[rows], data.labels[rows], len(data.classes), **how)
    assert encoder.fingerprint() == before
    held = data.ids("val")
    right = predict_classes(model, data.features[held]) == data.labels[held]
    assert float(right.double().mean()) > 0.75
    again = fit_few_labels(encoder, data.features[rows], data.labels[rows], len(data.classes), **how)
    torch.testing.assert_close(next(again.parameters()), next(model.parameters()))


def test_few_labels_at_test(tmp_path: Path) -> None:
    data, module = one_class(write_flows(tmp_path)), small(few_labels=[2])
    trainer = fit(module, data, 1)
    (found,) = trainer.test(module, data, verbose=False)
    assert {"test/AUROC", "test/macro-F1 with 2 labels", "test/accuracy with 2 labels"} <= set(found)


def test_messages(tmp_path: Path) -> None:
    data = one_class(write_flows(tmp_path), sources=[])
    with pytest.raises(ValueError, match=r"wants corrupted copies of its rows, and the batch has none. Put"):
        pool_of(small(), data)
    alone = one_class(tmp_path, batch_size=1)
    with pytest.raises(ValueError, match="a batch of one row has no positive"):
        pool_of(small(), alone)
    twice = one_class(tmp_path, sources=[AugmentedNegatives(per_anchor=2)])
    with pytest.raises(ValueError, match="one corrupted copy of each of the 16 rows, and got 32"):
        pool_of(small(positives="copies"), twice)
    for name, value in (("positives", "views"), ("score", "l2"), ("few_labels", [0])):
        with pytest.raises(ValueError, match=rf"TabularModule\({name}="):
            small(**{name: value})
    rows = torch.zeros(3, COLUMNS)
    encoder = small().encoder
    with pytest.raises(ValueError, match="no labelled row"):
        fit_few_labels(encoder, rows[:0], torch.arange(0), 2)
    with pytest.raises(ValueError, match="labels run from 0 to 2, of 2"):
        fit_few_labels(encoder, rows, torch.arange(3), 2)
    with pytest.raises(ValueError, match="row 1 of 3 has a value that is not finite"):
        fit_few_labels(encoder, rows.index_fill(0, torch.tensor([1]), torch.nan), torch.arange(3), 3)
