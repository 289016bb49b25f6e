"""Pictures of what an activity encoder takes for what."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)


class DrawActivities(pl.Callback):
    """Write ``confusion.svg`` and ``map.svg`` of the last evaluation into the run's folder, after fit and after test.

    Args:
        map: draw the map too; t-SNE takes seconds.
    """

    def __init__(self, map: bool = True) -> None:
        self.map = map

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.datamodule.val_split)  # type: ignore[attr-defined]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.datamodule.test_split)  # type: ignore[attr-defined]

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str | None) -> None:
        from hardneg.metrics.classification import ClassMeasures
        from hardneg.report.activities import draw_confusion, draw_map

        run = trainer.log_dir or trainer.default_root_dir  # every process must ask: Lightning broadcasts it
        measures, data = getattr(pl_module, "measures", None), trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not isinstance(measures, ClassMeasures):
            return
        classes: Any = data.classes
        title = f"linear probe on the split '{split}': accuracy {measures.means['accuracy']:.3f}"
        found = [draw_confusion(measures.truth, measures.predicted, classes, Path(run) / "confusion.svg", title)]
        if self.map:
            title = f"frozen features of the split '{split}', t-SNE"
            found.append(draw_map(measures.vectors, measures.truth, classes, Path(run) / "map.svg", title))
        log.info("wrote %s", ", ".join(str(file) for file in found))
