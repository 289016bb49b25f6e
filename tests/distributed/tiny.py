"""A tiny encoder and module, for tests that want real training steps in milliseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hardneg.encoders.base import Encoder


class TinyEncoder(Encoder):
    """The mean of hashed word vectors, a hidden layer, and dropout.

    Args:
        seed: of the weights.
        dim: of the vectors.
        dropout: share of hidden units that are dropped in training.
    """

    def __init__(self, seed: int = 0, dim: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.words = nn.EmbeddingBag(97, 8, mode="mean")
            self.hidden = nn.Linear(8, 10)
            self.out = nn.Linear(10, dim)
        self.dropout = nn.Dropout(dropout)
        self.encoded = 0  # texts that went through with gradient

    @property
    def dim(self) -> int:
        return self.out.out_features

    def forward(self, inputs: Sequence[str], kind: str) -> Tensor:
        if not inputs:
            return self.out.weight.new_zeros(0, self.dim)
        self.encoded += len(inputs) * torch.is_grad_enabled()
        words = [[_word(f"{kind} {word}") for word in text.split()] for text in inputs]
        starts = torch.tensor([0, *map(len, words)]).cumsum(0)[:-1]
        numbers = torch.tensor([number for text in words for number in text])
        device = self.out.weight.device
        hidden = self.hidden(self.words(numbers.to(device), starts.to(device))).tanh()
        return self.out(self.dropout(hidden))

    @torch.no_grad()
    def embed(self, inputs: Sequence[Any], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        training = self.training
        self.eval()
        out = [self(inputs[at : at + batch_size], kind).float().cpu() for at in range(0, len(inputs), batch_size)]
        self.train(training)
        return torch.cat(out) if out else torch.zeros(0, self.dim)

    def fingerprint(self, kind: str) -> str:
        weights = torch.cat([weight.detach().double().flatten() for weight in self.parameters()])
        return hashlib.sha256(weights.cpu().numpy().tobytes()).hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        raise NotImplementedError


def _word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little") % 97
