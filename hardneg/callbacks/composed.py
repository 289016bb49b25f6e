"""Pictures of what composed queries find."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

log = logging.getLogger(__name__)


class DrawRetrievals(pl.Callback):
    """Write ``retrievals.svg`` of the last evaluation into the run's folder, after fit and test.

    Args:
        queries: how many, evenly spaced over the split.
        found: pictures shown of each ranking.
    """

    def __init__(self, queries: int = 8, found: int = 5) -> None:
        if queries < 1 or found < 1:
            raise ValueError(f"DrawRetrievals(queries={queries}, found={found}): wants at least 1 of each.")
        self.queries, self.found = queries, found

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.datamodule.val_split)  # type: ignore[attr-defined]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.datamodule.test_split)  # type: ignore[attr-defined]

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str | None) -> None:
        from hardneg.metrics.cir import CIRMeasures
        from hardneg.report.composed import ShownRetrieval, draw_retrievals

        run = trainer.log_dir or trainer.default_root_dir  # every process must ask: Lightning broadcasts it
        measures, data = getattr(pl_module, "measures", None), trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not isinstance(measures, CIRMeasures) or split is None:
            return
        of: Any = data.split(split)
        right = of.right.to_lists()
        number = len(of.ids)
        rows = torch.linspace(0, number - 1, min(self.queries, number)).long().tolist()
        texts = data.text_of(of.ids[rows], "query")
        shown = [
            ShownRetrieval(
                data.picture(int(of.references[row])),
                text,
                [
                    (data.picture(i), score, i in right[row])
                    for i, score in zip(
                        measures.ids[row, : self.found].tolist(),
                        measures.scores[row, : self.found].tolist(),
                        strict=True,
                    )
                    if i >= 0
                ],
                data.picture(right[row][0]),
            )
            for row, text in zip(rows, texts, strict=True)
        ]
        title = f"split '{split}': " + ", ".join(
            f"{name} {measures.means[name]:.3f}" for name in list(measures.means)[:3]
        )
        log.info("wrote %s", draw_retrievals(shown, Path(run) / "retrievals.svg", title))
