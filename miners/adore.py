"""ADORE: the live top of a frozen index as positives and negatives, every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from miners.base import PoolMiner
from miners.pool import NOBODY, Block, Items, NegativePool, among
from miners.ragged import Ragged

if TYPE_CHECKING:
    from miners.index import Index
    from miners.store import Store


class ADORE(PoolMiner):
    """Search a frozen index with the current anchors; what comes back is the pool.

    Documents do not move, so the list that an anchor retrieves now is the list that it is wrong about now: negatives
    are never stale. Known positives in the list become the pool's positives, everything else its negatives, and both
    keep their place in the list, by which `LambdaRank` weighs pairs. Vectors are read from the frozen store, also where
    the index is compressed.

    Args:
        num_negatives: documents retrieved for an anchor (n).
        missing_positives: known positives that were not retrieved are appended behind the list, all of them, with the
            places n + 1, n + 2, ...: "if_none" where none was retrieved, "always", or "never" (an anchor without a
            retrieved positive then costs nothing).
        positives: "known": every known id of the anchor is a positive; "own": only the positive that travels with the
            row is, and other known ones are neither positive nor negative.
        index: how the frozen store is searched: "auto" (exact), or a FAISS factory string ("IVF1024,PQ48").
        device: where, as in `miners.build_index`.
        space: which frozen store.

    Shapes:
        B anchors, P appended positives at most: positives and negatives are two views of (B, n + P) documents; slots
        that an approximate index could not fill are neither.

    Raises:
        ValueError: the pool compares by cosine, and the store's vectors are not of length 1.

    Source:
        ADORE, arXiv 2104.08051, section 5, and its code. Differs: slots that the index leaves empty are dropped, where
        the code reads the last document; an anchor whose list holds positives only costs nothing, where it fails.
    """

    needs = frozenset({"frozen", "embeddings"})
    provides = frozenset({"rank"})

    def __init__(
        self,
        num_negatives: int = 200,
        missing_positives: Literal["if_none", "always", "never"] = "if_none",
        positives: Literal["known", "own"] = "known",
        index: str = "auto",
        device: str = "auto",
        space: str = "document",
    ) -> None:
        super().__init__()
        if num_negatives < 1:
            raise ValueError(f"ADORE(num_negatives={num_negatives}): wants at least 1.")
        if missing_positives not in ("if_none", "always", "never"):
            raise ValueError(f"ADORE(missing_positives='{missing_positives}'): wants 'if_none', 'always' or 'never'.")
        if positives not in ("known", "own"):
            raise ValueError(f"ADORE(positives='{positives}'): wants 'known' or 'own'.")
        self.num_negatives = num_negatives
        self.missing_positives = missing_positives
        self.positives = positives
        self.index = index
        self.device = device
        self.space = space
        self._index: Index | None = None
        self._unit = False  # the store's vectors have length 1

    def refresh(self, stores: Mapping[str, Store]) -> None:
        """Take the frozen store, and build its index; a store that is held already is left alone."""
        store = stores.get(self.space)
        if store is None or (self._index is not None and self._index.store is store):
            return
        from miners.index import build_index

        self._index = build_index(self.index, store, self.device)
        self._unit = all(bool(((vectors.norm(dim=1) - 1).abs() < 1e-2).all()) for _, vectors in store.blocks(65536))

    def forward(self, pool: NegativePool) -> NegativePool:
        index = self._ready(pool)
        anchors = pool.anchors.unit if pool.similarity == "cosine" else pool.anchors._need("embeddings")
        _, found = index.search(anchors.detach(), min(self.num_negatives, index.size))  # (B, n)
        lists, known = self._lists(pool)
        positive = among(found, lists)
        appended = self._missing(found, positive, lists)  # (B, P)
        ids = torch.cat([found, appended], dim=1)  # (B, n + P)
        positive = torch.cat([positive, appended != NOBODY], dim=1)
        rank = torch.arange(1, ids.shape[1] + 1, device=ids.device).expand_as(ids)
        items = Items(self._vectors(index.store, ids, anchors), ids, space=self.space)
        negative = (ids != NOBODY) & ~positive & ~among(ids, known)
        pool = pool.with_positives(Block(items, "positive", usable=positive, rank=rank))
        return pool.add(Block(items, "mined", usable=negative, rank=rank))

    def _lists(self, pool: NegativePool) -> tuple[Ragged, Ragged]:
        """Ids that are an anchor's positives, and ids that must not be its negatives."""
        own = pool.positives.items.ids
        assert own is not None
        rows, columns = pool.usable_of(pool.positives).nonzero(as_tuple=True)
        own_ids = own[rows, columns] if own.ndim == 2 else own[columns]
        known = pool.known or Ragged.empty(len(pool), own.device)
        every = torch.stack([torch.cat([rows, known.row_of_value]), torch.cat([own_ids, known.values])], dim=1)
        every = every[every[:, 1] != NOBODY].unique(dim=0)
        both = Ragged.from_pairs(every[:, 0], every[:, 1], len(pool))
        return (both if self.positives == "known" else Ragged.from_pairs(rows, own_ids, len(pool))), both

    def _missing(self, found: Tensor, positive: Tensor, lists: Ragged) -> Tensor:
        """(B, P) positives to append, -1 behind them."""
        wanted = lists.padded(NOBODY)  # (B, P)
        if self.missing_positives == "never" or not wanted.shape[1]:
            return wanted[:, :0]
        rows, columns = (found != NOBODY).nonzero(as_tuple=True)
        absent = (wanted != NOBODY) & ~among(wanted, Ragged.from_pairs(rows, found[rows, columns], len(found)))
        if self.missing_positives == "if_none":
            absent &= ~positive.any(1, keepdim=True)
        rows, columns = absent.nonzero(as_tuple=True)
        return Ragged.from_pairs(rows, wanted[rows, columns], len(found)).padded(NOBODY)

    def _vectors(self, store: Store, ids: Tensor, like: Tensor) -> Tensor:
        """(B, N, d) vectors from the store; an empty slot gets anybody's, which is masked."""
        there = ids != NOBODY
        try:
            vectors = store.rows(torch.where(there, ids, int(store.ids[0])).flatten())
        except KeyError as error:
            raise ValueError(
                f"ADORE appends known positives that are not in its frozen store: {error.args[0]}"
            ) from error
        return vectors.view(*ids.shape, -1).to(like.device, torch.promote_types(like.dtype, torch.float32))

    def _ready(self, pool: NegativePool) -> Index:
        if self._index is None:
            raise RuntimeError(
                f"ADORE has no frozen store of space '{self.space}': give the module "
                f"frozen={{'{self.space}': store}}, or call refresh(stores)."
            )
        if pool.positives.items.space != self.space:
            raise ValueError(
                f"ADORE searches space '{self.space}', and this chain's positives are of space "
                f"'{pool.positives.items.space}'. Set ADORE's space, or leave the direction '{pool.direction}' out."
            )
        if pool.similarity == "cosine" and not self._unit:
            raise ValueError(
                "ADORE compares by cosine, and the frozen store's vectors are not of length 1, so that its index would "
                "search by something else. Normalise them before they are stored, or set similarity: dot."
            )
        return self._index
