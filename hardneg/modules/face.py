"""Faces: each picture against the centres of all identities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.batch import Batch
from hardneg.encoders.images import ImageEncoder
from hardneg.losses import InfoNCE, PoolLoss
from hardneg.metrics.verification import FaceMeasures, evaluate_faces
from hardneg.modules.evaluated import EvaluatedModule
from miners.base import PoolMiner, process_count, process_rank
from miners.draws import generator_for
from miners.in_batch import InBatch
from miners.margins import CosFace
from miners.pool import NOBODY, Block, Items, NegativePool, StepContext
from miners.store import Store

TEMPERATURE = 1 / 64
Fusion = Literal["sum", "concat", "none"]


class FaceModule(EvaluatedModule):
    """Train an encoder and a centre for each identity, so that pictures lie with their own.

    The positive of a picture is the centre of its identity, its negatives are all others. A margin (`CosFace`,
    `ArcFace`, `MagFace`, `AdaFace`) stands in the chain of miners; `UNPG` adds the pairs of the batch. Centres are no
    part of what is saved as the encoder: faces that nobody was trained on are compared with each other.

    Args:
        encoder: of pictures.
        loss: None = InfoNCE at the temperature 1 / 64 (the scale s = 64 of face recognition).
        miners: None = [CosFace(), InBatch()].
        learning_rate, weight_decay, warmup_share, schedule, seed, chunk_size: as in `ContrastiveModule`.
        flip: mirror half of the training pictures; not where left and right matter (characters).
        shift: move training pictures by up to so many pixels each way; what is missing repeats the edge.
        fusion: in evaluation, of the vectors of a picture and of its mirror image: "sum" (insightface's way), "concat"
            (UNPG's), or "none".

    Source:
        Normalised softmax: NormFace, arXiv 1704.06369; margins and UNPG: see the miners.
    """

    provides = frozenset({"embeddings", "sides", "own_positive", "labels", "one_space"})
    directions = ("image_to_class",)

    def __init__(
        self,
        encoder: ImageEncoder,
        loss: PoolLoss | None = None,
        miners: Sequence[PoolMiner] | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 5e-4,
        warmup_share: float = 0.1,
        schedule: Literal["linear", "constant"] = "linear",
        flip: bool = True,
        shift: int = 0,
        fusion: Fusion = "sum",
        seed: int = 0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(
            InfoNCE(TEMPERATURE) if loss is None else loss,
            [CosFace(), InBatch()] if miners is None else miners,
            learning_rate,
            weight_decay,
            warmup_share,
            schedule,
            seed,
            chunk_size,
        )
        if shift < 0:
            raise ValueError(f"FaceModule(shift={shift}): pixels, so at least 0.")
        if fusion not in ("sum", "concat", "none"):
            raise ValueError(f"FaceModule(fusion='{fusion}'): wants 'sum', 'concat' or 'none'.")
        self.encoder = encoder
        self.flip, self.shift, self.fusion = flip, shift, fusion
        self.centres: nn.Parameter | None = None  # (C, d), made when the data's identities are known
        self.measures: FaceMeasures | None = None
        self.use_miners()

    # ---- training ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.data.channels != self.encoder.channels:
            raise ValueError(
                f"the data has pictures of {self.data.channels} channels, the encoder wants {self.encoder.channels}. "
                "Set data.init_args.channels and the backbone's alike."
            )
        if self.centres is None:
            self.use_classes(len(self.data.classes))

    def use_classes(self, number: int) -> None:
        """Make a centre for each of ``number`` identities, drawn from the seed."""
        drawn = torch.randn(number, self.encoder.dim, generator=generator_for(self.seed, 0, 2))
        self.centres = nn.Parameter((0.01 * drawn).to(self.device))

    def encode(self, batch: Batch) -> dict[str, Items]:
        pictures = batch.inputs["image"]
        if self.training and self.flip:
            pictures = mirrored(pictures)
        if self.training and self.shift:
            pictures = shifted(pictures, self.shift)
        return {"image": replace(batch.items["image"], embeddings=self.encoder(pictures, "image"))}

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        assert self.centres is not None, "setup makes the centres"
        faces, names = sides["image"], torch.arange(len(self.centres), device=self.centres.device)
        classes = Items(self.centres, names, labels=names, space="class")
        own = faces.take(context.own)
        labels = own._need("labels")
        named = labels != NOBODY
        at = labels.where(named, 0)
        centre = Items(self.centres[at][:, None], at[:, None], space="class")
        return [
            NegativePool(
                anchors=own,
                positives=Block(centre, "positive", usable=None if bool(named.all()) else named[:, None]),
                temperature=self.loss.temperature,
                direction=self.directions[0],
                sides={"anchors": faces, "classes": classes},
                context=context,
            )
        ]

    def embed_share(self, space: str, encoder: nn.Module | None = None, ids: Tensor | None = None) -> Tensor:
        ids = self._things(space, ids)[process_rank() :: process_count()]
        return (encoder or self.encoder).embed(self.data.view(ids), space)  # type: ignore[operator]

    def _things(self, space: str, ids: Tensor | None) -> Tensor:
        return self.data.training_ids if ids is None else ids

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def fused(self, pictures: Tensor) -> Tensor:
        """(B, d) unit vectors of pictures, and of their mirror images as ``fusion`` says; (B, 2d) for "concat"."""
        vectors = self.encoder(pictures, "image").float()
        if self.fusion != "none":
            mirror = self.encoder(pictures.flip(-1), "image").float()
            vectors = vectors + mirror if self.fusion == "sum" else torch.cat([vectors, mirror], dim=1)
        return F.normalize(vectors, dim=1)

    def save_pretrained(self, folder: str) -> None:
        """Write the encoder as a folder that ``ImageEncoder.from_pretrained(folder)`` loads."""
        self.encoder.save_pretrained(folder)

    def _collect(self, batch: Batch, split: str) -> dict[str, Tensor]:
        return {"ids": batch.items["image"]._need("ids"), "vectors": self.fused(batch.inputs["image"])}

    def _evaluate(self, split: str, prefix: str) -> None:
        data, wanted = self.data, self.data.split(split)
        dim = self.encoder.dim * (2 if self.fusion == "concat" else 1)
        store = Store(self._vectors_of_all(split, wanted.ids, dim, "pictures"), wanted.ids, "image")
        self.measures = evaluate_faces(
            store,
            wanted.pairs,
            wanted.same,
            wanted.fold,
            data.names("image"),
            data.identity,
            wanted.probes,
            wanted.gallery,
            self.device,
        )
        size = len(wanted.pairs)
        means = {**self.measures.means, "accuracy_std": self.measures.accuracy_std}
        self.log_dict({f"{prefix}/{name}": value for name, value in means.items()}, batch_size=size)


def mirrored(pictures: Tensor) -> Tensor:
    """Pictures (B, C, H, W), each mirrored with a chance of one half."""
    coin = torch.rand(len(pictures), 1, 1, 1, device=pictures.device) < 0.5
    return torch.where(coin, pictures.flip(-1), pictures)


def shifted(pictures: Tensor, most: int) -> Tensor:
    """Pictures (B, C, H, W), each moved by up to ``most`` pixels each way; what is missing repeats the edge."""
    number, _, height, width = pictures.shape
    device = pictures.device
    moves = torch.randint(-most, most + 1, (2, number, 1), device=device)
    rows = (torch.arange(height, device=device) + moves[0]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=device) + moves[1]).clamp(0, width - 1)  # (B, W)
    picture = torch.arange(number, device=device)[:, None, None]
    return pictures.movedim(1, -1)[picture, rows[:, :, None], columns[:, None]].movedim(-1, 1)
