"""The face module: its pool is the published loss, and it learns whom it has never seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from datamodules import Batch, FacesData
from datamodules.faces import FaceTest
from hardneg.callbacks import DrawFaces
from hardneg.encoders import ImageEncoder, IRResNet, load_images
from hardneg.modules import FaceModule
from hardneg.modules.face import mirrored, shifted
from miners import (
    UNPG,
    AdaFace,
    ArcFace,
    CosFace,
    InBatch,
    Items,
    MagFace,
    MemoryQueue,
    Ragged,
    SelfBlocks,
    StepContext,
)
from tests.faces import write_bin, write_table
from tests.oracles.unpg import wide_loss


def small(**options: object) -> FaceModule:
    torch.manual_seed(0)
    return FaceModule(ImageEncoder(IRResNet(18, 16, 1, width=4), dim=8), **options)


def batch_of(labels: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (len(labels), 1, 16, 16), generator=generator, dtype=torch.uint8)
    rows = torch.arange(len(labels))
    items = Items(ids=rows, content=rows + 100, labels=torch.tensor(labels), space="image")
    return Batch({"image": pictures}, {"image": items}, Ragged(torch.arange(len(labels) + 1), rows), rows)


def loss_of(module: FaceModule, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The chain's loss, vectors and margin targets."""
    (pool,) = module.pools(module.encode(batch), batch, StepContext(rows=len(batch)))
    for miner in module.chain_of("image_to_class"):
        pool = miner(pool)
    total, count = module.loss(pool)
    assert pool.anchors.embeddings is not None
    return total / count, pool.anchors.embeddings, pool.scores(pool.positives)[:, 0]


def test_the_pool_is_the_published_loss() -> None:
    module = small(miners=[CosFace(0.35), InBatch(), UNPG(0.5)], flip=False)
    module.use_classes(5)
    labels = [0, 0, 1, 4, 3, 3]
    lean, vectors, target = loss_of(module, batch_of(labels))
    wide = wide_loss(vectors, torch.tensor(labels), module.centres, target, 1 / 64, 0.5)
    assert float(lean.detach()) == pytest.approx(float(wide.detach()), abs=1e-4)
    plain = (F.normalize(vectors, dim=1) @ F.normalize(module.centres, dim=1).T)[range(6), labels] - 0.35
    torch.testing.assert_close(target, plain, rtol=1e-5, atol=1e-6)


def test_a_face_without_a_name_costs_nothing() -> None:
    module = small(miners=[CosFace(), InBatch()], flip=False).eval()
    module.use_classes(3)
    with_it = loss_of(module, batch_of([0, 1, -1]))[0]
    both = batch_of([0, 1, -1])
    named = Batch(
        {"image": both.inputs["image"][:2]}, {"image": both.items["image"].take(slice(2))}, both.known, both.rows[:2]
    )
    torch.testing.assert_close(with_it, loss_of(module, named)[0])


def test_centres_depend_on_the_seed_alone() -> None:
    one, two, other = small(seed=3), small(seed=3), small(seed=4)
    torch.rand(5)
    for module in (one, two, other):
        module.use_classes(4)
    assert torch.equal(one.centres, two.centres)
    assert not torch.equal(one.centres, other.centres)


def test_augmentations() -> None:
    torch.manual_seed(0)
    pictures = torch.arange(200 * 16, dtype=torch.float32).view(200, 1, 4, 4)
    found = mirrored(pictures)
    same, flipped = (found == pictures).flatten(1).all(1), (found == pictures.flip(-1)).flatten(1).all(1)
    assert bool((same ^ flipped).all())
    assert 60 < int(same.sum()) < 140
    one = torch.zeros(300, 2, 5, 5)
    one[:, 1, 2, 2] = 1
    places = shifted(one, 1)[:, 1].flatten(1).argmax(1)
    assert sorted(places.unique().tolist()) == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert shifted(one, 1)[:, 0].sum() == 0
    edge = torch.arange(3.0).view(1, 1, 1, 3).expand(50, 1, 3, 3)
    assert {tuple(row) for row in shifted(edge, 1)[:, 0, 0].tolist()} == {(0, 0, 1), (0, 1, 2), (1, 2, 2)}


@pytest.mark.parametrize(("fusion", "dim"), [("sum", 8), ("concat", 16), ("none", 8)])
def test_fusion(fusion: str, dim: int) -> None:
    module = small(fusion=fusion).eval()
    pictures = batch_of([0, 1]).inputs["image"]
    found = module.fused(pictures)
    assert found.shape == (2, dim)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    symmetric = fusion == "sum"
    assert torch.allclose(found, module.fused(pictures.flip(-1)), atol=1e-5) == symmetric


