"""Choose an index by a short specification, and say why."""

from __future__ import annotations

import logging

from miners.index.base import Index
from miners.index.faiss_index import FaissIndex
from miners.index.torch_index import TorchIndex
from miners.store import Store

logger = logging.getLogger(__name__)


def build_index(spec: str, store: Store, device: str = "auto") -> Index:
    """Build the index that a specification names, and log the choice with its reason.

    Args:
        spec: "auto" (exact: TorchIndex), "torch" (TorchIndex), or any FAISS factory string such as "Flat",
            "IVF1024,Flat", "HNSW32". Never approximate unless asked for.
        store: documents to search.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ImportError: a FAISS factory string without faiss installed.
        ValueError: a string that FAISS refuses.
    """
    if spec in ("auto", "torch"):
        index: Index = TorchIndex(store, device=device)
        reason = "asked for" if spec == "torch" else "exact, and needs nothing beyond torch"
    else:
        index, reason = FaissIndex(store, factory=spec, device=device), f"FAISS factory string {spec!r}"
    logger.info("%s over %d x %d on %s: %s.", type(index).__name__, len(store), store.dim, index.device, reason)
    return index
