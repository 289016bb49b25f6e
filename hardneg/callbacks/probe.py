"""What frozen features know of classes."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch


class ProbeClasses(pl.Callback):
    """Ask nearest neighbours and a linear probe, at each validation and test, what frozen features know.

    Features of labelled training things and of the split are made in evaluation mode; scikit-learn's logistic
    regression is solved to convergence on them, and the nearest training things vote. Logs accuracy, macro-F1 and kNN;
    the module's ``measures`` are then what `hardneg benchmark`, the report, `DrawActivities` and `DrawNeighbours` read.

    Args:
        neighbours: that vote in "kNN".
        label_share: of the labelled training things, in (0, 1]; None = what the data module says.
        label_seed: of their draw; None = what the data module says.

    Raises:
        ValueError: fewer than one neighbour; a module without ``features(data, ids, space)``.

    Source:
        Linear probe: MoCo, arXiv 1911.05722, section 4.1. Differs: features of one crop are probed, without
        augmentation and without a learning rate.
    """

    def __init__(self, neighbours: int = 5, label_share: float | None = None, label_seed: int | None = None) -> None:
        if neighbours < 1:
            raise ValueError(f"ProbeClasses(neighbours={neighbours}): wants at least 1.")
        self.neighbours = neighbours
        self.label_share, self.label_seed = label_share, label_seed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "features"):
            raise ValueError(
                f"ProbeClasses: {type(pl_module).__name__} has no features(data, ids, space). Take ProbeClasses out of "
                "trainer.callbacks."
            )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._probe(pl_module, trainer.datamodule, "val")  # type: ignore[attr-defined]

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._probe(pl_module, trainer.datamodule, "test")  # type: ignore[attr-defined]

    def _probe(self, module: Any, data: Any, prefix: str) -> None:
        from hardneg.metrics.classification import evaluate_classes

        train = data.labelled(self.label_share, self.label_seed)
        queries = data.queries(data.val_split if prefix == "val" else data.test_split)[0]
        found = {space: module.features(data, torch.cat([train, queries]), space) for space in data.spaces}
        module.measures = measures = evaluate_classes(
            {space: of[: len(train)] for space, of in found.items()},
            train,
            data.labels,
            {space: of[len(train) :] for space, of in found.items()},
            queries,
            data.names(data.spaces[0]),
            self.neighbours,
        )
        module.log_dict({f"{prefix}/{name}": value for name, value in measures.means.items()}, batch_size=len(queries))
