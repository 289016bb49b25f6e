"""Self-supervised pictures: a crop's key is told apart from the keys of other pictures, past ones among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from datamodules.two_crops import AGAIN, SPACE
from hardneg.encoders.images import ImageEncoder
from hardneg.losses import InfoNCE, PoolLoss
from hardneg.metrics.classification import ClassMeasures
from hardneg.modules.base import ContrastiveModule
from hardneg.modules.gather import in_order, joined
from hardneg.modules.pictures import encode_batches
from miners.base import PoolMiner, process_count, process_rank
from miners.draws import generator_for
from miners.memory_queue import MemoryQueue
from miners.pool import Block, Items, NegativePool, StepContext

SHUFFLE = 0x5B4  # stream of the order in which keys are dealt out


class MoCoModule(ContrastiveModule):
    """Train an encoder of pictures without labels: MoCo v2.

    A crop goes through the encoder, another crop of the same picture through its slow copy; negatives are the slow
    copy's vectors of past batches in a `MemoryQueue`, which is written after each step. Chain `MoCHi` behind it for
    harder ones, or put `InBatch` before it for the other keys of the batch too.

    Batch norm would give the pair away, whose two crops share their batch's statistics. So keys are encoded in another
    order: the crops of all processes are shuffled, dealt out, encoded, and put back.

    Validation and test ask what the backbone's frozen features know of classes; see `hardneg.callbacks.ProbeClasses`,
    which the module brings along where ``trainer.callbacks`` names none.

    Args:
        encoder: with head "mlp" in MoCo v2.
        loss: None = InfoNCE at the paper's temperature of 0.2.
        miners: None = [MemoryQueue(size=65536)], the paper's for ImageNet-1K; less than the training set otherwise.
        momentum: of the slow copy, 0.999 in the paper; less for runs of a few hundred steps.
        batch_norm_groups: encode a process' batch in so many parts, as if by so many processes: shuffling wants at
            least two of them, and on one process none would be hidden otherwise. 1 where processes are several, or
            where the encoder has no batch norm.
        learning_rate, weight_decay, warmup_share, schedule, seed: as in `ContrastiveModule`. MoCo's own: SGD of 0.03
            with a cosine, by ``optimizer`` and ``lr_scheduler`` in YAML (see recipes/moco_imagenet100.yaml).

    Source:
        MoCo, arXiv 1911.05722, sections 3.2 and 3.3 (shuffled batch norm); MoCo v2, arXiv 2003.04297. Differs: the
        queue begins empty, and a picture's own old keys are masked.
    """

    directions = ("crop_to_key",)
    provides = frozenset({"embeddings", "sides", "own_positive", "one_space"})

    def __init__(
        self,
        encoder: ImageEncoder,
        loss: PoolLoss | None = None,
        miners: Sequence[PoolMiner] | None = None,
        momentum: float = 0.999,
        batch_norm_groups: int = 1,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_share: float = 0.1,
        schedule: Literal["linear", "constant"] = "linear",
        seed: int = 0,
    ) -> None:
        if batch_norm_groups < 1:
            raise ValueError(f"MoCoModule(batch_norm_groups={batch_norm_groups}): wants at least 1.")
        super().__init__(
            InfoNCE(0.2) if loss is None else loss,
            [MemoryQueue(size=65536)] if miners is None else miners,
            learning_rate,
            weight_decay,
            warmup_share,
            schedule,
            seed,
            momentum=momentum,
        )
        self.encoder = encoder
        self.batch_norm_groups = batch_norm_groups
        self.measures: ClassMeasures | None = None
        self.use_miners()

    # ---- training ----------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> dict[str, Items]:
        crops = self._in_groups(self.encoder, batch.inputs[SPACE])
        with torch.no_grad():
            keys = self._keys(batch.inputs[AGAIN])
        return {
            SPACE: replace(batch.items[SPACE], embeddings=crops),
            AGAIN: replace(batch.items[AGAIN], embeddings=keys),
        }

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = torch.arange(len(batch), device=batch.rows.device)[context.own]
        keys = sides[AGAIN].take(own)
        parts = {name: part[:, None] for name, part in keys.tensors().items() if name != "labels"}
        return [
            NegativePool(
                anchors=sides[SPACE].take(own),
                positives=Block(replace(keys, labels=None, **parts), "positive"),  # type: ignore[arg-type]
                temperature=self.loss.temperature,
                direction=self.directions[0],
                sides={"anchors": sides[SPACE], "positives": sides[AGAIN]},
                known=batch.known.select(own),
                context=context,
            )
        ]

    def _keys(self, crops: Tensor) -> Tensor:
        """(B, d) the slow copy's vectors of this process' crops, each encoded among others than its partner."""
        assert self.slow is not None
        if process_count() == 1 and self.batch_norm_groups == 1:
            return self.slow(crops)
        owner = joined({"owner": torch.full((len(crops),), process_rank(), device=crops.device)})["owner"]
        everyone = joined({"crops": crops})["crops"]  # by itself, so that bytes travel as bytes
        order = torch.randperm(len(everyone), generator=generator_for(self.seed, self.batches_trained, SHUFFLE))
        dealt = order.tensor_split(process_count())[process_rank()].to(crops.device)
        found = joined({"rows": dealt, "keys": self._in_groups(self.slow, everyone[dealt])})
        return found["keys"][found["rows"].argsort()][owner == process_rank()]

    def _in_groups(self, encoder: nn.Module, pictures: Tensor) -> Tensor:
        parts = pictures.tensor_split(min(self.batch_norm_groups, max(len(pictures), 1)))
        return torch.cat([encoder(part, SPACE) for part in parts])

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[pl.Callback]:
        """The evaluation, where the trainer has none of its own."""
        from hardneg.callbacks.probe import ProbeClasses  # here, since the package of callbacks knows modules

        there: Sequence[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if any(isinstance(callback, ProbeClasses) for callback in there) else [ProbeClasses()]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing: `ProbeClasses` encodes the split together with the training pictures that it is compared with."""

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing, as in validation."""

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Items:
        return replace(batch.items[SPACE], embeddings=self.encoder(batch.inputs[SPACE], SPACE).float())

    def save_pretrained(self, folder: str) -> None:
        """Write the encoder as a folder that ``ImageEncoder.from_pretrained(folder)`` loads."""
        self.encoder.save_pretrained(folder)

    def features(self, data: Any, ids: Tensor, space: str) -> Tensor:
        """(n, F) the backbone's features of pictures in evaluation mode, each process its share."""
        batches = data.pictures_of(ids[process_rank() :: process_count()])
        share = encode_batches(self.encoder.features, self.encoder, batches, self.encoder.backbone.num_features)
        return in_order(share, len(ids), self.device)

    def embed_share(self, space: str, encoder: nn.Module | None = None, ids: Tensor | None = None) -> Tensor:
        used: Any = encoder or self.encoder
        batches = self.data.pictures_of(self._things(space, ids)[process_rank() :: process_count()])
        return encode_batches(used, used, batches, self.encoder.dim)
