"""What a family asks of an encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hashlib import _Hash as Hash


def hash_weights(digest: Hash, module: nn.Module, prefix: str = "") -> None:
    """Add a module's weights, by name, to a hash of `hashlib`; ``prefix`` tells them from those of other modules."""
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{prefix}{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


class Encoder(nn.Module, ABC):
    """Turns raw inputs of one kind into vectors.

    ``forward`` runs with gradient on one batch; ``embed`` runs without on any number of inputs.

    Attributes:
        one_space: all kinds go through the same weights, so that their vectors may be mixed.
    """

    one_space: bool = True

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
