"""Batches in which no two rows share an anchor or a positive."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from miners.base import BatchMiner, Shuffled, TrainingTable
from miners.pool import NOBODY, Items

if TYPE_CHECKING:
    from miners.store import Store

log = logging.getLogger(__name__)


class NoDuplicates(BatchMiner):
    """Move rows that share an anchor or a known positive with an earlier row of their batch to a later batch.

    Works on another batch miner's order, of which it changes as little as it can. Every row stays in the epoch, so that
    ``len`` holds; rows for which no batch is free of their like (one text in more than one batch's share of all rows)
    stay where they are and are logged: the pool masks them anyway.

    Args:
        inner: whose order to repair; None shuffles. Its batch_size, drop_last and seed are set to this miner's.
        batch_size, drop_last, seed: as in `BatchMiner`.
        rounds: attempts at moving.
    """

    def __init__(
        self,
        inner: BatchMiner | None = None,
        batch_size: int = 32,
        drop_last: bool = False,
        seed: int = 0,
        rounds: int = 50,
    ) -> None:
        super().__init__(batch_size, drop_last, seed)
        self.inner = Shuffled() if inner is None else inner
        self.rounds = rounds
        self._keys: tuple[Tensor, Tensor] | None = None  # (row, key) pairs: rows with an equal key may not meet

    def attach(self, table: TrainingTable) -> None:
        super().attach(table)
        self.inner.batch_size, self.inner.drop_last, self.inner.seed = self.batch_size, self.drop_last, self.seed
        self.inner.attach(table)
        self._keys = _keys_of(table)

    def arrange(self, rows: Tensor, epoch: int) -> Tensor:
        order = self.inner.arrange(rows, epoch)
        size, n = self._global_batch_size(), len(order)
        repeated = self._repeated(order, size)
        for attempt in range(self.rounds):
            if not repeated.any():
                return order
            place = torch.arange(n)
            # one batch further, or several where that did not help; round the end, since earlier batches may be free
            place = torch.where(repeated, (place + size * (1 + attempt // 4)) % n, place)
            order = order[torch.argsort(place, stable=True)]
            repeated = self._repeated(order, size)
        log.warning(
            "NoDuplicates: %d of %d rows share an anchor or a positive with a row of their batch, and no batch is free "
            "of their like; a smaller batch_size would be. The pool masks them as negatives.",
            int(repeated.sum()),
            n,
        )
        return order

    def refresh(self, stores: Mapping[str, Store]) -> None:
        self.inner.refresh(stores)
        super().refresh(stores)

    def observe(self, rows: Tensor, anchors: Items) -> None:
        self.inner.observe(rows, anchors)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"inner": self.inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.inner.load_state_dict(state["inner"])

    def _repeated(self, order: Tensor, size: int) -> Tensor:
        """(n,) bool: an earlier row of the same batch has one of this row's keys."""
        assert self._keys is not None
        row, key = self._keys
        place = torch.full((len(self._attached()),), -1, dtype=torch.long)
        place[order] = torch.arange(len(order))
        at = place[row]
        row, key, at = row[at >= 0], key[at >= 0], at[at >= 0]
        meeting = at // size * (int(key.max()) + 1 if len(key) else 1) + key
        sequence = torch.argsort(at, stable=True)
        sequence = sequence[torch.argsort(meeting[sequence], stable=True)]
        again = torch.zeros(len(at), dtype=torch.bool)
        again[1:] = meeting[sequence][1:] == meeting[sequence][:-1]
        repeated = torch.zeros(len(order), dtype=torch.bool)
        repeated[at[sequence[again]]] = True
        return repeated


def _keys_of(table: TrainingTable) -> tuple[Tensor, Tensor]:
    """(row, key) pairs over anchors, their content, known positives and their content; equal keys may not meet."""
    rows = torch.arange(len(table))
    kinds = [(rows, table.anchors)]
    if table.anchor_content is not None:
        kinds.append((rows, table.anchor_content))
    owners, documents = table.positives.row_of_value, table.positives.values
    kinds.append((owners, documents))
    if table.document_content is not None:
        kinds.append((owners, table.document_content[documents]))
    pairs, base = [], 0
    for owner, value in kinds:
        named = value != NOBODY
        codes = value[named].unique(return_inverse=True)[1]
        pairs.append(torch.stack([owner[named], codes + base], dim=1))
        base += int(codes.max()) + 1 if len(codes) else 0
    both = torch.cat(pairs).unique(dim=0)  # a row never repeats itself
    return both[:, 0], both[:, 1]
