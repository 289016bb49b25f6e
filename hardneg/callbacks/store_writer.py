"""Predictions as stores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter

from miners.store import Store

log = logging.getLogger(__name__)


class WriteStores(BasePredictionWriter):
    """Write what ``predict`` encodes: a `Store` folder per space, with vectors, ids, names and the key of the weights.

    Args:
        folder: where to put them; None = "stores" in the trainer's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.folder = folder

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        if not trainer.is_global_zero:  # every process has encoded everything
            return
        folder = Path(self.folder or Path(trainer.default_root_dir) / "stores")
        loaders = predictions if predictions and isinstance(predictions[0], list) else [predictions]
        for batches in loaders:
            space = batches[0].space
            vectors = torch.cat([items.embeddings for items in batches])
            raw = space in getattr(pl_module, "raw_spaces", ())
            if getattr(pl_module, "similarity", "cosine") == "cosine" and not raw:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
            ids = torch.cat([items.ids for items in batches])
            names: Any = trainer.datamodule.names(space)  # type: ignore[attr-defined]
            key = pl_module.encoder.fingerprint(space)  # type: ignore[union-attr, operator]
            Store(vectors, ids, space, key=key, names=[names[i] for i in ids.tolist()]).save(folder / space)
            log.info("wrote %d vectors of '%s' to %s", len(ids), space, folder / space)
