"""What a family asks of an encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Turns raw inputs of one kind into vectors.

    ``forward`` runs with gradient on one batch; ``embed`` runs without on any number of inputs.
    """

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of a vector."""

    @abstractmethod
    def forward(self, inputs: Any, kind: str) -> Tensor:
        """Encode one batch of ``kind`` ("query", "document", ...) -> (B, dim), with gradient."""

    @abstractmethod
    def embed(self, inputs: Sequence[Any], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        """Encode all ``inputs`` -> (len(inputs), dim) float32 on the CPU, in evaluation mode, without gradient.

        Args:
            progress: text of a progress bar; None shows none.
        """

    @abstractmethod
    def fingerprint(self, kind: str) -> str:
        """A key that changes with the weights, the prompt of ``kind`` and everything else that changes vectors."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write safetensors and what rebuilds the encoder from them."""
