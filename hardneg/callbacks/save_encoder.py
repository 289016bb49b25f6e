"""The trained encoder as a folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytorch_lightning as pl

from miners.transaction import aside_of, explained, locked, publish_folder

log = logging.getLogger(__name__)


class SaveEncoder(pl.Callback):
    """Write the encoder, as it is after the last step, into a folder that ``SentenceTransformer(folder)`` loads.

    The folder appears whole or not at all: it is written beside its place and renamed, and takes the place of one of
    the same name.

    Args:
        folder: where; None = "model" in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not hasattr(pl_module, "save_pretrained"):
            raise ValueError(
                f"SaveEncoder: {type(pl_module).__name__} has no save_pretrained(folder). Give it one, or take "
                "SaveEncoder out of trainer.callbacks."
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run = trainer.log_dir or trainer.default_root_dir  # every process must ask: Lightning broadcasts it
        if not trainer.is_global_zero:
            return
        folder = Path(self.folder or Path(run) / "model")
        with locked(folder, "choose another folder"):
            workshop = aside_of(folder)
            try:
                fresh = workshop / folder.name  # under its own name: encoders may write it into their files
                with explained(folder):
                    workshop.mkdir()
                    pl_module.save_pretrained(str(fresh))  # type: ignore[operator]
                publish_folder(fresh, folder)
            finally:
                shutil.rmtree(workshop, ignore_errors=True)
        log.info("wrote the encoder to %s", folder)
