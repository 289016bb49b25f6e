"""A checkpoint that is resumed names no file to remove outside of the run's own folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class CheckpointPaths(pl.Callback):
    """Refuse a checkpoint by whose words Lightning's ModelCheckpoint would remove files of others.

    A new checkpoint takes the place of the one before, which ModelCheckpoint then removes. After a resume, the path of
    that comes from the checkpoint; Lightning's own look at it knows neither ".." nor addresses such as "s3://...".

    Raises:
        ValueError: in ``on_load_checkpoint``, such a path.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        folders = [callback.dirpath for callback in trainer.checkpoint_callbacks]  # type: ignore[attr-defined]
        for state in checkpoint.get("callbacks", {}).values():
            for path in _paths(state):
                for folder in filter(None, folders):
                    if not isinstance(path, str) or _misleads(path, str(folder)):
                        raise ValueError(
                            f"--ckpt_path: the checkpoint names a file outside of {folder} as one of its own, which "
                            f"training would remove: {path!r:.200}. Do not resume it."
                        )


def _paths(state: Any) -> Iterator[Any]:
    if isinstance(state, Mapping):
        yield from (state[name] for name in PATHS if state.get(name))
        kept = state.get("best_k_models")
        yield from kept if isinstance(kept, Mapping) else ()


def _misleads(path: str, folder: str) -> bool:
    """Whether ModelCheckpoint would take a path for one in its folder, and it is not."""
    if "://" in path or "::" in path:
        return not path.startswith(folder.rstrip("/") + "/") or ".." in path.split("/")
    if Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents:
        return False
    return Path(folder).absolute() in Path(path).absolute().parents
