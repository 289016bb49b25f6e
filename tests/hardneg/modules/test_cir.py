"""Composed queries from stage 1 to stage 2: trained on the batch, then against a bank that nothing encodes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules import CIRRData, TripletsData
from hardneg.callbacks import RefreshNegatives, WriteStores
from hardneg.encoders import ComposedEncoder, ImageBackbone, ImageEncoder, TIRGGate
from hardneg.losses import InfoNCE
from hardneg.modules import CIRModule
from miners import GIST, InBatch, PoolMiner, StaticBank
from miners.store import Store
from tests.composed import edits, write_cirr, write_triplets
from tests.distributed.tiny import TinyEncoder

DIM = 24


class Pixels(ImageBackbone):
    """A picture's own pixels, a quarter of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.num_features, self.asked = 3, 48, 0

    def forward(self, pictures: Tensor) -> Tensor:
        self.asked += len(pictures)
        return F.avg_pool2d(pictures, 4).flatten(1)


def encoder(seed: int = 0) -> ComposedEncoder:
    torch.manual_seed(seed)
    texts = TinyEncoder()
    images = ImageEncoder(Pixels(), DIM, head="mlp", hidden=32)
    return ComposedEncoder(images, texts, TIRGGate(DIM, texts.dim))


def data(folder: Path, **options: Any) -> TripletsData:
    options = {"size": 16, "batch_size": 16, "drop_last": True, "subset_recalls": (1,), **options}
    return TripletsData(str(folder / "pictures"), str(folder), **options)


def trainer(folder: Path, epochs: int = 1, callbacks: Any = None) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=callbacks,
        use_distributed_sampler=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(tmp_path_factory.mktemp("cir") / "set")


@pytest.fixture(scope="module")
def first_stage(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path]:
    """Weights after stage 1, and the store of their pictures."""
    place = tmp_path_factory.mktemp("stage1")
    module = CIRModule(encoder(), InfoNCE(0.1), learning_rate=0.01)
    trainer(place, 8).fit(module, data(folder))
    trainer(place, callbacks=[WriteStores(str(place))]).predict(module, data(folder), return_predictions=False)
    return module.encoder.state_dict(), place / "image"


def second_stage(first: tuple[dict[str, Tensor], Path], miners: list[PoolMiner], **options: Any) -> CIRModule:
    model = encoder()
    model.load_state_dict(first[0])
    frozen = {"target": str(first[1]), "reference": str(first[1])}
    return CIRModule(model, InfoNCE(0.1), miners, learning_rate=0.003, frozen=frozen, **options)


def measured(module: CIRModule, folder: Path, place: Path) -> dict[str, float]:
    check = trainer(place)
    check.limit_val_batches = 1.0
    check.validate(module, data(folder), verbose=False)
    return dict(module.measures.means)


def test_both_stages_learn(folder: Path, first_stage: Any, tmp_path: Path) -> None:
    untrained = measured(CIRModule(encoder()), folder, tmp_path)
    one = second_stage(first_stage, [StaticBank(chunk_size=5)])
    before = measured(one, folder, tmp_path)
    trainer(tmp_path, 8).fit(one, data(folder))
    after = measured(one, folder, tmp_path)
    assert before["R@1"] > untrained["R@1"] + 0.1
    assert after["R@1"] >= before["R@1"]
    assert set(after) == {"R@1", "R@5", "R@10", "R@50", "Rsubset@1"}
    assert after["R@50"] == 1


def test_stage_2_encodes_no_picture_and_moves_only_texts_and_combiner(
    folder: Path, first_stage: Any, tmp_path: Path
) -> None:
    module = second_stage(first_stage, [StaticBank(chunk_size=5)])
    before = {name: value.clone() for name, value in module.encoder.state_dict().items()}
    written = Store.load(first_stage[1]).vectors.clone()  # the memory map would show what was written to it
    trainer(tmp_path, 1).fit(module, data(folder))
    assert module.encoder.images.backbone.asked == 0
    now = module.encoder.state_dict()
    moved = {name.split(".")[0] for name, value in now.items() if not torch.equal(value, before[name])}
    assert moved == {"own_texts", "combiner"}
    assert torch.equal(Store.load(first_stage[1]).vectors, written)
    assert all(torch.equal(store.vectors, written) for store in module.frozen.values())


def test_the_store_is_what_the_combiner_takes(folder: Path, first_stage: Any) -> None:
    """Raw vectors by picture; the loss of a step is that of live encoders in evaluation mode against the same bank."""
    module = second_stage(first_stage, [StaticBank()])
    of = data(folder)
    of.setup("fit")
    of.with_pictures = False
    store = Store.load(first_stage[1])
    assert store.names is not None
    live = module.encoder.eval().embed(of.view(store.ids), "image")
    torch.testing.assert_close(store.vectors, live)
    assert not torch.allclose(live.norm(dim=1), torch.ones(len(live)))
    batch = next(iter(of.train_dataloader()))
    references, targets = batch.inputs["query"]["ids"], batch.inputs["target"]
    bank, queries = F.normalize(live, dim=1), module.encoder.compose(live[references], batch.inputs["query"]["text"])
    wanted = F.cross_entropy(F.normalize(queries, dim=1) @ bank.T / 0.1, targets)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody logs without a trainer
        for miner in module.chain_of("query_to_target"):
            miner.refresh({"image": store})
        torch.testing.assert_close(module.training_step(batch, 0), wanted)


