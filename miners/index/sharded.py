"""A corpus spread over the processes of torch.distributed: each searches its share, the answers are merged."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch import distributed as dist

from miners.index.base import FORMAT, MANIFEST, REMEDY, Index
from miners.index.build import build_index
from miners.store import Store
from miners.transaction import Transaction, locked_folder, read_manifest, value_of


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
        """Write every process's shard and publish them together; every process calls it.

        Raises:
            InUse: another run writes to this folder.
            OSError: no room, or the folder cannot be written; the version that was there is kept.
        """
        folder = Path(folder)
        first = self.process_rank == 0
        with locked_folder(folder, "choose another folder") if first else nullcontext():
            record = {"format": FORMAT, "class": type(self).__name__, "spec": self.spec, "world": self.world}
            files = Transaction(folder / MANIFEST, record)
            files.token = self._agreed(files.token)
            try:
                failed = None
                self.store.write(files.path(f"shard{self.process_rank}"))
            except OSError as error:  # the others must not wait for a process that has stopped
                failed = error
            whole = all(int(one) for one in self._gather(torch.tensor([failed is None], device=self._wire).long()))
            if whole and first:
                for rank in range(self.world):
                    files.path(f"shard{rank}")
                files.commit()
            dist.barrier()
            if not whole:
                files.undo()
            if failed is not None:
                raise failed
            if not whole:
                raise OSError(f"{folder}: another process could not write its shard; the index is not saved.")

    def _agreed(self, token: str) -> str:
        """The first process's token, in every process."""
        value = torch.tensor([int(token, 16)], device=self._wire)
        return f"{int(self._gather(value)[0]):08x}"

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> Self:
        """Read back; needs as many processes as wrote it.

        Raises:
            FileNotFoundError: the folder holds no index.
            Damaged: a file is missing, changed or damaged.
            ValueError: an index of another class, or another number of shards than processes.
        """
        path = Path(folder) / MANIFEST
        if not path.exists():
            raise FileNotFoundError(f"{folder} holds no index ({MANIFEST} is missing).")
        manifest = read_manifest(path, REMEDY)
        if manifest.record.get("class") != cls.__name__:
            raise ValueError(f"{folder} holds a {manifest.record.get('class')!s:.60}, not a {cls.__name__}.")
        world = dist.get_world_size()
        if (written := value_of(manifest.record, "world", int, path, REMEDY)) != world:
            raise ValueError(f"{folder} holds {written} shards, {world} processes read it; use as many.")
        spec = value_of(manifest.record, "spec", str, path, REMEDY)
        if manifest.checked:
            store = manifest.verified(f"shard{dist.get_rank()}", REMEDY)
        else:  # of a version that was written before there were checksums
            store = path.parent / f"shard-{dist.get_rank()}" / "store"
        return cls(Store.load(store), spec, device)

    def _gather(self, values: Tensor) -> list[Tensor]:
        """The same tensor of every process, in the order of processes."""
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.contiguous())
        return parts
