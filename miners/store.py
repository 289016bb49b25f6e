"""Vectors with ids, in memory or memory-mapped: what every index, buffer, cache and frozen side is made of."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from miners.transaction import Damaged, Manifest, Transaction, locked_folder, read_published, value_of

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

Vectors = Tensor | np.ndarray | str | os.PathLike[str]

FORMAT, UNCHECKED = 2, 1  # what is written now; what was written before there were checksums
MANIFEST = "store.json"
REMEDY = "remove the folder and encode again"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SCAN_BYTES = 16 << 20  # the NaN scan reads blocks of this size, so that a memory-mapped file is never loaded whole


class Store:
    """Hold M vectors with their ids; give rows by id and blocks in order.

    Vectors stay where they are: a tensor or an array is not copied, a ``.npy`` path is memory-mapped and read block by
    block. They keep the precision they are stored in and are handed out as float32.

    Args:
        vectors: (M, d) floating tensor, numpy array, ``np.memmap``, or path of a ``.npy`` file.
        ids: (M,) unique int64, none negative; None counts rows from 0.
        space: what the ids name ("query", "document", "image", ...); ids of two spaces are never equal.
        key: what made the vectors (hash of weights and prompt); "" means unknown.
        version: grows with every refresh; compared to tell stale vectors from fresh ones.
        names: M external ids as strings, in row order; None when the int64 ids are all there is.

    Raises:
        ValueError: vectors that are not (M, d) floats, hold NaN or infinity (the row is named), or do not match the
            ids; ids that are negative, ids or names that are repeated (both rows are named).
    """

    def __init__(
        self,
        vectors: Vectors,
        ids: Tensor | np.ndarray | Sequence[int] | None = None,
        space: str = "document",
        key: str = "",
        version: int = 0,
        names: Sequence[str] | None = None,
    ) -> None:
        self.vectors = open_vectors(vectors)  # (M, d)
        self.space, self.key, self.version = space, key, version
        self.counted = ids is None
        self.ids = torch.arange(len(self.vectors)) if ids is None else torch.as_tensor(ids).cpu()  # (M,)
        self.names = names
        self._check_ids()
        self._check_finite()

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        return f"Store({len(self)} x {self.dim} {str(self.vectors.dtype)[6:]}, space={self.space!r})"

    @property
    def dim(self) -> int:
        """Length d of a vector."""
        return self.vectors.shape[1]

    @cached_property
    def arrow_names(self) -> pa.Array | None:
        """The names as an Arrow array, converted once; None when there are none."""
        import pyarrow as pa

        return None if self.names is None else pa.array(self.names, pa.string())

    def positions(self, ids: Tensor | np.ndarray | Sequence[int]) -> Tensor:
        """Find the row of each id.

        Shapes:
            ids of any shape in, int64 rows of the same shape out.

        Raises:
            KeyError: an id that is not stored; the message names it.
        """
        wanted = torch.as_tensor(ids, dtype=torch.int64)
        device, wanted = wanted.device, wanted.cpu()
        if self.counted:
            where = wanted.clamp(0, max(len(self) - 1, 0))
            found = wanted == where if len(self) else torch.zeros_like(wanted, dtype=torch.bool)
        elif len(self):
            slot = torch.searchsorted(self._sorted, wanted).clamp(max=len(self) - 1)
            where, found = self._order[slot], self._sorted[slot] == wanted
        else:
            where, found = wanted, torch.zeros_like(wanted, dtype=torch.bool)
        if not found.all():
            unknown = int(wanted[~found][0])
            raise KeyError(f"Store of space {self.space!r} holds no id {unknown} ({len(self)} rows are stored).")
        return where.to(device)

    def rows(self, ids: Tensor | np.ndarray | Sequence[int]) -> Tensor:
        """Return the vectors of these ids as float32.

        Shapes:
            ids (n,) in, (n, d) out, on the device of the stored vectors.

        Raises:
            KeyError: an id that is not stored; the message names it.
        """
        return self.vectors[self.positions(ids).to(self.vectors.device)].float()

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(ids (n,), vectors (n, d) float32)`` in row order, n = size but for the last block."""
        for start in range(0, len(self), size):
            yield self.ids[start : start + size], self.vectors[start : start + size].float()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the store to a folder; a crash at any moment leaves the old version or the new one, never a mixture.

        The files are ``.npy`` without pickle, and Parquet for names. ``store.json`` lists them with their checksums and
        is replaced last.

        Raises:
            InUse: another process writes a store to this folder.
            OSError: no room, or the folder cannot be written; the store that was there is kept.
        """
        with locked_folder(folder, "choose another folder"):
            self.write(Path(folder))

    def write(self, folder: Path) -> None:
        """`save` for a caller that holds the lock of the folder."""
        record = {
            "format": FORMAT,
            "space": self.space,
            "key": self.key,
            "version": self.version,
            "dtype": str(self.vectors.dtype)[6:],
            "shape": list(self.vectors.shape),
        }
        with Transaction(folder / MANIFEST, record) as files:
            self._write_vectors(files.path("vectors", ".npy"))
            with open(files.path("ids", ".npy"), "wb") as file:
                np.save(file, self.ids.numpy(), allow_pickle=False)
            if self.names is not None:
                import pyarrow as pa
                import pyarrow.parquet as pq

                with open(files.path("names", ".parquet"), "wb") as file:
                    pq.write_table(pa.table({"name": pa.array(self.names, pa.string())}), file)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], mmap: bool = True) -> Store:
        """Read a saved store; with ``mmap`` the vectors stay on disk and are paged in as they are used.

        Every file is compared with its checksum first: one pass over the vectors, about a second per gigabyte. A store
        that was written before there were checksums is read, and the log says that it is unchecked.

        Raises:
            FileNotFoundError: the folder holds no finished store.
            Damaged: a file is missing, changed or damaged; a manifest that is not as `save` writes it.
            ValueError: a store of a later format.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            raise FileNotFoundError(f"{folder} holds no store ({MANIFEST} is missing).")
        return read_published(folder / MANIFEST, REMEDY, lambda manifest: cls._read(manifest, mmap))

    @classmethod
    def _read(cls, manifest: Manifest, mmap: bool) -> Store:
        folder, record = manifest.path.parent, manifest.record

        def value(name: str, kind: type) -> Any:
            return value_of(record, name, kind, manifest.path, REMEDY)

        written = value("format", int)
        if written > FORMAT or (written < FORMAT and manifest.checked):
            raise ValueError(f"{folder}: store format {written}, this version reads up to {FORMAT}.")
        if not manifest.checked:
            if written != UNCHECKED:
                raise Damaged(f"{manifest.path} has no checksum. {REMEDY[0].upper()}{REMEDY[1:]}.")
            logger.warning("%s was written without checksums: read as it is, unchecked. Save it again.", folder)
        dtype, shape = value("dtype", str), value("shape", list)
        if dtype not in [str(each)[6:] for each in FLOATS]:
            raise Damaged(f"{manifest.path}: 'dtype' is {dtype!r:.60}. {REMEDY[0].upper()}{REMEDY[1:]}.")
        path = manifest.verified("vectors", REMEDY)
        array = load_npy(path, mmap_mode="c" if mmap else None)
        vectors = torch.from_numpy(array)
        if dtype == "bfloat16" and array.dtype == np.int16:
            vectors = vectors.view(torch.bfloat16)
        if list(vectors.shape) != shape or str(vectors.dtype)[6:] != dtype:
            raise Damaged(
                f"{path} holds {list(vectors.shape)} {str(vectors.dtype)[6:]}, {MANIFEST} says {shape} {dtype}. "
                f"{REMEDY[0].upper()}{REMEDY[1:]}."
            )
        names = None
        if "names" in manifest.files:
            names = read_names(manifest.verified("names", REMEDY))
        ids = load_npy(manifest.verified("ids", REMEDY))
        counted = ids.ndim == 1 and bool((ids == np.arange(len(ids))).all())
        ours = value("space", str), value("key", str), value("version", int)
        try:
            return cls(vectors, None if counted and len(ids) == len(vectors) else ids, *ours, names)
        except ValueError as error:
            raise Damaged(f"{manifest.path}: {error} {REMEDY[0].upper()}{REMEDY[1:]}.") from error

    def _write_vectors(self, path: Path) -> None:
        """Write block by block, so that saving a memory-mapped store does not load it."""
        # numpy has no bfloat16: its bits are stored as int16 and the record says what they are
        dtype = torch.int16 if self.vectors.dtype == torch.bfloat16 else self.vectors.dtype
        kind = np.dtype(str(dtype)[6:])
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file,
                {
                    "descr": np.lib.format.dtype_to_descr(kind),
                    "fortran_order": False,
                    "shape": tuple(self.vectors.shape),
                },
            )
            for start in range(0, len(self), self._rows_per(SCAN_BYTES)):
                block = self.vectors[start : start + self._rows_per(SCAN_BYTES)].cpu().contiguous()
                file.write(block.view(dtype).numpy().data)

    def _rows_per(self, size: int) -> int:
        return max(1, size // max(1, self.dim * self.vectors.element_size()))

    def _check_ids(self) -> None:
        rows = len(self.vectors)
        if self.ids.ndim != 1 or self.ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
            raise ValueError(
                f"Store wants ids of shape (M,) and an integer type, got {tuple(self.ids.shape)} {self.ids.dtype}."
            )
        if len(self.ids) != rows:
            raise ValueError(f"Store got {rows} vectors and {len(self.ids)} ids; each vector needs one id.")
        if self.names is not None and len(self.names) != rows:
            raise ValueError(f"Store got {rows} vectors and {len(self.names)} names; each vector needs one name.")
        if self.names is not None and len(set(self.names)) < rows:
            first: dict[str, int] = {}
            row = next(row for row, name in enumerate(self.names) if first.setdefault(name, row) != row)
            name = self.names[row]
            raise ValueError(
                f"Store got the name {name!r:.80} twice (rows {first[name]} and {row}); it must be unique."
            )
        self.ids = self.ids.long()
        if self.counted or rows == 0:
            return
        self._sorted, self._order = self.ids.sort()
        if self._sorted[0] < 0:
            raise ValueError(f"Store got the negative id {int(self._sorted[0])}; -1 means 'nobody', so ids start at 0.")
        repeated = self._sorted[1:] == self._sorted[:-1]
        if repeated.any():
            twice = int(self._sorted[1:][repeated][0])
            first, second = (self.ids == twice).nonzero().flatten()[:2].tolist()
            raise ValueError(f"Store got the id {twice} twice (rows {first} and {second}); ids must be unique.")

    def _check_finite(self) -> None:
        step = self._rows_per(SCAN_BYTES)
        for start in range(0, len(self), step):
            block = self.vectors[start : start + step]
            if torch.isfinite(block.sum(dtype=torch.float32)):
                continue  # one sum finds almost every clean block at the speed of memory; the rest is looked at closely
            bad = ~torch.isfinite(block).all(dim=1)
            if bad.any():
                row = start + int(bad.nonzero()[0])
                raise ValueError(
                    f"Store of space {self.space!r}: row {row} (id {int(self.ids[row])}) holds NaN or infinity. "
                    "Encode it again or leave it out."
                )


def open_vectors(vectors: Vectors) -> Tensor:
    """Return (M, d) vectors as a tensor without copying them; a path is memory-mapped.

    Raises:
        TypeError: neither a tensor, an array nor a path.
        ValueError: not two-dimensional, not floating, or a file that is not a ``.npy`` array.
    """
    origin = "vectors"
    if isinstance(vectors, (str, os.PathLike)):
        origin = os.fspath(vectors)
        vectors = load_npy(Path(origin), mmap_mode="c")  # copy-on-write: a write could never reach the file
    if isinstance(vectors, np.ndarray):
        if vectors.dtype.kind != "f" or vectors.dtype.itemsize > 8:
            raise ValueError(f"{origin}: expected float16, float32 or float64 values, got {vectors.dtype}.")
        if not vectors.dtype.isnative or any(stride < 0 for stride in vectors.strides):
            vectors = vectors.astype(vectors.dtype.newbyteorder("="), order="C")
        with warnings.catch_warnings():
            # torch warns that read-only memory could be written through the tensor; nothing here writes
            warnings.simplefilter("ignore", UserWarning)
            vectors = torch.from_numpy(vectors)
    if not isinstance(vectors, Tensor):
        raise TypeError(f"Store wants a tensor, an array or the path of a .npy file, got {type(vectors).__name__}.")
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise ValueError(f"{origin}: expected (M, d) vectors, got shape {tuple(vectors.shape)}.")
    if vectors.dtype not in FLOATS:
        raise ValueError(f"{origin}: expected floating vectors, got {vectors.dtype}.")
    return vectors.detach()


def load_npy(path: Path, mmap_mode: Literal["r", "c"] | None = None) -> np.ndarray:
    """Read a ``.npy`` array of numbers; nothing in it is unpickled.

    Raises:
        FileNotFoundError: there is none.
        ValueError: not a whole array of numbers.
    """
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is no whole .npy array of numbers: {error!s:.200}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays; a single .npy array is needed.")
    return array


def read_names(path: Path) -> list[str]:
    """Read the names of a store.

    Raises:
        Damaged: not a Parquet file with a column of names, none of them missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        column = pq.read_table(path, columns=["name"])["name"]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise Damaged(f"{path} does not hold the names of a store ({error!s:.100}). {REMEDY.capitalize()}.") from error
    if not pa.types.is_string(column.type) or column.null_count:
        raise Damaged(f"{path} holds names that are missing or not text. {REMEDY.capitalize()}.")
    return column.to_pylist()
