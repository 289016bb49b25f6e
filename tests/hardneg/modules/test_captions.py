"""A small CLIP on diagrams: pools of both directions, what is made for each, evaluation, and that it learns."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from datamodules import DiagramsData
from datamodules.captions import Captioned, CaptionsDataBase
from datamodules.diagrams import COLOURS, RELATIONS, SHAPES
from hardneg.encoders import ImageEncoder
from hardneg.encoders.base import Encoder
from hardneg.encoders.images import ImageBackbone
from hardneg.losses import InfoNCE
from hardneg.modules import CaptionsModule
from hardneg.modules.captions import best_is_true
from miners import FamilyBatches, GeneratedNegatives, InBatch, Ragged, Store

WORDS = ("x", *map(str, range(1, 5)), *COLOURS, *SHAPES, *(word for r in RELATIONS for word in r.split()))
SMALL = {"families": 4, "members": 2, "val_families": 2, "test_families": 2, "negatives": 3, "size": 16}


class Pixels(ImageBackbone):
    """One layer on all pixels."""

    channels, num_features = 3, 32

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 32)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layer(pictures.flatten(1))


class BagOfWords(Encoder):
    """A vector for each word and place."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.layer = nn.Linear(len(WORDS) * 10, dim)

    @property
    def dim(self) -> int:
        return self.layer.out_features

    def forward(self, inputs: list[str], kind: str) -> Tensor:
        found = torch.zeros(len(inputs), 10, len(WORDS))
        for row, text in enumerate(inputs):
            for place, word in enumerate(text.split()[:10]):
                found[row, place, WORDS.index(word)] = 1
        return self.layer(found.flatten(1))

    def embed(self, inputs: list[str], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        with torch.no_grad():
            return self(list(inputs), kind)

    def fingerprint(self, kind: str) -> str:
        return str(float(self.layer.weight.sum()))

    def save_pretrained(self, folder: object) -> None:
        raise NotImplementedError


def module(**options: object) -> CaptionsModule:
    torch.manual_seed(0)
    images = ImageEncoder(Pixels(), dim=16, head="mlp", hidden=32)
    return CaptionsModule(images, BagOfWords(), **options)  # type: ignore[arg-type]


def trained(model: CaptionsModule, data: DiagramsData, steps: int) -> pl.Trainer:
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(model, data)
    return trainer


def sources() -> list[GeneratedNegatives]:
    return [GeneratedNegatives(num_negatives=2), GeneratedNegatives(space="image", num_negatives=3)]


@pytest.mark.parametrize("drawn", ["own", "shared", "none"])
@pytest.mark.parametrize("others", [True, False])
def test_each_direction_has_the_made_negatives_of_its_other_side(drawn: str, others: bool) -> None:
    if drawn == "none" and not others:
        return
    data = DiagramsData(**SMALL, sources=sources(), batch_size=8)  # type: ignore[arg-type]
    model = module(miners=[InBatch(drawn, others)])  # type: ignore[arg-type]
    data.setup("fit")
    (batch,) = data.train_dataloader()
    model.log = model.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    loss = model.training_step(batch, 0)
    loss.backward()
    assert torch.isfinite(loss)
    for pool, each in zip(model.finished, (2, 3), strict=True):
        assert pool.direction in ("image_to_caption", "caption_to_image")
        expected = {"own": each, "shared": 8 * each, "none": 0}[drawn]
        count = pool.count()
        assert int(count.max()) <= expected + 7 * others
        if drawn == "own":
            assert int(count.min()) >= expected - 1 + 6 * others  # a made one may say what another pair says
    for encoder in (model.image_encoder, model.text_encoder):
        assert any(bool(weight.grad.abs().sum() > 0) for weight in encoder.parameters() if weight.grad is not None)


def test_gradient_caching_gives_the_same_gradients() -> None:
    found = []
    for chunk in (None, 3):
        data = DiagramsData(**SMALL, sources=sources(), batch_size=8)  # type: ignore[arg-type]
        model = module(miners=[InBatch("own")], chunk_size=chunk)
        data.setup("fit")
        (batch,) = data.train_dataloader()
        model.log = model.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        model.training_step(batch, 0).backward()
        found.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


def test_it_learns_its_training_pairs_and_families_meet() -> None:
    data = DiagramsData(
        **SMALL,
        sources=sources(),
        batch_size=8,
        batch_miner=FamilyBatches(2),  # type: ignore[arg-type]
    )
    model = module(miners=[InBatch("own")], learning_rate=5e-3, schedule="constant", loss=InfoNCE(0.1))
    trainer = trained(model, data, steps=60)
    measures = model.evaluate("train", data)
    assert measures.means["group"] > 0.8
    assert measures.means["R@1 image to caption"] > 0.8
    trainer.test(model, data, verbose=False)
    assert model.measures is not None
    assert set(model.measures.means) >= {"text", "image", "group", "group of all", "R@1 caption to image"}
    assert len(model.measures.by_query["group"]) == 4
    assert all(0 <= value <= 1 for value in model.measures.means.values())


def test_equal_captions_are_right_for_each_other_and_ties_are_wrong() -> None:
    left = torch.eye(3)
    true = Ragged.from_lists([[0, 1], [0, 1], [2]])
    assert best_is_true(left, left[[1, 0, 2]], true).tolist() == [1, 1, 1]
    assert best_is_true(left, torch.ones(3, 3), Ragged.from_lists([[0], [1], [2]])).tolist() == [0, 0, 0]


class Several(CaptionsDataBase):
    """Two pictures, each with two captions; the last caption says what the first one says."""

    def read_pairs(self) -> Captioned:
        names, captions = ["a", "a", "b", "b"], ["1 x red", "2 x red", "3 x red", "1 x  Red"]
        return Captioned(names, captions, ["train"] * 4, [""] * 4, lambda name: torch.full((3, 16, 16), ord(name)))


class Perfect(CaptionsModule):
    """Each picture and each of its captions have one vector."""

    def embed(self, space: str, ids: Tensor | None = None) -> Store:
        assert ids is not None
        vectors = torch.eye(2)[torch.tensor([0, 0, 1, 1, 0, 1])[ids]]
        vectors[ids == 3] = vectors[ids == 0] = torch.tensor([0.8, 0.6])  # one text: it cannot know of which picture
        return Store(vectors, ids, space)


def test_a_picture_with_several_captions_is_found_by_each() -> None:
    data = Several()
    data.setup("fit")
    torch.manual_seed(0)
    model = Perfect(ImageEncoder(Pixels(), dim=16, head="mlp", hidden=32), BagOfWords())
    found = model.evaluate("train", data).by_query
    assert list(found["R@1 image to caption"].values()) == [1, 1, 1, 1]
    assert list(found["R@1 caption to image"].values()) == [1, 1, 1, 1]


def test_a_true_picture_is_no_negative_of_a_caption() -> None:
    """Both pictures are true of "1 x red"; of the other captions, their own alone is known."""
    data = Several(batch_size=4)
    model = module()
    data.setup("fit")
    (batch,) = data.train_dataloader()
    model.log = model.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    model.training_step(batch, 0)
    true = {0: {4, 5}, 1: {4}, 2: {5}, 3: {4, 5}}
    images, captions = (batch.items[side].ids.tolist() for side in ("image", "caption"))  # type: ignore[union-attr]
    pool = next(pool for pool in model.finished if pool.direction == "caption_to_image")
    for caption, usable in zip(captions, pool.usable.tolist(), strict=True):
        assert not {picture for picture, used in zip(images, usable, strict=True) if used} & true[caption]
    pool = next(pool for pool in model.finished if pool.direction == "image_to_caption")
    for picture, usable in zip(images, pool.usable.tolist(), strict=True):
        used = {caption for caption, used in zip(captions, usable, strict=True) if used}
        assert not any(picture in true[caption] for caption in used)


def test_mistakes() -> None:
    images = ImageEncoder(Pixels(), dim=8, head="mlp")
    with pytest.raises(ValueError, match="pictures have vectors of 8 dims, texts of 16"):
        CaptionsModule(images, BagOfWords())
    with pytest.raises(ValueError, match="wants image_to_caption or caption_to_image, or both"):
        CaptionsModule(images, BagOfWords(8), directions=["query_to_document"])
