"""The report at the end of training."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.trainer.states import TrainerFn

from hardneg.report import save_evaluation, save_thumbnails, write_report
from hardneg.report.run import describe, write_facts

log = logging.getLogger(__name__)


class WriteReport(pl.Callback):
    """Write ``report.html`` into the run's folder when training ends.

    It evaluates nothing. The last validation of the fit becomes the evaluation "final"; the one before training is
    ``hardneg.report.save_evaluation(folder, "start", ...)``, if somebody calls it. Curves come from a CSVLogger and
    negatives from `RecordNegatives`; the page says what is missing without them. Where the data has pictures, the page
    shows them, small.

    Args:
        title: heading of the page; None = the folder's name.
    """

    def __init__(self, title: str | None = None) -> None:
        self.title = title
        self._started = 0.0
        self._validated_at: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            # here, not in on_fit_start: a guide's and a refresh's encoding before the first step belongs to the price
            self._started, self._validated_at = time.perf_counter(), None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(trainer.logger, CSVLogger):  # the first, in whose folder everything of a run comes together
            log.warning(
                "WriteReport: the first logger is no CSVLogger, so the report will have no curves. Put "
                "pytorch_lightning.loggers.CSVLogger first in trainer.logger; others may follow."
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validated_at = trainer.global_step

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run = trainer.log_dir or trainer.default_root_dir  # every process must ask: Lightning broadcasts it
        if not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self._started
        for logger in trainer.loggers:
            logger.save()  # Lightning would do so only after this hook
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        write_facts(run, describe(pl_module, data) | {"steps": str(trainer.global_step)})
        measures = getattr(pl_module, "measures", None)
        if measures is not None and self._validated_at is not None:
            save_evaluation(run, "final", measures, data, data.val_split, seconds, self._validated_at)
        else:
            log.info("WriteReport: this fit never validated, so the report has no measures from after training.")
        save_thumbnails(run, data)
        log.info("wrote %s", write_report(Path(run), self.title))
