"""Vectors that were encoded once: kept under what made them, never under a name."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from hardneg.encoders.base import Encoder
from miners.store import Store

logger = logging.getLogger(__name__)

CHUNK = 2048  # inputs encoded between two writes: what a crash costs at most


class EmbeddingCache:
    """Encode a collection, or read it back if the same encoder encoded the same content before.

    The key is a hash of the encoder's fingerprint (weights, prompt, cut length), the kind, and the content of every
    input in order. Two models of one name with other weights never share vectors; neither do two prompts. A run that
    was killed goes on after its last finished chunk.

    Args:
        folder: where the vectors are kept; None keeps nothing.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def encode(
        self,
        encoder: Encoder,
        inputs: Sequence[Any],
        kind: str,
        *,
        names: Sequence[str] | None = None,
        unit: bool = True,
        batch_size: int = 64,
    ) -> Store:
        """Give the vectors of ``inputs`` as a store, memory-mapped if the cache keeps them.

        Args:
            encoder: any encoder.
            inputs: M texts, images or windows.
            kind: "query", "document", ...: chooses the prompt.
            names: external ids; not part of the key.
            unit: scale vectors to length 1, so that inner products are cosines.
            batch_size: inputs that go through the encoder together.
        """
        weights = encoder.fingerprint(kind)
        if self.folder is None:
            parts = [
                self._embed(encoder, inputs[at : at + CHUNK], kind, unit, batch_size, at, len(inputs))
                for at in range(0, len(inputs), CHUNK)
            ]
            vectors = torch.cat(parts) if parts else torch.zeros(0, encoder.dim)
            return Store(vectors, space=kind, key=weights, names=names)
        key = digest([weights, kind, str(unit)], inputs)
        place = self.folder / key
        if (place / "store.json").exists():
            logger.info("%s: %d vectors read from the cache", kind, len(inputs))
        else:
            self._fill(place, encoder, inputs, kind, unit, batch_size, weights)
        store = Store.load(place)
        store.names = names
        return store

    def _fill(
        self, place: Path, encoder: Encoder, inputs: Sequence[Any], kind: str, unit: bool, batch_size: int, weights: str
    ) -> None:
        """Encode chunk by chunk into files, then write the store and remove them."""
        parts = place.with_name(place.name + ".parts")
        parts.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(inputs), CHUNK)
        for at in starts:
            path = parts / f"{at:012d}.npy"
            if not path.exists():
                save(
                    path, self._embed(encoder, inputs[at : at + CHUNK], kind, unit, batch_size, at, len(inputs)).numpy()
                )
        joined = np.lib.format.open_memmap(parts / "joined.npy", "w+", np.float32, (len(inputs), encoder.dim))
        for at in starts:
            block = np.load(parts / f"{at:012d}.npy", allow_pickle=False)
            joined[at : at + len(block)] = block
        Store(joined, space=kind, key=weights).save(place)
        del joined
        shutil.rmtree(parts)

    def _embed(
        self, encoder: Encoder, inputs: Sequence[Any], kind: str, unit: bool, batch_size: int, at: int, total: int
    ) -> torch.Tensor:
        bar = f"{kind} {at:,} of {total:,}" if total > CHUNK else kind
        vectors = encoder.embed(inputs, kind, batch_size=batch_size, progress=bar).float().cpu()
        return normalize(vectors, dim=1) if unit else vectors


def digest(words: Iterable[str], inputs: Sequence[Any]) -> str:
    """Hash words and the content of inputs: texts by their bytes, arrays by shape, type and bytes."""
    total = hashlib.sha256("\0".join(words).encode())
    if isinstance(inputs, np.ndarray | torch.Tensor):
        array = np.ascontiguousarray(inputs)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(memoryview(array).cast("B"))
        return total.hexdigest()[:32]
    for one in inputs:
        if isinstance(one, str):
            content = one.encode()
        elif isinstance(one, np.ndarray | torch.Tensor):
            content = f"{one.dtype}{tuple(one.shape)}".encode() + np.ascontiguousarray(one).tobytes()
        else:
            raise TypeError(f"The embedding cache knows texts and arrays, not {type(one).__name__}. Use folder=None.")
        total.update(len(content).to_bytes(8, "little") + content)  # the length: "ab","c" is not "a","bc"
    return total.hexdigest()[:32]


def save(path: Path, array: np.ndarray) -> None:
    """Write an array whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
