"""Checkpoints that are whole: written beside their target and renamed, and looked through before they are used."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from miners.transaction import Damaged, explained, sweep, write_file

NEEDED = ("state_dict", "epoch", "global_step", "pytorch-lightning_version", "loops")
BLOCK = 16 << 20


class WholeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints so that a kill or a full disk leaves the file of before, and refuse damaged ones by name.

    Lightning writes to the system's temporary folder and moves the file, which is a copy where that is another file
    system: a kill leaves half a checkpoint under the right name. Here it is written beside its target, synced and
    renamed. torch does not compare the checksums that its files carry; here they are compared before anything is read.
    Addresses such as "s3://..." go Lightning's way. Every `hardneg fit` has this; other trainings get it with
    ``pl.Trainer(plugins=[WholeCheckpointIO()])``.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> content = dict.fromkeys(NEEDED, 0)
        >>> WholeCheckpointIO().save_checkpoint(content, path)
        >>> WholeCheckpointIO().load_checkpoint(path) == content
        True
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; a reader finds the file that was there, or the whole new one.

        Raises:
            OSError: no room, or the place cannot be written; the message names the file and what to do.
        """
        if storage_options is not None or _is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with write_file(path) as file, content.getbuffer() as view:
            for start in range(0, len(view), BLOCK):
                file.write(view[start : start + BLOCK])

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint after all its checksums were compared; nothing in it is run unless ``weights_only=False``.

        Raises:
            FileNotFoundError: there is no such file.
            Damaged: empty, cut off, changed, or no checkpoint; the message names the file, and the one before it.
        """
        if _is_remote(path):
            return super().load_checkpoint(path, map_location, weights_only)
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such checkpoint.")
        sweep(path.parent)
        with open(path, "rb") as file:
            if problem := _problem(file):
                raise Damaged(f"{path} {problem}. {_advice(path)}")
            file.seek(0)
            if weights_only is False:  # the caller vouches for the file
                return super().load_checkpoint(path, map_location, weights_only)
            try:
                content = torch.load(file, map_location=map_location, weights_only=True)
            except (OSError, MemoryError, torch.cuda.OutOfMemoryError):
                raise
            except Exception as error:  # what torch raises about a file that it cannot read is of any type
                if type(error).__name__ == "UnpicklingError" and "WeightsUnpickler" in str(error):
                    raise Damaged(
                        f"{path} holds more than data, of which nothing was run ({_line(error)}). Do not use it."
                    ) from None
                raise Damaged(f"{path} is damaged or no checkpoint ({_line(error)}). {_advice(path)}") from None
        missing = [name for name in NEEDED if name not in content] if isinstance(content, dict) else list(NEEDED)
        if missing:
            raise Damaged(f"{path} is no checkpoint of a training: it lacks {', '.join(missing)}. {_advice(path)}")
        return content


def use_whole_checkpoints(trainer: Any) -> None:
    """Give a trainer `WholeCheckpointIO`, unless its strategy or its configuration has a way of its own."""
    if type(getattr(trainer.strategy, "checkpoint_io", None)) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()


def _is_remote(path: str | Path) -> bool:
    return "://" in str(path) or "::" in str(path)


def _problem(file: Any) -> str | None:
    """What is wrong with a file that should be a whole checkpoint; None = all checksums fit."""
    if os.fstat(file.fileno()).st_size == 0:
        return "is empty"
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except zipfile.BadZipFile:
        return "is cut off, or no checkpoint"
    except Exception as error:  # zipfile raises errors of many types about headers that were changed
        return f"is damaged ({_line(error)})"
    return None if bad is None else f"was changed or damaged: the checksum of '{_line(bad)}' in it does not fit"


def _line(text: object) -> str:
    return (str(text).strip().splitlines() or [type(text).__name__])[0][:160]


def _advice(path: Path) -> str:
    """What to do instead of using a broken checkpoint."""
    before = _before(path)
    if before is not None:
        return f"Delete it and resume the checkpoint before it: --ckpt_path {before}"
    return "Delete it and start again: there is no whole checkpoint beside it."


def _before(path: Path) -> Path | None:
    """The newest whole checkpoint beside a broken one."""
    with suppress(OSError):
        others = [other for other in path.parent.glob(f"*{path.suffix}") if other != path and other.is_file()]
        for other in sorted(others, key=lambda each: each.stat().st_mtime, reverse=True):
            with open(other, "rb") as file:
                if _problem(file) is None:
                    return other
    return None
