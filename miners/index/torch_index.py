"""Exact search with plain torch operations, block by block."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from miners.index.base import Index
from miners.store import Store, write_json


class TorchIndex(Index):
    """Search exactly by blocked matrix products on CPU, CUDA or MPS."""

    def __init__(self, store: Store, device: str = "auto") -> None:
        super().__init__(store, device)
        if device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        queries = queries.to(self.device)
        scores = torch.full((len(queries), k), float("-inf"), device=self.device)
        rows = torch.full((len(queries), k), -1, device=self.device)
        for start in range(0, len(self.store), 16384):
            block = self.store.vectors[start : start + 16384].to(self.device).float()
            for first in range(0, len(queries), 1024):
                here = slice(first, first + 1024)
                product = queries[here] @ block.T
                best, column = product.topk(min(k, len(block)), dim=1)
                merged, pick = torch.cat([scores[here], best], 1).topk(k, dim=1)
                rows[here] = torch.cat([rows[here], column + start], 1).gather(1, pick)
                scores[here] = merged
        return scores, self.store.ids.to(self.device)[rows]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the documents; the index itself has nothing more to keep."""
        self.store.save(Path(folder) / "store")
        write_json(Path(folder) / "index.json", {"class": type(self).__name__})

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> Self:
        """Read the documents back, memory-mapped."""
        record = json.loads((Path(folder) / "index.json").read_text())
        if record["class"] != cls.__name__:
            raise ValueError(f"{folder} holds a {record['class']}, not a {cls.__name__}.")
        return cls(Store.load(Path(folder) / "store"), device)
