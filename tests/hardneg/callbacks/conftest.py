"""A fit that takes a fraction of a second: a word table as the model, twelve documents as the corpus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from datamodules import RetrievalData
from hardneg.encoders import TextEncoder
from hardneg.modules.retrieval import RetrievalModule


@pytest.fixture
def fit(tmp_path: Path, tiny_model: Path, sample_folder: Path) -> Callable[..., pl.Trainer]:
    """Fit with the given callbacks; keyword arguments go to the trainer."""

    def run(*callbacks: pl.Callback, val_split: str | None = "dev", **how: Any) -> pl.Trainer:
        data = RetrievalData(str(sample_folder), batch_size=3, val_split=val_split)
        module = RetrievalModule(TextEncoder(str(tiny_model)), learning_rate=1e-2)
        trainer = pl.Trainer(
            **{
                "accelerator": "cpu",
                "max_epochs": 2,
                "log_every_n_steps": 1,
                "default_root_dir": str(tmp_path),
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": False,
                "callbacks": list(callbacks),
            }
            | how
        )
        trainer.fit(module, datamodule=data)
        return trainer

    return run
