"""Geo-localisation: the published loss, one encoder or two, and a plane that two cameras see from elsewhere."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import GeoData
from datamodules.batch import Batch
from datamodules.geo_files import CVUSA, VIGOR
from hardneg.callbacks import DrawPlaces, RefreshNegatives
from hardneg.encoders import Encoder, ImageBackbone, ImageEncoder, Towers, load_towers
from hardneg.encoders.images import TorchvisionBackbone
from hardneg.losses import InfoNCE
from hardneg.metrics import evaluate_geo
from hardneg.modules import GeoModule
from miners import GeoTable, InBatch, Items, MoCHi, NeighbourBatches, Ragged, SimilarityTable, Store
from tests.geo import write_cvusa, write_vigor


class Given(Encoder):
    """Vectors as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    dim = 2

    def forward(self, inputs: Any, kind: str) -> Tensor:
        return inputs * self.one

    def embed(self, inputs: Sequence[Any], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        return torch.as_tensor(inputs)

    def fingerprint(self, kind: str) -> str:
        return ""

    def save_pretrained(self, folder: str | Path) -> None: ...


class Convolutions(ImageBackbone):
    """Four small convolutions; quick to train."""

    def __init__(self, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.channels, self.width, self.num_features = channels, width, 4 * width * 4
        sizes = [channels, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures).flatten(1)


def encoder(dim: int = 32, width: int = 16) -> ImageEncoder:
    return ImageEncoder(Convolutions(width=width), dim)


def pairs(queries: Tensor, references: Tensor) -> Batch:
    ids = torch.arange(len(queries))
    items = {"query": Items(ids=ids, space="query"), "document": Items(ids=ids, space="document")}
    return Batch({"query": queries, "document": references}, items, Ragged.from_lists([[i] for i in ids.tolist()]), ids)


def loss_of(module: GeoModule, batch: Batch) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody logs without a trainer
        return module.training_step(batch, 0)


@pytest.mark.parametrize(
    ("scale", "smoothing", "loss", "slope"),
    [
        (10.0, 0.0, 0.558971, 0.066945),
        (10.0, 0.1, 0.843416, 0.351390),
        (1 / 0.07, 0.0, 0.612073, 0.238406),
        (1 / 0.07, 0.1, 1.018423, 0.644755),
    ],
)
def test_t1_loss(scale: float, smoothing: float, loss: float, slope: float) -> None:
    one = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]], dtype=torch.float64)
    other = torch.tensor([[0.8, 0.6], [3.0, 4.0], [-0.6, 0.8]], dtype=torch.float64)
    module = GeoModule(Given(), InfoNCE(1 / scale, learn_temperature=True, label_smoothing=smoothing))
    value = loss_of(module, pairs(one, other))
    value.backward()
    assert float(value.detach()) == pytest.approx(loss, abs=2e-6)
    assert float(module.loss.logit_scale.grad) == pytest.approx(slope, abs=2e-6)


def test_the_defaults_are_the_papers() -> None:
    module = GeoModule(Given())
    assert float(module.loss.logit_scale.detach()) == pytest.approx(2.659260, abs=1e-6)
    assert module.loss.label_smoothing == 0.1
    assert module.directions == ("query_to_document", "document_to_query")


def test_semi_positives_are_no_negatives() -> None:
    batch = pairs(torch.eye(3, 2).double(), torch.eye(3, 2).double())
    batch = Batch(batch.inputs, batch.items, Ragged.from_lists([[0, 2], [1], [2]]), batch.rows)
    module = GeoModule(Given())
    loss_of(module, batch)
    forwards, backwards = (pool.usable_of(pool.negatives[0]) for pool in module.finished)
    assert forwards.tolist() == [[False, True, False], [True, False, True], [True, True, False]]
    assert backwards.tolist() == [[False, True, True], [True, False, True], [False, True, False]]


def test_towers_share_nothing(tmp_path: Path) -> None:
    towers = Towers(encoder(), encoder())
    pictures = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    towers(pictures, "query").sum().backward()
    assert all(weight.grad is None for weight in towers.document.parameters())
    assert towers.fingerprint("query") != towers.fingerprint("document")
    with pytest.raises(ValueError, match="one_space"):
        GeoModule(towers, miners=[InBatch(), MoCHi(num_hard=2, num_pairs=1, num_with_anchor=1)])
    with pytest.raises(ValueError, match="Towers of 32 and 16 dims"):
        Towers(encoder(), encoder(16))
    saved = Towers(*(ImageEncoder(TorchvisionBackbone("resnet18", small_stem=True), 8) for _ in range(2)))
    saved.save_pretrained(tmp_path)
    loaded = load_towers(str(tmp_path))
    assert torch.equal(saved.embed(pictures, "document"), loaded.embed(pictures, "document"))
    with pytest.raises(FileNotFoundError, match=r"nowhere/query is no image encoder"):
        load_towers(str(tmp_path / "nowhere"))


def test_convnext_is_a_backbone() -> None:
    """What the published model is; the small one here."""
    convnext = ImageEncoder(TorchvisionBackbone("convnext_tiny"), head="none")
    assert convnext.embed(torch.zeros(1, 3, 32, 48, dtype=torch.uint8), "query").shape == (1, 768)


