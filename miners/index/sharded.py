"""A corpus spread over the processes of torch.distributed: each searches its share, the answers are merged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch import distributed as dist

from miners.index.base import Index
from miners.index.build import build_index
from miners.store import Store, write_json


class ShardedIndex(Index):
    """Search a corpus of which every process holds a shard.

    Every process must call `search` at the same time, each with its own queries (their number may differ, also 0). The
    queries travel to all shards and the k best answers come back: per process ``world * queries * k * 12`` bytes, never
    a document vector.

    Args:
        store: this process's shard; ids must be unique over all shards.
        spec: how each shard is searched: see `build_index`.
        device: where each shard is searched; "auto" takes this process's CUDA device if there is one.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        ValueError: shards of different dims, or an empty shard.
    """

    def __init__(self, store: Store, spec: str = "auto", device: str = "auto") -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "ShardedIndex needs torch.distributed: call torch.distributed.init_process_group first, or use "
                "build_index for a single process."
            )
        super().__init__(store, device)
        self.spec = spec
        self.world, self.process_rank = dist.get_world_size(), dist.get_rank()
        # NCCL moves CUDA memory only
        self._wire = (
            torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
        )
        shapes = self._gather(torch.tensor([len(store), store.dim], device=self._wire))
        if len({int(dim) for _, dim in shapes}) > 1:
            raise ValueError(f"ShardedIndex: shards have {[int(dim) for _, dim in shapes]} dims; they must agree.")
        self.sizes = [int(rows) for rows, _ in shapes]
        self.shard = build_index(spec, store, device)
        self.device, self.exact_scores = self.shard.device, self.shard.exact_scores  # type: ignore[misc]

    @property
    def size(self) -> int:
        """How many documents all shards hold."""
        return sum(self.sizes)

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        counts = [int(count) for count in self._gather(torch.tensor([len(queries)], device=self._wire))]
        longest = max(counts)
        padded = torch.nn.functional.pad(queries.to(self._wire), (0, 0, 0, longest - len(queries)))
        everyone = torch.cat([part[:count] for part, count in zip(self._gather(padded), counts, strict=True)])
        own = min(k, len(self.store))
        scores, ids = self.shard.search(everyone, own)
        scores = torch.nn.functional.pad(scores, (0, k - own), value=float("-inf"))
        ids = torch.nn.functional.pad(ids, (0, k - own), value=-1)
        first = sum(counts[: self.process_rank])
        mine = slice(first, first + len(queries))
        scores = torch.cat([part[mine] for part in self._gather(scores.to(self._wire))], dim=1)  # (Q, world * k)
        ids = torch.cat([part[mine] for part in self._gather(ids.to(self._wire))], dim=1)
        # shards stand in the order of their processes: a stable sort keeps the whole corpus's order among equals
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores[:, :k], ids.gather(1, order[:, :k])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write this process's shard to its own folder inside ``folder``; every process calls it."""
        folder = Path(folder)
        self.shard.save(folder / f"shard-{self.process_rank}")
        if self.process_rank == 0:
            write_json(folder / "index.json", {"class": type(self).__name__, "spec": self.spec, "world": self.world})
        dist.barrier()

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> Self:
        """Read back; needs as many processes as wrote it."""
        folder = Path(folder)
        record = json.loads((folder / "index.json").read_text())
        if record["class"] != cls.__name__:
            raise ValueError(f"{folder} holds a {record['class']}, not a {cls.__name__}.")
        world = dist.get_world_size()
        if record["world"] != world:
            raise ValueError(f"{folder} holds {record['world']} shards, {world} processes read it; use as many.")
        return cls(Store.load(folder / f"shard-{dist.get_rank()}" / "store"), record["spec"], device)

    def _gather(self, values: Tensor) -> list[Tensor]:
        """The same tensor of every process, in the order of processes."""
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.contiguous())
        return parts