def test_gist_judges_the_bank_with_the_model_of_stage_1(folder: Path, first_stage: Any, tmp_path: Path) -> None:
    guide = encoder()
    guide.load_state_dict(first_stage[0])
    with pytest.raises(ValueError, match="allow_same_guide"):
        second_stage(first_stage, [StaticBank(), GIST()], guide=guide)
    module = second_stage(first_stage, [StaticBank(chunk_size=5), GIST()], guide=guide, allow_same_guide=True)
    fit = trainer(tmp_path, 1)
    fit.fit(module, data(folder))
    assert float(fit.callback_metrics["train/dropped/gist"]) > 0
    store = Store.load(first_stage[1])
    assert guide.images.backbone.asked == len(store)  # each picture once
    torch.testing.assert_close(module.guide_stores["image"].rows(store.ids), store.vectors)
    of = data(folder)
    of.setup("fit")
    references, _, texts = of.triplet_of(torch.arange(len(of.table)))
    queries = guide.eval().compose(store.rows(references), texts)
    torch.testing.assert_close(module.guide_stores["query"].vectors, queries)
    assert not any(name.startswith("guide") for name in module.state_dict())


def test_stage_2_on_the_batch_is_the_ablation(folder: Path, first_stage: Any, tmp_path: Path) -> None:
    module = second_stage(first_stage, [InBatch()])
    trainer(tmp_path, 1).fit(module, data(folder))
    assert module.encoder.images.backbone.asked == 0


def test_queries_can_be_refreshed(folder: Path, tmp_path: Path) -> None:
    module = CIRModule(encoder(), InfoNCE(0.1), learning_rate=0.01)
    refresh = RefreshNegatives(spaces=["query", "image"])
    trainer(tmp_path, 1, [refresh]).fit(module, data(folder))
    assert refresh.refreshes == 1
    assert len(refresh._stores["query"]) == len(edits())


def test_masked_references_are_no_negatives(tmp_path: Path) -> None:
    folder = write_cirr(tmp_path / "cirr")
    counts = []
    for masked in (False, True):
        of = CIRRData(str(folder), size=16, batch_size=16, drop_last=True, mask_reference=masked)
        of.setup("fit")
        store = Store(torch.randn(len(of.names("image")), DIM), space="image")
        model = encoder()
        module = CIRModule(model, miners=[StaticBank()], frozen={"target": store, "reference": store})
        fit = trainer(tmp_path, 1)
        fit.fit(module, of)
        counts.append(float(fit.callback_metrics["train/negatives_per_anchor"]))
    assert counts[0] == pytest.approx(counts[1] + 1)


# ---- errors --------------------------------------------------------------------------------------------------------


def test_frozen_sides_are_both_or_none() -> None:
    store = Store(torch.randn(16, DIM), space="image")
    with pytest.raises(ValueError, match="'target' and 'reference', both or none"):
        CIRModule(encoder(), frozen={"target": store})


def test_a_bank_of_another_width_is_refused() -> None:
    store = Store(torch.randn(16, DIM + 1), space="image")
    with pytest.raises(ValueError, match=r"'target' has vectors of 25 numbers, the encoder of 24.*hardneg predict"):
        CIRModule(encoder(), frozen={"target": store, "reference": store})


def test_a_bank_of_another_data_set_is_refused(folder: Path, tmp_path: Path) -> None:
    few = Store(torch.randn(9, DIM), space="image")
    with pytest.raises(ValueError, match=r"frozen 'target': Store of space 'image' holds no id 9"):
        trainer(tmp_path).fit(CIRModule(encoder(), frozen={"target": few, "reference": few}), data(folder))
    names = [f"{i}.png" for i in range(16)]
    other = Store(torch.randn(16, DIM), space="image", names=names)
    with pytest.raises(ValueError, match=r"frozen 'target': id 0 is '0.png' in the store and 'blue_left.png'"):
        trainer(tmp_path).fit(CIRModule(encoder(), frozen={"target": other, "reference": other}), data(folder))


def test_a_bank_of_other_weights_is_refused(folder: Path, first_stage: Any, tmp_path: Path) -> None:
    module = CIRModule(encoder(2), miners=[StaticBank()], frozen=dict.fromkeys(("target", "reference"), first_stage[1]))
    with pytest.raises(ValueError, match=r"'target' was made by other weights .*hardneg predict"):
        trainer(tmp_path).fit(module, data(folder))


def test_stage_2_is_resumed_against_its_bank(folder: Path, first_stage: Any, tmp_path: Path) -> None:
    """Texts and combiner have moved on; the pictures' key has not."""
    fit = trainer(tmp_path, 1)
    fit.fit(second_stage(first_stage, [StaticBank()]), data(folder))
    fit.save_checkpoint(tmp_path / "one.ckpt")
    resumed = second_stage(first_stage, [StaticBank()])
    trainer(tmp_path, 2).fit(resumed, data(folder), ckpt_path=str(tmp_path / "one.ckpt"))
    assert resumed.batches_trained == 12


def test_a_static_bank_without_frozen_pictures_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"StaticBank needs \['frozen'\]"):
        CIRModule(encoder(), miners=[StaticBank()])


def test_channels_must_agree(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pictures of 1 channels, the encoder wants 3"):
        trainer(tmp_path).fit(CIRModule(encoder()), data(folder, channels=1))