def trainer(folder: Path, **options: object) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(
        default_root_dir=folder,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **quiet,
        **options,
    )


def data_of(folder: Path, **options: object) -> FacesData:
    test = FaceTest(where={"split": ["test"]}, pairs=str(folder / "pairs_test.csv"))
    val = FaceTest(where={"split": ["val"]})
    return FacesData(str(folder), {"split": ["train"]}, val, test, size=16, channels=1, batch_size=12, **options)


def test_it_trains_evaluates_and_draws(tmp_path: Path) -> None:
    data = data_of(write_table(tmp_path / "set"))
    module = small(miners=[CosFace(0.2), InBatch(), UNPG()], learning_rate=3e-3, flip=False, fusion="none")
    fit = trainer(tmp_path, max_epochs=6, check_val_every_n_epoch=6, callbacks=[DrawFaces(pairs=2)])
    fit.fit(module, data)
    assert module.centres.shape == (6, 8)
    assert {"val/accuracy", "val/AUC", "train/loss"} <= set(fit.callback_metrics)
    assert (tmp_path / "roc.svg").stat().st_size > 1000
    assert (tmp_path / "hardest_pairs.svg").stat().st_size > 1000
    (found,) = fit.test(module, data, verbose=False)
    assert found["test/AUC"] > 0.9
    assert {"test/accuracy", "test/accuracy_std", "test/rank-1"} <= set(found)
    module.save_pretrained(str(tmp_path / "model"))
    assert load_images(str(tmp_path / "model")).fingerprint("image") == module.encoder.fingerprint("image")
    store = module.embed("image")
    assert len(store) == 24


@pytest.mark.parametrize(
    "margin", [ArcFace(), MagFace(shortest=0.1, longest=5), AdaFace()], ids=lambda m: type(m).__name__
)
def test_margins_train(tmp_path: Path, margin: object) -> None:
    data = data_of(write_table(tmp_path / "set"))
    module = small(miners=[margin, InBatch(), UNPG()])
    before = {name: weight.clone() for name, weight in module.encoder.named_parameters()}
    trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data)
    moved = [name for name, weight in module.encoder.named_parameters() if not torch.equal(weight, before[name])]
    assert len(moved) > len(before) // 2
    if isinstance(margin, AdaFace):
        assert float(module.chain_of("image_to_class")[0].mean) != 20


def test_a_checkpoint_brings_its_centres(tmp_path: Path) -> None:
    data = data_of(write_table(tmp_path / "set"))
    module = small()
    fit = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    fit.fit(module, data)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    again = small(seed=9)
    found = trainer(tmp_path).test(again, data, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True, verbose=False)
    assert torch.equal(again.centres, module.centres)
    assert "test/accuracy" in found[0]


def test_a_bin_set_has_no_gallery(tmp_path: Path) -> None:
    write_bin(tmp_path / "lfw.bin")
    data = FacesData(
        str(write_table(tmp_path / "set")),
        val=FaceTest(str(tmp_path / "lfw.bin")),
        size=16,
        channels=1,
        batch_size=20,
    )
    module = small()
    (found,) = trainer(tmp_path).validate(module, data, verbose=False)
    assert "val/accuracy" in found
    assert not any("rank" in name for name in found)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fusion='mean'"):
        small(fusion="mean")
    with pytest.raises(ValueError, match="shift=-1"):
        small(shift=-1)
    data = FacesData(str(write_table(tmp_path / "set")), val=FaceTest(where={"split": ["val"]}), size=16)
    with pytest.raises(ValueError, match="pictures of 3 channels, the encoder wants 1"):
        trainer(tmp_path).validate(small(), data, verbose=False)


def test_a_queue_of_faces(tmp_path: Path) -> None:
    """Faces have no positives among pictures; a queue holds the anchors, and says so."""
    data = data_of(write_table(tmp_path / "set"))
    module = small(miners=[CosFace(), InBatch(), MemoryQueue(20, side="anchors")])
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(module, data)
    assert len(module.chain_of("image_to_class")[2]) == 20
    for wrong in (MemoryQueue(20), SelfBlocks()):
        with pytest.raises(ValueError, match=r"the pool's sides are \['anchors', 'classes'\]"):
            trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(small(miners=[InBatch(), wrong]), data)