# ---- two cameras -----------------------------------------------------------------------------------------------------


def camera(texture: Tensor, spots: Tensor, tilt: float, turn: float, height: float, side: int = 32) -> Tensor:
    """Pictures (n, C, side, side) uint8 of a plane with a texture, by pinhole cameras that look at ``spots`` (n, 2).

    Args:
        texture: (C, H, W) in [0, 1]; the plane is [-1, 1] x [-1, 1].
        tilt: of the camera's axis against the vertical, in degrees.
        turn: about the vertical, in degrees.
        height: above the plane.
    """
    a, b = math.radians(tilt), math.radians(turn)
    right = torch.tensor([math.cos(b), math.sin(b), 0.0])
    ahead = torch.tensor([-math.sin(b), math.cos(b), 0.0])
    axis = math.sin(a) * ahead + torch.tensor([0.0, 0.0, -math.cos(a)])
    down = torch.linalg.cross(axis, right)
    at = torch.linspace(-0.5, 0.5, side)
    rays = axis + at[None, :, None] * right + at[:, None, None] * down  # (side, side, 3)
    eyes = F.pad(spots, (0, 1)) - height / math.cos(a) * axis  # (n, 3), so that the axis meets the plane in the spot
    steps = -eyes[:, None, None, 2] / rays[None, :, :, 2]
    seen = eyes[:, None, None, :2] + steps[..., None] * rays[None, :, :, :2]  # (n, side, side, 2)
    pictures = F.grid_sample(
        texture.expand(len(spots), -1, -1, -1), seen, align_corners=False, padding_mode="reflection"
    )
    return (255 * pictures).round().to(torch.uint8)


def test_two_cameras_over_one_plane() -> None:
    """Straight down, and tilted by 40 degrees from elsewhere: trained in one half of the plane, tested in the other."""
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 40, 40)
    texture = F.interpolate(coarse, (640, 640), mode="bicubic").clamp(0, 1)[0]

    def views(side: float) -> tuple[Tensor, Tensor]:
        """32 spots of one half of the plane, from the sky and from the street."""
        spots = torch.rand(32, 2) * 1.6 - 0.8
        spots[:, 0] = side * (spots[:, 0].abs() + 0.1)
        return camera(texture, spots, 0, 0, 0.25), camera(texture, spots, 40, 25, 0.2)

    sky, street = views(1)
    same = (sky.float() - street.float()).abs().mean() / (sky.float() - sky.roll(1, 0).float()).abs().mean()
    assert float(same) > 0.5  # a real change of view: pixels alone say little
    module = GeoModule(Towers(encoder(), encoder()), learning_rate=3e-3)
    optimiser = torch.optim.AdamW(module.parameters(), 3e-3)

    def recall() -> float:
        module.eval()
        with torch.no_grad():
            found = F.normalize(module.encoder(street, "query")), F.normalize(module.encoder(sky, "document"))
        module.train()
        right = Ragged.from_lists([[i] for i in range(32)])
        return evaluate_geo(found[0], [str(i) for i in range(32)], Store(found[1]), right).means["R@1"]

    before = recall()
    for _ in range(60):
        trained = views(-1)
        module.batches_trained += 1  # seeds the step
        optimiser.zero_grad()
        loss_of(module, pairs(trained[1], trained[0])).backward()
        optimiser.step()
    assert before < 0.25
    assert recall() > 0.5  # chance: 1 / 32


# ---- a fit -----------------------------------------------------------------------------------------------------------


def fit(data: GeoData, module: GeoModule, folder: Path, **options: Any) -> pl.Trainer:
    callbacks = [DrawPlaces(3), RefreshNegatives(1, start_epoch=1, spaces=["query", "document"])]
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(module, data)
    return trainer


def test_a_fit_by_place_and_by_similarity(tmp_path: Path) -> None:
    folder = write_cvusa(tmp_path, train=24, val=6)
    tables = [GeoTable(), SimilarityTable(1, 1)]
    data = GeoData(
        CVUSA(str(folder)), CVUSA(str(folder), "val"), size=(16, 32), reference_size=16, batch_size=8,
        batch_miner=NeighbourBatches(tables), drop_last=True,
    )  # fmt: skip
    module = GeoModule(encoder(width=4))
    fit(data, module, tmp_path, max_epochs=3)
    assert tables[1].made_at == 2
    assert tables[1].near.shape == (24, 8)
    assert {"R@1", "R@5", "AP", "error_m", "median_error_m"} <= set(module.measures.means)
    assert (module.measures.references, module.measures.distractors) == (6, 0)
    assert (tmp_path / "retrieved.svg").read_text().count("<image") == 3 * 7
    assert "metres to the first reference" in (tmp_path / "errors.svg").read_text()


def test_distractors_and_hit_rate_of_a_fit(tmp_path: Path) -> None:
    folder = write_vigor(tmp_path)
    data = GeoData(VIGOR(str(folder)), VIGOR(str(folder), "test"), size=16, batch_size=8)
    module = GeoModule(encoder(width=4))
    fit(data, module, tmp_path, max_epochs=1)
    assert {"hit_rate", "R@10"} <= set(module.measures.means)
    assert (module.measures.references, module.measures.distractors) == (32, 16)
    assert module.measures.means["hit_rate"] >= module.measures.means["R@1"]
