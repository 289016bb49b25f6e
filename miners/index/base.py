"""What every index promises: the k best documents of each query, by inner product, best first."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from miners.store import Store


class Index(ABC):
    """Search the documents of a store; larger score = closer.

    The score is the inner product. For cosine, normalise queries and documents before they come here.

    Args:
        store: documents that are searched, M of d dims.
        device: "auto" (an accelerator where the class can use one, else the CPU), "cpu", "cuda", "cuda:1", "mps".

    Attributes:
        exact_scores: scores are float64 row products rounded to float32, whatever the shape of the batch.
    """

    exact_scores: ClassVar[bool] = False

    def __init__(self, store: Store, device: str = "auto") -> None:
        if len(store) == 0:
            raise ValueError(f"{type(self).__name__} got an empty store; there is nothing to search.")
        self.store = store
        self.device = device

    def search(self, queries: Tensor | np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """Find the k documents of highest inner product for each query.

        Shapes:
            queries (Q, d) in; scores (Q, k) float32 and ids (Q, k) int64 out, on the device of the queries.

        Returns:
            Best first. Slots that an approximate index could not fill hold score -inf and id -1, after the filled ones.

        Raises:
            ValueError: k < 1 or larger than the corpus, queries of other dims than the documents, NaN in a query.
        """
        queries = torch.as_tensor(queries)
        name = type(self).__name__
        if queries.ndim != 2 or queries.shape[1] != self.store.dim:
            raise ValueError(
                f"{name} holds documents of {self.store.dim} dims; queries have shape {tuple(queries.shape)}."
            )
        if not 1 <= k <= self.size:
            raise ValueError(f"{name}.search(k={k}): the corpus has {self.size} documents, so 1 <= k <= {self.size}.")
        if not torch.isfinite(queries.sum(dtype=torch.float32)) and not (rows := torch.isfinite(queries).all(1)).all():
            raise ValueError(f"{name}.search: query row {int((~rows).nonzero()[0])} holds NaN or infinity.")
        scores, ids = self._search(queries.detach().float(), k)
        return scores.to(queries.device), ids.to(queries.device)

    @property
    def size(self) -> int:
        """How many documents are searched."""
        return len(self.store)

    @abstractmethod
    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Search checked float32 queries."""

    @abstractmethod
    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index with its documents to a folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> Self:
        """Read a saved index back onto a device; documents stay memory-mapped."""
