"""Negatives from the neighbourhood of the positive, found once from fixed vectors."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from miners import neighbourhoods
from miners.base import Draw, NegativeSource, TrainingTable
from miners.draws import RowGenerator
from miners.neighbourhoods import Neighbourhoods
from miners.ragged import Ragged, pairs_in
from miners.store import Store

log = logging.getLogger(__name__)

REDRAWS = 3
SPARE = 8  # uniform candidates in reserve beyond those a row asks for, since some will be known positives
HOW = (*neighbourhoods.HOW, "reserve")
OFTEN, ENOUGH = 0.05, 1000  # share of draws without a neighbour that is worth a warning, and draws before it may come


class ClusterNegatives(NegativeSource):
    """Draw documents that a frozen encoder puts near the row's positive; the neighbourhoods are found once.

    A share ``mix`` of the draws is uniform over all documents: with neighbours alone a model never learns to reject
    what is far away. A document is excluded by its id, never by its vector, so that equal texts stand in for each
    other; known positives of the row are drawn again, `REDRAWS` times, then uniformly.

    Args:
        embeddings: a `Store` of the documents, or its folder as ``hardneg predict`` writes it ("~" and variables such
            as $HARDNEG_DATA are filled in); documents without a vector are always replaced uniformly. None: taken from
            the first refresh, which is then no fixed guide any more but the model itself.
        labels: a cluster for each document, -1 for none, in place of embeddings.
        num_negatives: per row and epoch.
        kind: "clusters" (k-means; sizes are uneven) or "nearest" (each document's own list).
        size: documents of a neighbourhood: n / size clusters, or the ``size`` nearest. 16 to 256 is usual.
        mix: share of uniform draws, in [0, 1].
        shuffled: the control: neighbourhoods of the same sizes, of documents put together at random.
        seed: of the clusters' starts and of shuffling.
        index: finds the nearest; as in `miners.build_index`.

    Attributes:
        counts: draws so far by how they came about: "neighbour", "uniform", "alone" (uniform since the positive has no
            neighbour) and "reserve" (uniform since all neighbours were known positives).

    Shapes:
        n + clusters integers, or n x size for "nearest"; per draw some B x 5 num_negatives.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: numbers out of range; embeddings and labels at once, or of another data set.

    Source:
        LEMON, arXiv 2203.04703, whose body could not be read: after its abstract. Differs: a share of uniform draws,
        nearest neighbours, the shuffled control. With lexical vectors the control was as good; see
        docs/knowledge_graphs.md.
    """

    def __init__(
        self,
        embeddings: str | Path | Store | None = None,
        labels: Sequence[int] | Tensor | None = None,
        num_negatives: int = 5,
        kind: Literal["clusters", "nearest"] = "clusters",
        size: int = 64,
        mix: float = 0.5,
        shuffled: bool = False,
        seed: int = 0,
        index: str = "auto",
    ) -> None:
        if num_negatives < 1:
            raise ValueError(f"ClusterNegatives(num_negatives={num_negatives}): wants at least 1.")
        if kind not in ("clusters", "nearest"):
            raise ValueError(f"ClusterNegatives(kind='{kind}'): wants 'clusters' or 'nearest'.")
        if size < 1:
            raise ValueError(f"ClusterNegatives(size={size}): wants at least 1.")
        if not 0 <= mix <= 1:
            raise ValueError(f"ClusterNegatives(mix={mix}): a share, so 0 <= mix <= 1.")
        if embeddings is not None and labels is not None:
            raise ValueError("ClusterNegatives has embeddings and labels: give one of them.")
        if isinstance(embeddings, str | Path):
            embeddings = Path(os.path.expandvars(embeddings)).expanduser()
            if not embeddings.exists():
                raise FileNotFoundError(
                    f"ClusterNegatives: no store at '{embeddings}'. Make one with `hardneg predict`."
                )
        self.embeddings = embeddings
        self.labels = None if labels is None else torch.as_tensor(labels)
        self.num_negatives = num_negatives
        self.kind = kind
        self.size = size
        self.mix = mix
        self.shuffled = shuffled
        self.seed = seed
        self.index = index
        self.counts: Counter[str] = Counter()
        self.near: Neighbourhoods | None = None
        self._table: TrainingTable | None = None
        self._warned = False

    def attach(self, table: TrainingTable) -> None:
        self._table = table
        if self.labels is not None:
            documents = table.num_documents
            if documents is not None and len(self.labels) != documents:
                raise ValueError(
                    f"ClusterNegatives has labels of {len(self.labels)} documents, the data set {documents}."
                )
            self._use(Neighbourhoods.from_labels(self.labels))
        elif self.embeddings is not None:
            store = self.embeddings if isinstance(self.embeddings, Store) else Store.load(self.embeddings)
            self._use(self._found(store, table))

    def refresh(self, stores: Mapping[str, Store]) -> None:
        if self.near is None and self._table is not None and self.space in stores:
            self._use(self._found(stores[self.space], self._table))

    def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
        if self.near is None or self._table is None:
            raise RuntimeError(
                "ClusterNegatives has no neighbourhoods yet. Set embeddings or labels, or add the callback "
                "RefreshNegatives, which hands over the model's own."
            )
        near, wanted = self.near, self.num_negatives
        usual = wanted * (1 + REDRAWS)
        dice = generator.uniform(rows, 2 * (usual + wanted + SPARE)).view(len(rows), 2, -1)
        coin, share = dice[:, 0].clone(), dice[:, 1]  # (B, usual + reserve)
        coin[:, usual:] = -1  # the reserve is uniform
        ids, how = near.draw(positives[:, None].expand_as(coin), coin, share, self.mix)
        how[:, usual:] = HOW.index("reserve")

        known = self._table.positives.select(rows)
        good = ~pairs_in(torch.arange(len(rows))[:, None], ids, known)
        good &= (ids != positives[:, None]) & ~_repeated(ids)
        order = (~good).long().argsort(dim=1, stable=True)[:, :wanted]  # the first good ones, in their order
        ids, how, good = ids.gather(1, order), how.gather(1, order), good.gather(1, order)
        self._count(how[good])
        return Draw(torch.where(good, ids, -1), good, "cluster")

    def _use(self, near: Neighbourhoods) -> None:
        self.near = near.shuffled(self.seed) if self.shuffled else near
        sizes = near.others[near.group >= 0] + 1
        log.info(
            "ClusterNegatives: %d of %d documents have a neighbourhood, of %d in the median (%d to %d)%s",
            len(sizes),
            len(near),
            int(sizes.median()) if len(sizes) else 0,
            int(sizes.min()) if len(sizes) else 0,
            int(sizes.max()) if len(sizes) else 0,
            "; shuffled" if self.shuffled else "",
        )

    def _found(self, store: Store, table: TrainingTable) -> Neighbourhoods:
        """Neighbourhoods of the documents that have a vector; the others have none."""
        at = _positions(store, table)
        documents = max(table.num_documents or 0, int(at.max()) + 1, _highest(table.positives.values) + 1)
        vectors = torch.cat([part for _, part in store.blocks(4096)])
        if self.kind == "nearest":
            small = Neighbourhoods.nearest(vectors, min(self.size, len(at) - 1), self.index)
        else:
            small = Neighbourhoods.clusters(vectors, min(max(2, round(len(at) / self.size)), len(at)), self.seed)
        group, place = torch.full((documents,), -1), torch.full((documents,), -1)
        group[at], place[at] = small.group, small.place
        return Neighbourhoods(Ragged(small.members.offsets, at[small.members.values]), group, place)

    def _count(self, how: Tensor) -> None:
        for name, number in zip(HOW, torch.bincount(how, minlength=len(HOW)).tolist(), strict=True):
            self.counts[name] += number
        total = sum(self.counts.values())
        if not self._warned and total >= ENOUGH and self.counts["alone"] > OFTEN * total:
            self._warned = True
            log.warning(
                "ClusterNegatives: %.0f %% of the draws are uniform because the positive is alone in its cluster. Set "
                "size higher, or kind='nearest', where nobody is alone.",
                100 * self.counts["alone"] / total,
            )


def _positions(store: Store, table: TrainingTable) -> Tensor:
    """(m,) document of each vector: by name where both have names, by id otherwise."""
    documents = table.num_documents
    if store.names is None or table.document_names is None:
        if documents is not None and int(store.ids.max()) >= documents:
            raise ValueError(
                f"ClusterNegatives: the store has a vector of document {int(store.ids.max())}, and the data set "
                f"{documents} documents. It was made of another one; encode this one with `hardneg predict`."
            )
        return store.ids
    place = {name: at for at, name in enumerate(table.document_names)}
    unknown = next((name for name in store.names if name not in place), None)
    if unknown is not None:
        raise ValueError(
            f"ClusterNegatives: the store has a vector of '{unknown}', which is not in this data set. It was made of "
            "another one; encode this one with `hardneg predict`."
        )
    return torch.tensor([place[name] for name in store.names])


def _highest(values: Tensor) -> int:
    return int(values.max()) if len(values) else 0


def _repeated(ids: Tensor) -> Tensor:
    """(B, N) bool: the same id stands further left in the row."""
    ranked, order = ids.sort(dim=1, stable=True)
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    return torch.zeros_like(again).scatter_(1, order, again)
