"""Indices over a `Store`: exact search in torch, anything FAISS builds, and shards over processes.

All of them answer ``search(queries, k) -> (scores, ids)`` by inner product. FAISS is imported when a `FaissIndex` is
made, not before.
"""

from miners.index.base import Index
from miners.index.build import build_index
from miners.index.faiss_index import FaissIndex
from miners.index.sharded import ShardedIndex
from miners.index.torch_index import TorchIndex

__all__ = ["FaissIndex", "Index", "ShardedIndex", "TorchIndex", "build_index"]
