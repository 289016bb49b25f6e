"""A static bank: every vector of a frozen store as a negative of every anchor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from miners.base import PoolMiner
from miners.pool import Block, Items, NegativePool

if TYPE_CHECKING:
    from miners.store import Store

GUIDED = "guide/"
"""Before the name of a space: the guide's vectors of the things in it, among the stores that a refresh hands over."""


class StaticBank(PoolMiner):
    """Push each anchor away from the whole of a frozen store, not only from what its batch brings along.

    The side that is searched does not move, so its vectors are computed once and a softmax over all of them costs one
    matrix product. Candidates are scored ``chunk_size`` at a time, and once more in backward: a step holds one chunk of
    scores, however long the bank, and a memory-mapped bank is read from its file chunk by chunk. The positive is
    addressed by its id, so another row's copy of it is nobody's negative. Stands without `InBatch`; miners that judge
    one candidate at a time (`GIST`, `PositiveAware`, `HardnessConcentration`, ...) may follow.

    Args:
        chunk_size: candidates scored at a time; null scores all at once, for miners and losses that want them so.
        num_negatives: so many candidates, drawn anew for each anchor and step, uniformly and without replacement from
            all but its positive; null, or as many as there are, takes the whole bank. Drawing holds a number for each
            anchor of all processes and row of the bank.
        space: which store; null = that of the positives.
        keep_on_device: move the bank to the anchors' device after the first step; false moves chunk by chunk.

    Shapes:
        B anchors, N rows of the store, or K = num_negatives: adds one block of (B, N), or of (B, K).

    Raises:
        RuntimeError: no store of that space.
        ValueError: a store of another width than the anchors.

    Source:
        SPN4CIR, arXiv 2404.11317, section 3.4, and its code: `neg_num`. Differs: scored in chunks.
    """

    needs = frozenset({"frozen", "embeddings"})

    def __init__(
        self,
        chunk_size: int | None = 8192,
        num_negatives: int | None = None,
        space: str | None = None,
        keep_on_device: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("chunk_size", chunk_size), ("num_negatives", num_negatives)):
            if value is not None and value < 1:
                raise ValueError(f"StaticBank({name}={value}): wants at least 1, or null.")
        self.chunk_size = chunk_size
        self.num_negatives = num_negatives
        self.space = space
        self.keep_on_device = keep_on_device
        self._stores: dict[str, Store] = {}
        self._banks: dict[str, Items] = {}

    def refresh(self, stores: Mapping[str, Store]) -> None:
        """Take the frozen stores, and the guide's of the same things, under `GUIDED` + space."""
        self._stores = self._stores | dict(stores)
        self._banks = {
            space: Items(store.vectors, store.ids, guide=_guide(self._stores, space, store), space=space)
            for space, store in self._stores.items()
            if not space.startswith(GUIDED)
        }

    def forward(self, pool: NegativePool) -> NegativePool:
        space = self.space or pool.positives.items.space
        bank = self._bank(space, pool)
        if self.num_negatives is None or self.num_negatives >= len(bank) - 1:
            return pool.add(Block(bank, "bank", chunk_size=self.chunk_size))
        columns = self._drawn(pool, space)
        return pool.add(Block(bank.map(lambda part: part[columns.to(part.device)]).to(columns.device), "bank"))

    def commit(self, pool: NegativePool) -> None:
        """Move the bank to where the anchors are, once the first step has shown that."""
        device = pool.anchors._need("embeddings").device
        space = self.space or pool.positives.items.space
        if self.keep_on_device and self._banks[space]._need("embeddings").device != device:
            self._banks[space] = self._banks[space].to(device)

    def _bank(self, space: str, pool: NegativePool) -> Items:
        anchors = pool.anchors._need("embeddings")
        if space not in self._stores:
            raise RuntimeError(
                f"StaticBank has no frozen store of space '{space}' (it has {sorted(self._stores) or 'none'}): give "
                "the module a frozen store, or call refresh(stores)."
            )
        store = self._stores[space]
        if store.dim != anchors.shape[1]:
            raise ValueError(
                f"StaticBank: the bank of space '{space}' has vectors of {store.dim} numbers, the anchors of "
                f"{anchors.shape[1]}. It was made by another encoder: encode it again with this one (hardneg predict)."
            )
        return self._banks[space]

    def _drawn(self, pool: NegativePool, space: str) -> Tensor:
        """(B, K) rows of the bank, none the row of the anchor's own positive."""
        ids = pool.positives.items.ids
        if ids is None or ids.ndim != 2 or ids.shape[1] != 1:
            raise ValueError("StaticBank(num_negatives=...) draws around one positive of each anchor with an id.")
        store, k = self._stores[space], self.num_negatives
        assert k is not None
        others = len(store) - 1

        def sample(rows: int, generator: torch.Generator) -> Tensor:
            return torch.rand(rows, others, generator=generator).topk(k, dim=1).indices

        columns = pool.context.draw(sample, len(pool), stream=7).to(ids.device)
        return columns + (columns >= store.positions(ids)).long()


def _guide(stores: Mapping[str, Store], space: str, store: Store) -> Tensor | None:
    """(N, g) the guide's vectors of the things in a store."""
    return stores[GUIDED + space].rows(store.ids) if GUIDED + space in stores else None
