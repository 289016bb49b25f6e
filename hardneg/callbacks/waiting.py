"""Whether training waits for its data."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)

MUCH = 0.1


class MeasureWaiting(pl.Callback):
    """Log ``train/waiting_share``: the share of an epoch that passes between the end of a step and the next batch.

    Evaluations are left out, and so is an epoch's first batch, which workers are started for. A share above a tenth is
    said once, with what to do.

    Attributes:
        share: of the last epoch, in [0, 1].
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._waited = self._trained = 0.0
        self._since: float | None = None  # the moment that the step, or the wait, under way began
        self._told = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._waited, self._trained, self._since = 0.0, 0.0, None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self._waited += now - self._since
        self._since = now

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self._trained += now - self._since
        self._since = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._since is not None:
            self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.share = self._waited / max(self._waited + self._trained, 1e-9)
        pl_module.log("train/waiting_share", self.share, sync_dist=trainer.world_size > 1)
        if self.share > MUCH and not self._told:
            self._told = True
            log.warning(
                "training waited for its data %.0f %% of the epoch. Set data.init_args.num_workers higher, or make "
                "batches cheaper.",
                100 * self.share,
            )
