"""Pictures of whom a face encoder takes for whom."""

from __future__ import annotations

import logging
from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor

log = logging.getLogger(__name__)


class DrawFaces(pl.Callback):
    """Write ``roc.svg`` and ``hardest_pairs.svg`` of the last evaluation into the run's folder, after fit and test.

    Args:
        pairs: how many impostor pairs that look alike are shown, and as many genuine ones that do not.
    """

    def __init__(self, pairs: int = 6) -> None:
        if pairs < 1:
            raise ValueError(f"DrawFaces(pairs={pairs}): wants at least 1.")
        self.pairs = pairs

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.datamodule.val_split)  # type: ignore[attr-defined]

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer, pl_module, trainer.datamodule.test_split)  # type: ignore[attr-defined]

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str | None) -> None:
        from hardneg.metrics.verification import FaceMeasures, hardest_pairs
        from hardneg.report.faces import ShownPair, draw_pairs, draw_roc

        run = trainer.log_dir or trainer.default_root_dir  # every process must ask: Lightning broadcasts it
        measures, data = getattr(pl_module, "measures", None), trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not isinstance(measures, FaceMeasures):
            return

        def shown(rows: Tensor) -> list[ShownPair]:
            names = data.names("image")
            return [
                ShownPair(data.picture(a), data.picture(b), (names[a], names[b]), float(measures.similarity[row]))
                for row, (a, b) in zip(rows.tolist(), measures.pairs[rows].tolist(), strict=True)
            ]

        similarity, same = measures.similarity, measures.same
        title = f"split '{split}': accuracy {measures.means['accuracy']:.3f}, AUC {measures.means['AUC']:.3f}"
        found = [draw_roc(similarity, same, Path(run) / "roc.svg", title)]
        impostors = shown(hardest_pairs(similarity, same, self.pairs))
        genuine = shown(hardest_pairs(similarity, same, self.pairs, impostors=False))
        found.append(draw_pairs(impostors, genuine, Path(run) / "hardest_pairs.svg", f"most wrong of the {title}"))
        log.info("wrote %s", ", ".join(str(file) for file in found))
