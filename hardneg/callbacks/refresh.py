"""Fresh embeddings for whoever mines with them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from hardneg.modules.base import ContrastiveModule

log = logging.getLogger(__name__)


class RefreshNegatives(pl.Callback):
    """Re-encode, and hand the stores to batch miners, sources and pool miners.

    The first refresh is made before the first epoch: loaders draw ahead, and later would be too late for it.

    Args:
        every_n_epochs: refresh before every so many epochs, from ``start_epoch`` on; None = not by epoch.
        every_n_steps: refresh after every so many optimiser steps; None = not by step.
        spaces: what to encode: ["query"] for NGAME, ["query", "document"] for mining.
        start_epoch: first epoch that gets fresh embeddings; before it miners do without.

    Raises:
        ValueError: neither epochs nor steps, or none of at least 1.
    """

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        spaces: Sequence[str] = ("query",),
        start_epoch: int = 0,
    ) -> None:
        if every_n_epochs is None and every_n_steps is None:
            raise ValueError("RefreshNegatives would never refresh: set every_n_epochs or every_n_steps.")
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"RefreshNegatives({name}={value}): wants at least 1.")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.spaces = tuple(spaces)
        self.start_epoch = start_epoch
        self.seconds = 0.0  # spent in refreshes
        self.refreshes = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch >= self.start_epoch:
            self.refresh(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        since = trainer.current_epoch - self.start_epoch
        first = self.refreshes == 0  # on_fit_start came too early for start_epoch
        if self.every_n_epochs and since >= 0 and since % self.every_n_epochs == 0 and (since > 0 or first):
            self.refresh(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._last_step:
            self._last_step = step
            self.refresh(trainer, pl_module)

    _last_step = 0  # accumulated gradients show the same step several times

    def refresh(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Encode ``spaces`` now and hand them over."""
        assert isinstance(pl_module, ContrastiveModule)
        started = time.perf_counter()
        stores = {space: pl_module.embed(space) for space in self.spaces}
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for part in (data.batches.miner, *data.batches.sources):
            part.refresh(stores)
        for chain in pl_module.chains.values():
            for miner in chain:  # type: ignore[union-attr]
                miner.refresh(stores)
        self.refreshes += 1
        spent = time.perf_counter() - started
        self.seconds += spent
        sizes = ", ".join(f"{len(store)} of '{space}'" for space, store in stores.items())
        log.info("refresh %d at step %d: encoded %s in %.1f s", self.refreshes, trainer.global_step, sizes, spent)

    def state_dict(self) -> dict[str, Any]:
        return {"refreshes": self.refreshes, "seconds": self.seconds, "last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.refreshes, self.seconds = state_dict["refreshes"], state_dict["seconds"]
        self._last_step = state_dict["last_step"]
