"""Activity recognition: two signals of the same moment, or two views of one signal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.augmentations import Augmentation
from datamodules.batch import Batch
from hardneg.encoders.signals import SignalEncoder
from hardneg.losses import PoolLoss
from hardneg.metrics.classification import ClassMeasures, evaluate_classes
from hardneg.modules.evaluated import EvaluatedModule
from hardneg.modules.gather import in_order
from miners.base import PoolMiner, process_count, process_rank
from miners.pool import Block, Items, NegativePool, StepContext

AGAIN = "{} again"
"""Side of the second view, where there is one modality."""


class HARModule(EvaluatedModule):
    """Train encoders so that simultaneous windows of two modalities lie together, without labels.

    Two modalities: both directions, negatives from the other modality (CMC). One modality: two augmented views of each
    window (SimCLR); chain `SelfBlocks(positives=False)` behind `InBatch` for its 2B - 2 negatives.

    Validation and test train a linear probe on the frozen features of labelled training windows, on both modalities
    together and on each alone, and ask the nearest neighbours; they use the training windows of the data module.

    Args:
        encoder: with one or two modalities, named as the data's.
        augmentations: by modality, applied in this order to standardised training windows, one view per modality.
        loss, miners, learning_rate, weight_decay, warmup_share, schedule, seed, chunk_size: as in `ContrastiveModule`.
        eval_batch_size: windows per batch in evaluation.
        neighbours: that vote in "kNN".

    Raises:
        ValueError: other than one or two modalities; one without augmentations, whose views would be equal.

    Source:
        CMC, arXiv 1906.05849; for activities CMC-CMKM, arXiv 2205.10071; hard negatives: arXiv 2309.01262.
    """

    def __init__(
        self,
        encoder: SignalEncoder,
        augmentations: dict[str, list[Augmentation]] | None = None,
        loss: PoolLoss | None = None,
        miners: Sequence[PoolMiner] | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
        warmup_share: float = 0.1,
        schedule: Literal["linear", "constant"] = "linear",
        eval_batch_size: int = 256,
        neighbours: int = 5,
        seed: int = 0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(loss, miners, learning_rate, weight_decay, warmup_share, schedule, seed, chunk_size)
        first, *rest = encoder.modalities
        if len(rest) > 1:
            raise ValueError(f"HARModule contrasts one or two modalities, and the encoder has {[first, *rest]}.")
        self.augmentations = {name: tuple(of) for name, of in (augmentations or {}).items()}
        if unknown := sorted(set(self.augmentations) - set(encoder.modalities)):
            raise ValueError(f"augmentations of {unknown}, but the encoder has {list(encoder.modalities)}.")
        if not rest and not self.augmentations.get(first):
            raise ValueError(
                f"HARModule with the one modality '{first}' contrasts two augmented views, and without augmentations "
                f"they would be equal. Set model.init_args.augmentations.{first}."
            )
        self.encoder = encoder
        self.eval_batch_size = eval_batch_size
        self.neighbours = neighbours
        self.views = (first, rest[0] if rest else AGAIN.format(first))
        self.directions = tuple("_to_".join(side.replace(" ", "_") for side in pair) for pair in self._pairs())
        provides = {"embeddings", "sides", "own_positive", "drawn"}
        self.provides = frozenset(provides if rest else provides | {"one_space"})
        self.measures: ClassMeasures | None = None
        self.use_miners()

    # ---- training ----------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> dict[str, Items]:
        sides = {}
        for side, items in batch.items.items():
            windows = self.encoder.standardise(batch.inputs[side], items.space)
            views = [side]
            if len(self.encoder.modalities) == 1 and side == items.space:
                views.append(AGAIN.format(side))
            for view in views:
                sides[view] = replace(
                    items, embeddings=self.encoder.project(self._augmented(windows, items.space), items.space)
                )
        return sides

    def _augmented(self, windows: Tensor, space: str) -> Tensor:
        if self.training:
            for augmentation in self.augmentations.get(space, ()):
                windows = augmentation(windows)
        return windows

    def _pairs(self) -> tuple[tuple[str, str], ...]:
        """(anchors, positives) of each direction."""
        return self.views, self.views[::-1]

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = torch.arange(len(batch), device=batch.rows.device)[context.own]
        out = []
        for direction, (left, right) in zip(self.directions, self._pairs(), strict=True):
            roles = {"anchors": sides[left], "positives": sides[right]}
            if (drawn := f"drawn {sides[right].space}") in sides:
                roles["drawn"] = sides[drawn]
            out.append(
                NegativePool(
                    anchors=sides[left].take(own),
                    positives=Block(_one_each(sides[right].take(own)), "positive"),
                    temperature=self.loss.temperature,
                    direction=direction,
                    sides=roles,
                    known=batch.known.select(own),
                    context=context,
                )
            )
        return out

    def setup(self, stage: str) -> None:
        data = self.data
        if set(data.spaces) != set(self.encoder.modalities):
            raise ValueError(
                f"the data has the modalities {list(data.spaces)} and the encoder {list(self.encoder.modalities)}. "
                "Name the encoder's backbones as the data's modalities, or choose some with data.init_args.modalities."
            )
        self.encoder.measure({space: data.statistics(space) for space in data.spaces})

    def embed_share(self, space: str, encoder: nn.Module | None = None, ids: Tensor | None = None) -> Tensor:
        ids = self._things(space, ids)
        windows = self.data.view(ids[process_rank() :: process_count()], space)
        return (encoder or self.encoder).embed(windows, space, self.eval_batch_size)  # type: ignore[operator]

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str) -> None:
        """Write the encoder as a folder that ``SignalEncoder.from_pretrained(folder)`` loads."""
        self.encoder.save_pretrained(folder)

    def evaluate(self, split: str, data: Any, share: float | None = None, seed: int | None = None) -> ClassMeasures:
        """Probe the encoder on a split, with the labels of a share of the training recordings.

        Args:
            share, seed: None = what the data module says.
        """
        train, queries = data.labelled(share, seed), data.queries(split)[0]
        features = {space: self.features(data, torch.cat([train, queries]), space) for space in data.spaces}
        return evaluate_classes(
            {space: of[: len(train)] for space, of in features.items()},
            train,
            data.labels,
            {space: of[len(train) :] for space, of in features.items()},
            queries,
            data.names(data.spaces[0]),
            self.neighbours,
        )

    def features(self, data: Any, ids: Tensor, space: str) -> Tensor:
        """(n, F) features of windows in evaluation mode, each process its share."""
        windows = data.view(ids[process_rank() :: process_count()], space)
        share = self.encoder.embed_features(windows, space, self.eval_batch_size)
        return in_order(share, len(ids), self.device)

    def _evaluate(self, split: str, prefix: str) -> None:
        self.measures = self.evaluate(split, self.data)
        size = len(self.measures.truth)
        self.log_dict({f"{prefix}/{name}": value for name, value in self.measures.means.items()}, batch_size=size)


def _one_each(items: Items) -> Items:
    """Shared items (B, ...) as one positive per anchor: embeddings (B, 1, d), ids (B, 1)."""
    wide = {name: part[:, None] for name, part in items.tensors().items() if name not in ("labels", "norms", "rows")}
    return replace(items, labels=None, norms=None, rows=None, **wide)  # type: ignore[arg-type]
