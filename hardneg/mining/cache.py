"""Vectors that were encoded once: kept under what made them, never under a name."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hardneg.encoders.base import Encoder
from hardneg.mining.workers import MakeEncoder, Workers
from miners.offline.spool import write_chunks
from miners.store import MANIFEST, Store
from miners.transaction import NEW, Damaged, explained, locked, remove, write_file

logger = logging.getLogger(__name__)

DIGITS = 32  # of a chunk's checksum, in its name
CHUNK = 1024  # inputs encoded between two writes: what a crash costs at most

Seen = Callable[[int, Tensor], None]


class EmbeddingCache:
    """Encode a collection, or read it back if the same encoder encoded the same content before.

    The key is a hash of the encoder's fingerprint (weights, prompt, cut length), the kind, and the content of every
    input in order. Two models of one name with other weights never share vectors; neither do two prompts. A run that
    was killed goes on after its last finished chunk.

    Args:
        folder: where the vectors are kept; None keeps nothing.
        processes: encode in so many processes; 1 = in this one. The vectors are the same, as long as each process
            computes with as many threads as the single one.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, processes: int = 1) -> None:
        if processes < 1:
            raise ValueError(f"EmbeddingCache(processes={processes}): wants at least 1.")
        self.folder = None if folder is None else Path(folder)
        self.processes = processes

    def encode(
        self,
        encoder: Encoder,
        inputs: Sequence[Any],
        kind: str,
        *,
        names: Sequence[str] | None = None,
        unit: bool = True,
        batch_size: int = 64,
        make: MakeEncoder | None = None,
        seen: Seen | None = None,
    ) -> Store:
        """Give the vectors of ``inputs`` as a store, memory-mapped if the cache keeps them.

        Args:
            encoder: any encoder.
            inputs: M texts, images or windows.
            kind: "query", "document", ...: chooses the prompt.
            names: external ids; not part of the key.
            unit: scale vectors to length 1, so that inner products are cosines.
            batch_size: inputs that go through the encoder together.
            make: makes the same encoder on a device, in another process; without it all is encoded in this one.
            seen: is handed each finished chunk in order, with the row that it begins with; not called at all if the
                whole collection is in the cache.

        Raises:
            OSError: a process ended, the disk is full.
        """
        weights = encoder.fingerprint(kind)
        run = _Run(encoder, inputs, kind, unit, batch_size, weights, make if self.processes > 1 else None, seen)
        if self.folder is None:
            parts = list(run.chunks(self.processes, None))
            vectors = torch.cat(parts) if parts else torch.zeros(0, encoder.dim)
            return Store(vectors, space=kind, key=weights, names=names)
        place = self.folder / digest([weights, kind, str(unit)], inputs)
        store = self._kept(place, kind, len(inputs))
        if store is None:
            # another run may encode the same collection: its vectors are read when it has ended
            with locked(place, "choose another --cache", wait=True, also=[run.parts_of(place).name]):
                store = self._kept(place, kind, len(inputs))
                if store is None:
                    run.fill(place, self.processes)
                    store = Store.load(place)
        store.names = names
        return store

    def _kept(self, place: Path, kind: str, count: int) -> Store | None:
        """The vectors of an earlier run; None where there are none, or damaged ones, which are removed."""
        if not (place / MANIFEST).exists():
            return None
        try:
            store = Store.load(place)
            if len(store) != count:
                raise Damaged(f"{place} holds {len(store)} vectors, {count} are needed.")
        except ValueError as error:
            with locked(place, "choose another --cache", wait=True):
                remove(place)
            logger.warning("%s: cached vectors are damaged and are encoded again (%s)", kind, error)
            return None
        logger.info("%s: %d vectors read from the cache", kind, count)
        return store


