"""Encoders of rows of numbers: a residual network, and no network at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from datamodules.table_files import Columns
from hardneg.encoders.base import Encoder, hash_weights
from hardneg.encoders.model_files import settings_of

WEIGHTS, SETTINGS = "model.safetensors", "encoder.yaml"


class TabularEncoder(Encoder):
    """Residual blocks ``relu(W x + b) + skip(x)``, then one linear layer.

    Args:
        features: F, columns of a row; a category takes one for each of its values.
        dim: length of a vector.
        width: of every block; what the last one says are the features that a classifier reads.
        blocks: how many.
        dropout: of the columns of a training row, in [0, 1): for rows of many features that are mostly 0.

    Attributes:
        columns: how rows of a table become numbers, once a module has been set up with data.

    Source:
        CLAN, arXiv 2509.06550, and its code: 4 blocks of 1024, 64 dims.
    """

    def __init__(self, features: int, dim: int = 64, width: int = 1024, blocks: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        if min(features, dim, width, blocks) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"TabularEncoder(features={features}, dim={dim}, width={width}, blocks={blocks}, dropout={dropout}): "
                "sizes are at least 1, dropout is a share below 1."
            )
        self.num_features, self.width, self.num_blocks, self.dropout = features, width, blocks, dropout
        self._dim = dim
        self.columns: Columns | None = None
        self.blocks = nn.ModuleList(_Residual(features if number == 0 else width, width) for number in range(blocks))
        self.head = nn.Linear(width, dim)

    @property
    def dim(self) -> int:
        return self._dim

    def forward(self, inputs: Tensor, kind: str = "row") -> Tensor:
        return self.head(self.features(inputs))

    def features(self, inputs: Tensor, kind: str = "row") -> Tensor:
        """Rows (B, F) -> (B, width)."""
        x = _rows(inputs, self.num_features, "TabularEncoder")
        if self.training and self.dropout:
            x = nn.functional.dropout(x, self.dropout)
        for block in self.blocks:
            x = block(x)
        return x

    def embed(
        self, inputs: Sequence[Any], kind: str = "row", batch_size: int = 4096, progress: str | None = None
    ) -> Tensor:
        return self._in_batches(self, inputs, batch_size, self.dim)

    def embed_features(self, inputs: Sequence[Any], batch_size: int = 4096) -> Tensor:
        """Features of all ``inputs`` (N, F) -> (N, width) float32 on the CPU, in evaluation mode, without gradient."""
        return self._in_batches(self.features, inputs, batch_size, self.width)

    def fingerprint(self, kind: str = "row") -> str:
        digest = hashlib.sha256()
        hash_weights(digest, self)
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and encoder.yaml, which holds `columns` too; `from_pretrained` reads them."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: part.detach().cpu().contiguous() for name, part in self.state_dict().items()}
        save_file(state, folder / WEIGHTS)
        arguments = {
            "features": self.num_features,
            "dim": self.dim,
            "width": self.width,
            "blocks": self.num_blocks,
            "dropout": self.dropout,
        }
        columns = None if self.columns is None else self.columns.as_dict()
        text = yaml.safe_dump({"arguments": arguments, "columns": columns}, sort_keys=False)
        (folder / SETTINGS).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TabularEncoder:
        """Read a folder that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: no such folder.
        """
        from safetensors.torch import load_file

        folder = Path(folder).expanduser()
        for file in (SETTINGS, WEIGHTS):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"'{folder}' is no folder of a tabular encoder: {file} is not in it.")
        with settings_of(folder / SETTINGS):
            settings = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
            encoder = cls(**settings["arguments"])
            encoder.load_state_dict(load_file(folder / WEIGHTS))
            if settings["columns"] is not None:
                encoder.columns = Columns.from_dict(settings["columns"])
        return encoder.eval()

    def _in_batches(
        self, encode: Callable[[Tensor], Tensor], inputs: Sequence[Any], batch_size: int, width: int
    ) -> Tensor:
        training, device = self.training, self.head.weight.device
        self.eval()
        try:
            with torch.inference_mode():
                parts = [
                    encode(torch.as_tensor(inputs[start : start + batch_size]).to(device)).float().cpu()
                    for start in range(0, len(inputs), batch_size)
                ]
        finally:
            self.train(training)
        return torch.cat(parts).clone() if parts else torch.empty(0, width)


class RawFeatures(Encoder):
    """Rows as they are: the baseline that a trained encoder has to beat. Nothing to train.

    Args:
        features: F, columns of a row.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features
        self.columns: Columns | None = None

    @property
    def dim(self) -> int:
        return self.num_features

    def forward(self, inputs: Tensor, kind: str = "row") -> Tensor:
        return _rows(inputs, self.num_features, "RawFeatures")

    def embed(
        self, inputs: Sequence[Any], kind: str = "row", batch_size: int = 4096, progress: str | None = None
    ) -> Tensor:
        return self(torch.as_tensor(inputs)).cpu()

    def embed_features(self, inputs: Sequence[Any], batch_size: int = 4096) -> Tensor:
        """The rows themselves."""
        return self.embed(inputs)

    def fingerprint(self, kind: str = "row") -> str:
        return f"raw features, {self.num_features}"

    def save_pretrained(self, folder: str | Path) -> None:
        raise ValueError("RawFeatures has nothing to save.")


def load_tabular(folder: str) -> TabularEncoder:
    """`TabularEncoder.from_pretrained`, as YAML can name it.

    Args:
        folder: with model.safetensors and encoder.yaml.
    """
    return TabularEncoder.from_pretrained(folder)


class _Residual(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(before, width)
        self.skip = nn.Identity() if before == width else nn.Linear(before, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x)) + self.skip(x)


def _rows(inputs: Tensor, features: int, who: str) -> Tensor:
    if inputs.ndim != 2 or inputs.shape[1] != features:
        raise ValueError(
            f"{who}(features={features}) got rows of shape {tuple(inputs.shape)}. Set its features to the columns of "
            "the data, one for each value of a category."
        )
    return inputs
