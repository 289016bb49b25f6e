"""Training sets of insightface: ``train.rec`` and ``train.idx``, as MS1MV2 and CASIA-WebFace come.

RecordIO is a row of records: a magic number, a length, the record, padding to four bytes. In such a set, record 0 says
where identities begin; pictures lie before, one record each, and an identity's record says which pictures are its own.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAGIC = 0xCED7230A
HEADER = struct.Struct("<IfQQ")  # number of further labels, label, two ids
LENGTH = (1 << 29) - 1  # bits of a length; those above say that a record goes on in the next

EXACT = 1 << 24  # whole numbers that float32 holds


class RecordFiles:
    """Packed pictures of a ``.rec`` file with its ``.idx``; their names are their numbers in the index.

    Each process opens the file for itself, since workers must not share a file position.

    Raises:
        FileNotFoundError: no ``.idx`` beside it.
        ValueError: files that are none of insightface's; what is wrong and where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, BinaryIO] | None = None
        index = path.with_suffix(".idx")
        if not index.exists():
            raise FileNotFoundError(f"{path}: {index.name} is not beside it; nobody knows where its pictures begin.")
        try:
            table = np.loadtxt(index, dtype=np.int64, ndmin=2)
            keys, offsets = table.T
        except ValueError as error:
            raise ValueError(f"{index}: is no index of two numbers a line ({error}).") from None
        if len(keys) and not 0 <= keys.min() <= keys.max() <= path.stat().st_size:
            raise ValueError(
                f"{index}: record {keys.max()} is out of range for {path.name}. Download both files again."
            )
        self.offsets: NDArray[np.int64] = np.full(int(keys.max()) + 1 if len(keys) else 0, -1)
        self.offsets[keys] = offsets

    def names(self) -> list[str]:
        """Every record's, pictures or not; `identities` tells them apart."""
        return [str(key) for key in np.flatnonzero(self.offsets >= 0)]

    def read(self, name: str) -> bytes:
        return self._record(int(name))[1]

    def identities(self) -> tuple[list[str], Tensor, tuple[str, ...]]:
        """Names of the pictures, (N,) identities, and their names (the numbers of their records)."""
        head, _ = self._record(0)
        if len(head) != 2 or not np.isfinite(head).all():
            raise ValueError(f"{self.path}: record 0 does not say where identities begin: is no set of insightface.")
        first, end = (int(value) for value in head)
        if first > EXACT:
            raise ValueError(f"{self.path}: {first:,} records are more than its own numbers (float32) can count.")
        ranges = [self._record(key)[0] for key in range(first, end)]
        if not ranges or any(len(pair) != 2 for pair in ranges):
            raise ValueError(f"{self.path}: records {first} to {end - 1} are no identities with their pictures.")
        starts, ends = np.array(ranges, dtype=np.int64).T
        number = ends - starts
        if (number < 0).any() or starts.min() < 1 or ends.max() > first:
            raise ValueError(f"{self.path}: an identity's pictures lie outside of records 1 to {first - 1}.")
        within = np.arange(number.sum()) - np.repeat(number.cumsum() - number, number)
        keys = np.repeat(starts, number) + within
        labels = torch.from_numpy(np.repeat(np.arange(len(ranges)), number))
        return [str(key) for key in keys.tolist()], labels, tuple(str(key) for key in range(first, end))

    def _record(self, key: int) -> tuple[NDArray[np.float32], bytes]:
        """Labels and content of a record."""
        if not 0 <= key < len(self.offsets) or self.offsets[key] < 0:
            raise FileNotFoundError(f"{self.path}: its index has no record {key}.")
        file = self._handle()
        file.seek(int(self.offsets[key]))
        start = file.read(8)
        magic, length = struct.unpack("<II", start) if len(start) == 8 else (0, 0)
        if magic != MAGIC or length > LENGTH:
            raise ValueError(f"{self.path}: no whole record {key} begins at byte {self.offsets[key]}.")
        data = file.read(length)
        if len(data) < length or length < HEADER.size:
            raise ValueError(f"{self.path}: record {key} is cut off.")
        more, label, _, _ = HEADER.unpack_from(data)
        if more * 4 > length - HEADER.size:
            raise ValueError(f"{self.path}: record {key} says that it has {more} labels, and is too short for them.")
        labels = np.frombuffer(data, "<f4", more, HEADER.size) if more else np.array([label], np.float32)
        return labels, data[HEADER.size + 4 * more :]

    def _handle(self) -> BinaryIO:
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), self.path.open("rb")
        return self._open[1]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": None}

    def __str__(self) -> str:
        return str(self.path)