@dataclass
class _Run:
    """One collection on its way through an encoder."""

    encoder: Encoder
    inputs: Sequence[Any]
    kind: str
    unit: bool
    batch_size: int
    weights: str
    make: MakeEncoder | None
    seen: Seen | None

    def parts_of(self, place: Path) -> Path:
        """Where chunks are kept until the collection is whole; parts of another size are no parts of this run."""
        return place.with_name(f"{place.name}.{CHUNK}.parts")

    def fill(self, place: Path, processes: int) -> None:
        """Encode chunk by chunk into files, then write the store and remove them; the caller holds the lock."""
        parts = self.parts_of(place)
        with explained(parts):
            parts.mkdir(parents=True, exist_ok=True)
            for half in parts.glob(f".*{NEW}"):
                half.unlink()
        for _ in self.chunks(processes, parts):
            pass
        with explained(place):
            finished = (read_chunk(parts, at, encoded_only=True) for at in self._starts())
            Store(write_chunks(finished, parts / "joined.npy"), space=self.kind, key=self.weights).save(place)
        remove(parts)

    def chunks(self, processes: int, parts: Path | None) -> Iterator[Tensor]:
        """The vectors of each chunk in order, read back where an earlier run has finished it."""
        from tqdm.auto import tqdm

        starts = self._starts()
        todo = [at for at in starts if parts is None or read_chunk(parts, at) is None]
        missing = set(todo)
        long = len(starts) > 1  # a single chunk has the encoder's own bar
        with (
            closing(self._encoded(todo, processes, None if long else self.kind)) as fresh,
            tqdm(total=len(self.inputs), desc=self.kind, disable=not long) as bar,
        ):
            for at in starts:
                if at in missing:
                    vectors = next(fresh)
                    if parts is not None:
                        write_chunk(parts, at, vectors.numpy())
                else:
                    assert parts is not None
                    vectors = torch.from_numpy(read_chunk(parts, at, encoded_only=True))
                if self.seen is not None:
                    self.seen(at, vectors)
                bar.update(len(vectors))
                yield vectors

    def _starts(self) -> range:
        return range(0, len(self.inputs), CHUNK)

    def _encoded(self, todo: Sequence[int], processes: int, progress: str | None) -> Generator[Tensor]:
        """Encode the chunks that begin at ``todo``, in this process or in others."""
        chunks = (self.inputs[at : at + CHUNK] for at in todo)
        if self.make is None or len(todo) < 2:  # a single chunk is done before a process has begun
            for chunk in chunks:
                yield self._scaled(
                    self.encoder.embed(chunk, self.kind, batch_size=self.batch_size, progress=progress).float().cpu()
                )
            return
        device = next(self.encoder.parameters(), torch.empty(0)).device.type
        with Workers(self.make, device, processes, (self.kind, self.weights)) as workers:
            for vectors in workers.encode(map(plain, chunks), self.kind, self.batch_size):
                yield self._scaled(vectors)

    def _scaled(self, vectors: Tensor) -> Tensor:
        return normalize(vectors, dim=1) if self.unit else vectors


def read_chunk(parts: Path, at: int, encoded_only: bool = False) -> Any:
    """Read a finished chunk; its name holds the checksum of its bytes.

    Args:
        parts: the folder of the chunks.
        at: row that the chunk begins with.
        encoded_only: a missing or damaged chunk is an error.

    Returns:
        (n, d) float32, or None where there is no such chunk or a damaged one, which is removed.

    Raises:
        Damaged: ``encoded_only``, and the chunk is missing or damaged.
    """
    for path in parts.glob(f"{at:012d}.*.npy"):
        content = path.read_bytes()
        if path.name == f"{at:012d}.{hashlib.sha256(content).hexdigest()[:DIGITS]}.npy":
            return np.load(io.BytesIO(content), allow_pickle=False)
        path.unlink()
        logger.warning("%s is damaged: its inputs are encoded again", path)
    if encoded_only:
        raise Damaged(f"{parts}: the chunk of row {at} is missing or damaged. Run again: it is encoded again.")
    return None


def write_chunk(parts: Path, at: int, vectors: np.ndarray) -> None:
    """Write a chunk whole or not at all, under a name with the checksum of its bytes."""
    content = io.BytesIO()
    np.save(content, vectors, allow_pickle=False)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()[:DIGITS]
    with write_file(parts / f"{at:012d}.{digest}.npy") as file:
        file.write(content.getbuffer())


def plain(chunk: Any) -> Any:
    """What may be sent to another process: a part of a memory-mapped file is read."""
    return np.array(chunk) if isinstance(chunk, np.ndarray) else chunk


def digest(words: Iterable[str], inputs: Sequence[Any]) -> str:
    """Hash words and the content of inputs: texts by their bytes, arrays by shape, type and bytes."""
    total = hashlib.sha256("\0".join(words).encode())
    if isinstance(inputs, np.ndarray | torch.Tensor):
        array = np.ascontiguousarray(inputs)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(memoryview(array).cast("B"))
        return total.hexdigest()[:32]
    for one in inputs:
        if isinstance(one, str):
            content = one.encode()
        elif isinstance(one, np.ndarray | torch.Tensor):
            content = f"{one.dtype}{tuple(one.shape)}".encode() + np.ascontiguousarray(one).tobytes()
        else:
            raise TypeError(f"The embedding cache knows texts and arrays, not {type(one).__name__}. Use folder=None.")
        total.update(len(content).to_bytes(8, "little") + content)  # the length: "ab","c" is not "a","bc"
    return total.hexdigest()[:32]
