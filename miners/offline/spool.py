"""Vectors that come as an iterator of chunks are written to a file once, so that they may be larger than memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miners.offline.shards import Shards
from miners.store import Store, Vectors


@contextmanager
def spool(
    vectors: Store | Vectors | Iterable[Tensor | np.ndarray], space: str, shards: Shards | None
) -> Iterator[Store]:
    """Give the vectors as a store; an iterator's temporary file lives beside the shards and goes at the end."""
    if isinstance(vectors, Store):
        yield vectors
    elif isinstance(vectors, Tensor | np.ndarray | str | os.PathLike):
        yield Store(vectors, space=space)
    elif isinstance(vectors, Iterable):
        with tempfile.TemporaryDirectory(dir=shards.make_folder() if shards else None) as folder:
            yield Store(write_chunks(vectors, Path(folder) / f"{space}.npy"), space=space)
    else:
        raise TypeError(
            f"mine wants vectors as a store, tensor, array, path or iterator, got {type(vectors).__name__}."
        )


def write_chunks(chunks: Iterable[Any], path: Path) -> Path:
    """Write (n, d) chunks one after the other as one ``.npy`` file of float32."""
    rows, dim = 0, 0
    with open(path, "wb") as file:
        write_header(file, 0, 0)
        for chunk in chunks:
            block = torch.as_tensor(chunk).detach().float().cpu().contiguous()
            if block.ndim != 2 or (rows and block.shape[1] != dim):
                raise ValueError(
                    f"mine: chunk after {rows} rows has shape {tuple(block.shape)}, expected (n, {dim or 'd'})."
                )
            rows, dim = rows + len(block), block.shape[1]
            file.write(block.numpy().data)
        file.seek(0)
        write_header(file, rows, dim)
    return path


def write_header(file: Any, rows: int, dim: int) -> None:
    """Write a header whose length does not depend on the shape: numpy leaves room for it to grow."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)
