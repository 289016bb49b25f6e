"""The vectors of a frozen guide: made once, and where a folder is given, kept from run to run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from hardneg.modules.gather import added
from miners.base import process_count, process_rank
from miners.store import Store
from miners.transaction import aside_of, locked, publish_folder, write_json

SPENT = "spent.json"


def kept_store(
    folder: Path, fingerprint: str, ids: Tensor, texts: Sequence[str], space: str, make: Callable[[], Store]
) -> tuple[Store, float]:
    """Read the vectors that this guide once gave these texts, or make and keep them.

    The place is named by a hash of the guide, the ids and the texts, so that a changed one never meets old vectors.

    Args:
        folder: where vectors are kept; several runs at a time may share it.
        fingerprint: of the guide.
        ids: (N,) int64.
        texts: N.
        space: of the ids.
        make: encodes them; called by all processes or by none.

    Returns:
        The store, and the seconds that an earlier run spent on it, 0 if it was made now.

    Raises:
        OSError: the folder cannot be written.
        Damaged: the kept vectors were changed or damaged; the message names the file.
    """
    place = folder / f"{space}-{_name(fingerprint, ids, texts)}"
    there = torch.tensor(int((place / SPENT).exists()), device="cuda" if _on_gpu() else "cpu")
    if int(added(there)) == process_count():
        return Store.load(place), float(json.loads((place / SPENT).read_text(encoding="utf-8"))["seconds"])
    began = time.perf_counter()
    store = make()
    if process_rank() == 0:
        with locked(place, "choose another folder", wait=True):
            if not (place / SPENT).exists():  # another run may have been faster with the same vectors
                part = aside_of(place)
                store.save(part)
                write_json(part / SPENT, {"seconds": time.perf_counter() - began})
                publish_folder(part, place)
    return store, 0.0


def _name(fingerprint: str, ids: Tensor, texts: Sequence[str]) -> str:
    digest = blake2b(f"{fingerprint} {len(ids)}".encode(), digest_size=8)
    digest.update(ids.cpu().numpy().tobytes())
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _on_gpu() -> bool:
    """Whether processes talk in CUDA tensors."""
    return process_count() > 1 and torch.distributed.get_backend() == "nccl"
