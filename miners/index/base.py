"""What every index promises: the k best documents of each query, by inner product, best first."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from miners.store import Store
from miners.transaction import Damaged, Entry, Manifest, Transaction, file_in, locked_folder, read_published, remove

FORMAT = 2
MANIFEST = "index.json"
REMEDY = "remove the folder and build the index again"
Found = TypeVar("Found")


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


def save_index(
    folder: str | os.PathLike[str],
    name: str,
    store: Store,
    settings: Mapping[str, Any] | None = None,
    write: Callable[[Path], None] | None = None,
) -> None:
    """Write documents and index in one transaction; a crash at any moment leaves the old version or the new one.

    Args:
        folder: of the index.
        name: of its class.
        store: documents that are searched.
        settings: plain values of the constructor.
        write: writes the index itself to the path that it is given; None = the documents are all there is.

    Raises:
        InUse: another process writes to this folder.
        OSError: no room, or the folder cannot be written; the index that was there is kept.
    """
    folder = Path(folder)
    record = {"format": FORMAT, "class": name, "settings": dict(settings or {})}
    with locked_folder(folder, "choose another folder"):
        with Transaction(folder / MANIFEST, record) as files:
            store.write(files.path("store"))
            if write is not None:
                write(files.path("index", ".faiss"))
        if (folder / "store").is_dir():  # of a version that was written before there were checksums
            remove(folder / "store")


def load_index(folder: str | os.PathLike[str], name: str, read: Callable[[Manifest, Store], Found]) -> Found:
    """Read what `save_index` wrote, or a folder from before there were checksums, and say that it is unchecked.

    Args:
        folder: of the index.
        name: of the class that it must be of.
        read: makes the index of the manifest and its store.

    Raises:
        FileNotFoundError: the folder holds no index.
        Damaged: a file is missing, changed or damaged.
        ValueError: an index of another class.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no index ({MANIFEST} is missing).")

    def whole(manifest: Manifest) -> Found:
        written = manifest.record.get("class")
        if written != name:
            raise ValueError(f"{folder} holds a {written!s:.60}, not a {name}.")
        if manifest.checked:
            store = manifest.verified("store", REMEDY)
        elif manifest.record.get("format") is None:
            store = path.with_name("store")
            if "file" in manifest.record:
                manifest.files["index"] = Entry(file_in(path.parent, manifest.record["file"]))
        else:
            raise Damaged(f"{path} has no checksum. {REMEDY.capitalize()}.")
        return read(manifest, Store.load(store))

    return read_published(path, REMEDY, whole)
