"""FAISS behind the house's interface: any factory string, CPU, one GPU or all of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from miners.index.base import REMEDY, Index, load_index, save_index
from miners.store import Store
from miners.transaction import NO_ROOM, Damaged, Manifest, value_of

GPU_MOST_RESULTS = 2048  # faiss's GPU kernels keep no more results per query
ADD_ROWS = 65536  # rows converted to float32 at a time while the index is filled
SETTINGS = {"factory": str, "parameters": str, "train_rows": int, "seed": int}  # what is kept, and of which type
TRAIN_ROWS = 262_144  # faiss's k-means uses at most 256 rows per centroid; this serves 1,024 of them

MISSING = (
    "FaissIndex needs faiss, which is not installed. Run `pip install 'hardneg[cpu]'`, or "
    "`pip install 'hardneg[gpu]'` on a machine with an NVIDIA GPU; or use TorchIndex, which needs nothing more."
)


class FaissIndex(Index):
    """Search with a FAISS index, exact or approximate.

    Args:
        store: documents that are searched.
        factory: FAISS factory string: "Flat" (exact), "IVF1024,Flat", "HNSW32", "PQ32", ...
        device: "auto" takes the GPUs that FAISS sees, else the CPU; "cuda" all GPUs, "cuda:1" that one, "cpu".
        parameters: FAISS search parameters, such as "nprobe=16" or "efSearch=128"; "" keeps FAISS's defaults.
        train_rows: most rows that a trained index learns from, drawn at random over the whole store.
        seed: of that draw.

    Raises:
        ImportError: faiss is not installed; the message names both extras.
        ValueError: a factory or parameter string that FAISS refuses, or a GPU that it does not see.

    Source:
        Douze et al., The Faiss library, arXiv 2401.08281.
    """

    def __init__(
        self,
        store: Store,
        factory: str = "Flat",
        device: str = "auto",
        parameters: str = "",
        train_rows: int = TRAIN_ROWS,
        seed: int = 0,
    ) -> None:
        super().__init__(store, device)
        self.factory, self.parameters, self.train_rows, self.seed = factory, parameters, train_rows, seed
        faiss = import_faiss()
        try:
            cpu = faiss.index_factory(store.dim, factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(f"FaissIndex(factory={factory!r}): FAISS refuses it: {reason(error)}") from error
        self._place(cpu)
        if not self.faiss_index.is_trained:
            self.faiss_index.train(self._sample())
        for _, vectors in store.blocks(ADD_ROWS):
            self.faiss_index.add(np.ascontiguousarray(vectors.cpu().numpy()))

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self.on_gpu and k > GPU_MOST_RESULTS:
            raise ValueError(
                f"FaissIndex.search(k={k}): FAISS returns at most {GPU_MOST_RESULTS} results per query on a GPU. "
                "Use device='cpu' or TorchIndex, which has no such limit."
            )
        found, rows = self.faiss_index.search(np.ascontiguousarray(queries.cpu().numpy()), k)
        scores, rows = torch.from_numpy(found), torch.from_numpy(rows)  # (Q, k)
        missing = rows < 0
        ids = self.store.ids[rows.clamp(min=0)].masked_fill(missing, -1)
        return scores.masked_fill(missing, float("-inf")), ids

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write documents, FAISS index and settings in one transaction."""
        save_index(
            folder, type(self).__name__, self.store, {name: getattr(self, name) for name in SETTINGS}, self._write
        )

    def _write(self, path: Path) -> None:
        faiss = import_faiss()
        cpu = faiss.index_gpu_to_cpu(self.faiss_index) if self.on_gpu else self.faiss_index
        try:
            faiss.write_index(cpu, str(path))
        except RuntimeError as error:  # FAISS wraps a full disk
            text = str(error)
            number = next((one for one in NO_ROOM if os.strerror(one) in text), errno.EIO)
            raise OSError(number, os.strerror(number), str(path)) from error

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> Self:
        """Read a saved index without training or filling it again, after its checksums were compared.

        Raises:
            FileNotFoundError: the folder holds no index.
            Damaged: a file is missing, changed or damaged, or the index does not fit its documents.
            ValueError: an index of another class, or settings that are no plain values.
        """
        return load_index(folder, cls.__name__, lambda manifest, store: cls._read(manifest, store, device))

    @classmethod
    def _read(cls, manifest: Manifest, store: Store, device: str) -> Self:
        faiss = import_faiss()
        settings = value_of(manifest.record, "settings", dict, manifest.path, REMEDY)
        if settings.keys() != SETTINGS.keys():
            raise Damaged(f"{manifest.path}: its settings are {sorted(settings)!s:.200}. {REMEDY.capitalize()}.")
        loaded = cls.__new__(cls)
        Index.__init__(loaded, store, device)
        for name, kind in SETTINGS.items():
            setattr(loaded, name, value_of(settings, name, kind, manifest.path, REMEDY))
        path = manifest.verified("index", REMEDY)
        if hasattr(faiss, "set_deserialization_vector_byte_limit"):  # FAISS 1.12 or so: no array exceeds its file
            faiss.set_deserialization_vector_byte_limit(path.stat().st_size)
        try:  # lists on disk, which any file may name, are looked for in the folder alone, and only read
            index = faiss.read_index(str(path), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise Damaged(f"{path}: FAISS cannot read it: {reason(error)} {REMEDY.capitalize()}.") from error
        if index.ntotal != len(store) or index.d != store.dim:
            raise Damaged(
                f"{path} holds {index.ntotal} vectors of {index.d} dims, its store {len(store)} of {store.dim}; "
                f"one of the two was replaced. {REMEDY.capitalize()}."
            )
        loaded._place(index)
        return loaded

    def _place(self, cpu: Any) -> None:
        """Move a CPU index to the asked device and set its search parameters."""
        faiss = import_faiss()
        gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
        wanted = self.device
        if wanted == "auto":
            wanted = "cuda" if gpus else "cpu"
        kind, _, number = wanted.partition(":")
        if kind not in ("cpu", "cuda") or (kind == "cuda" and int(number or 0) >= gpus):
            raise ValueError(
                f"FaissIndex(device={self.device!r}): FAISS sees {gpus} GPU(s) here, so 'auto', 'cpu'"
                + "".join(f", 'cuda:{gpu}'" for gpu in range(gpus))
                + (
                    " or 'cuda' for all."
                    if gpus
                    else " only. GPUs need `pip install 'hardneg[gpu]'`; on a Mac use TorchIndex."
                )
            )
        self.device, self.on_gpu = wanted, kind == "cuda"
        if self.on_gpu and number:
            self._resources = faiss.StandardGpuResources()  # FAISS does not own it: it must live as long as the index
            cpu = faiss.index_cpu_to_gpu(self._resources, int(number), cpu)
        elif self.on_gpu:
            cpu = faiss.index_cpu_to_all_gpus(cpu)
        self.faiss_index = cpu
        if self.parameters:
            space = faiss.GpuParameterSpace() if self.on_gpu else faiss.ParameterSpace()
            try:
                space.set_index_parameters(self.faiss_index, self.parameters)
            except RuntimeError as error:
                raise ValueError(
                    f"FaissIndex(parameters={self.parameters!r}): FAISS refuses it: {reason(error)}"
                ) from error

    def _sample(self) -> np.ndarray:
        """Draw the rows a trained index learns from, in row order, as (n, d) float32."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(len(self.store), generator=generator)[: self.train_rows].sort().values
        return np.ascontiguousarray(self.store.vectors[rows].float().cpu().numpy())


def import_faiss() -> Any:
    """Import faiss, or say how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(MISSING) from error
    return faiss


def reason(error: RuntimeError) -> str:
    """Keep the last line of a FAISS error: the reason without the C++ source line."""
    return str(error).strip().splitlines()[-1]
