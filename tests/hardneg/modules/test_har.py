"""The activity family: two modalities or two views, every miner, both directions, whole fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import miners
from datamodules import HARData
from datamodules.augmentations import Jitter, Scaling
from hardneg.callbacks import RefreshNegatives
from hardneg.encoders import InertialConvolutions, SignalEncoder, SkeletonCooccurrence
from hardneg.losses import InfoNCE
from hardneg.modules import HARModule
from hardneg.modules.activity_classifier import fit_classifier, predict_classes
from miners import (
    NGAME,
    Debiased,
    HardnessConcentration,
    InBatch,
    MemoryQueue,
    PoolMiner,
    Ragged,
    SelfBlocks,
    StaticNegatives,
)
from miners.testing import cost
from tests.recordings import write_packed
from tests.test_matrix import POOL_MINERS, build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_packed(tmp_path / "set")


def backbones(names: Sequence[str]) -> dict[str, Any]:
    kinds = {
        "inertial": InertialConvolutions(6, widths=(8, 8, 8)),
        "skeleton": SkeletonCooccurrence(5, widths=(8, 8, 8, 8, 8, 8)),
    }
    return {name: kinds[name] for name in names}


BOTH = ("inertial", "skeleton")


def module(names: Sequence[str] = BOTH, chain: Sequence[PoolMiner] | None = None, **options: Any) -> HARModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = SignalEncoder(backbones(names), dim=8, hidden=8)
    augmentations = {name: [Jitter(0.1), Scaling(0.1)] for name in names}
    options = {"augmentations": augmentations, "loss": InfoNCE(0.2), "warmup_share": 0.0, "seed": 3} | options
    return HARModule(encoder, miners=chain, **options)


def data(folder: Path, names: Sequence[str] = BOTH, **options: Any) -> HARData:
    options = {"steps": 20, "batch_size": 6, "modalities": names, "seed": 3} | options
    out = HARData(str(folder), **options)
    out.setup("fit")
    return out


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **({"max_epochs": 1} | options),
    )


def step(family: HARModule, at: HARData) -> torch.Tensor:
    """One training step outside a trainer."""
    family.encoder.measure({space: at.statistics(space) for space in at.spaces})
    family.log = family.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    batch = next(iter(at.train_dataloader()))
    torch.manual_seed(0)
    family._trainer = None
    sides = family.encode(batch)
    pools = family.pools(sides, batch, miners.StepContext(rows=len(batch)))
    total = torch.zeros(())
    for pool in pools:
        for miner in family.chain_of(pool.direction):
            pool = miner(pool)
        total = total + cost(pool).mean() / len(pools)
    return total


def test_two_modalities_are_contrasted_both_ways(folder: Path) -> None:
    family, at = module(), data(folder)
    family.eval()  # no augmentation
    batch = next(iter(at.train_dataloader()))
    vectors = {
        space: torch.nn.functional.normalize(family.encoder(batch.inputs[space], space), dim=1) for space in BOTH
    }
    logits = vectors["inertial"] @ vectors["skeleton"].T / 0.2
    expected = [torch.nn.functional.cross_entropy(x, torch.arange(6)) for x in (logits, logits.T)]
    sides = family.encode(batch)
    pools = family.pools(sides, batch, miners.StepContext(rows=6))
    assert [pool.direction for pool in pools] == ["inertial_to_skeleton", "skeleton_to_inertial"]
    for pool, value in zip(pools, expected, strict=True):
        torch.testing.assert_close(cost(InBatch()(pool)).mean(), value)


def test_one_modality_is_two_views_with_2b_minus_2_negatives(folder: Path) -> None:
    family, at = module(("inertial",), [InBatch(), SelfBlocks(positives=False)]), data(folder, ("inertial",))
    batch = next(iter(at.train_dataloader()))
    sides = family.encode(batch)
    assert list(sides) == ["inertial", "inertial again"]
    first, second = (sides[name].embeddings for name in sides)
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)
    for pool in family.pools(sides, batch, miners.StepContext(rows=6)):
        for miner in family.chain_of(pool.direction):
            pool = miner(pool)
        assert pool.count().tolist() == [10] * 6
    assert "one_space" in family.provides


def test_windows_of_one_recording_are_no_negatives_unless_asked(folder: Path) -> None:
    counts = {}
    for mask in ("window", "recording", "subject"):
        at = data(folder, window=20, hop=10, batch_size=256, mask=mask)
        family, batch = module(), next(iter(at.train_dataloader()))
        (pool, _) = family.pools(family.encode(batch), batch, miners.StepContext(rows=len(batch)))
        counts[mask] = int(InBatch()(pool).count().sum())
        ids = batch.items["inertial"].ids
        assert ids is not None
        group = torch.arange(len(ids)) if mask == "window" else at.group[ids]
        assert counts[mask] == int((group[:, None] != group[None]).sum())
    assert counts["window"] > counts["recording"] > counts["subject"] > 0


def test_drawn_windows_serve_the_direction_of_their_modality(folder: Path) -> None:
    lists = Ragged.from_lists([[(row + 3) % 12] for row in range(12)])
    at, family = data(folder, sources=[StaticNegatives(lists)], mask="window"), module()
    batch = next(iter(at.train_dataloader()))
    for pool in family.pools(family.encode(batch), batch, miners.StepContext(rows=6)):
        blocks = InBatch()(pool).negatives
        assert [block.origin for block in blocks] == ["in_batch", "mined"]
        assert {block.items.space for block in blocks} == {pool.direction.split("_to_")[1]}


@pytest.mark.parametrize("kind", POOL_MINERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("names", [BOTH, ("inertial",)], ids=["two", "one"])
def test_every_pool_miner_works_or_says_what_it_needs(
    kind: type[PoolMiner], names: Sequence[str], folder: Path
) -> None:
    chain = [build(kind)] if kind is InBatch else [InBatch(), build(kind, dim=8)]
    if not chain[-1].needs <= module(names).provides | {word for miner in chain[:-1] for word in miner.provides}:
        with pytest.raises(ValueError, match="needs"):
            module(names, chain)
        return
    family = module(names, chain)
    loss = step(family, data(folder, names))
    loss.backward()
    gradients = [weight.grad for weight in family.encoder.parameters() if weight.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert any((gradient != 0).any() for gradient in gradients)


def test_a_whole_fit_learns_and_its_measures_come_out(folder: Path, tmp_path: Path) -> None:
    chain = [InBatch(), MemoryQueue(12), HardnessConcentration(0.5), Debiased(0.05)]
    family, at = module(chain=chain, learning_rate=3e-3), data(folder)
    losses: list[float] = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    fit = trainer(tmp_path, max_epochs=25, check_val_every_n_epoch=25, callbacks=[Losses()])
    fit.fit(family, datamodule=at)
    assert sum(losses[-5:]) < 0.8 * sum(losses[5:10])  # the queue is full from the third step on
    names = {"accuracy", "macro-F1", "kNN", "accuracy inertial", "macro-F1 skeleton"}
    assert {f"val/{name}" for name in names} <= set(fit.callback_metrics)
    (result,) = fit.test(family, at, verbose=False)
    assert result["test/accuracy"] >= 0.5  # three rhythms: chance is 0.33
    measures = family.measures
    assert measures is not None
    assert len(measures.truth) == 6
    assert float((measures.truth == measures.predicted).double().mean()) == measures.means["accuracy"]
    # predictions as stores
    for space, batches in zip(BOTH, fit.predict(family, at), strict=True):  # type: ignore[arg-type]
        assert sum(len(items) for items in batches) == len(at.windows)
        assert batches[0].space == space


def test_batches_by_current_embeddings(folder: Path, tmp_path: Path) -> None:
    at = data(folder, batch_miner=NGAME(cluster_size=2, space="inertial"))
    refresh = RefreshNegatives(every_n_epochs=1, spaces=["inertial"])
    trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[refresh]).fit(module(), datamodule=at)
    assert refresh.refreshes == 2


def test_the_same_seed_trains_the_same(folder: Path, tmp_path: Path) -> None:
    weights = []
    for _ in range(2):
        family = module()
        trainer(tmp_path, limit_val_batches=0).fit(family, datamodule=data(folder))
        weights.append(torch.cat([weight.detach().flatten() for weight in family.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("frozen", [True, False])
def test_classifiers_learn_on_frozen_and_on_trained_encoders(frozen: bool, folder: Path) -> None:
    at, family = data(folder), module()
    family.encoder.measure({space: at.statistics(space) for space in BOTH})
    before = family.encoder.fingerprint("inertial")
    rows = at.labelled(1.0)
    options: dict[str, Any] = {"frozen": frozen, "epochs": 25, "batch_size": 8, "encoder_learning_rate": 1e-3}
    model = fit_classifier(family.encoder, at, rows, **options)
    assert family.encoder.fingerprint("inertial") == before  # a copy is trained
    assert (model.encoder.fingerprint("inertial") == before) == frozen
    assert (predict_classes(model, at, rows) == at.labels[rows]).double().mean() >= 0.8
    again = fit_classifier(family.encoder, at, rows, **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    alone = fit_classifier(family.encoder, at, rows, modalities=["skeleton"], **(options | {"epochs": 2}))
    assert predict_classes(alone, at, rows).shape == rows.shape


def test_messages(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Set model.init_args.augmentations.inertial"):
        module(("inertial",), augmentations={})
    with pytest.raises(ValueError, match=r"augmentations of \['video'\]"):
        module(augmentations={"video": [Jitter()]})
    with pytest.raises(ValueError, match=r"modalities \['skeleton'\] and the encoder \['inertial'\]"):
        trainer(tmp_path).fit(module(("inertial",)), datamodule=data(folder, ("skeleton",)))


def test_gradient_caching_of_one_modality_encodes_each_chunk_twice_alike(folder: Path, tmp_path: Path) -> None:
    """Not equal to the whole batch, which batch norm sees otherwise, but a fit that repeats itself and learns."""
    losses = []
    for _ in range(2):
        family = module(("inertial",), chunk_size=3)
        fit = trainer(tmp_path, limit_val_batches=0)
        fit.fit(family, datamodule=data(folder, ("inertial",)))
        losses.append(float(fit.callback_metrics["train/loss"]))
    assert losses[0] == losses[1]
