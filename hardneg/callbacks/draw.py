"""Pictures of an evaluation, in the run's folder: what the callbacks of all families share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)


class DrawEvaluation(pl.Callback, ABC):
    """Draw the last evaluation after fit (of the data's ``val_split``) and after test (of its ``test_split``)."""

    @abstractmethod
    def draw(self, measures: Any, data: Any, split: str, folder: Path) -> list[Path]:
        """Write files into ``folder``, and return them; none where ``measures`` are not of this callback's kind."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.datamodule.val_split)  # type: ignore[attr-defined]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.datamodule.test_split)  # type: ignore[attr-defined]

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str | None) -> None:
        folder = trainer.log_dir or trainer.default_root_dir  # every process must ask: Lightning broadcasts it
        measures: Any = getattr(pl_module, "measures", None)
        if not trainer.is_global_zero or measures is None or split is None:
            return
        if found := self.draw(measures, trainer.datamodule, split, Path(folder)):  # type: ignore[attr-defined]
            log.info("wrote %s", ", ".join(str(file) for file in found))
