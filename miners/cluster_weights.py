"""MEOW: a candidate that keeps falling into its anchor's cluster is probably no negative, and weighs less."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from miners.base import PoolMiner
from miners.draws import generator_for
from miners.ngame import alike_on_all
from miners.pool import NOBODY, Block, Items, NegativePool
from miners.spherical_kmeans import spherical_kmeans

if TYPE_CHECKING:
    from miners.store import Store

log = logging.getLogger(__name__)


class ClusterWeights(PoolMiner):
    """Weigh each negative by the share of M clusterings that keep it apart from its anchor; never apart = masked.

    ``g = 1 - (number of clusterings in which both are in one cluster) / M``. The positive stays in the denominator with
    weight 1, so that the loss is never below 0. What a refresh hands over is clustered anew
    (`hardneg.callbacks.RefreshNegatives`); before the first one, and for what no store holds, weights are 1.

    It removes what is hardest, the opposite of `NGAME`: classes gain, the retrieval of single things loses. Few
    clusters remove more. Where labels are known, the pool's own mask of labels is better.

    Put it behind every miner that adds a block, and before `HardnessConcentration`, which normalises.

    Args:
        num_clusters: K of each clustering, each at most a fifth of what is clustered. The paper's, in the hundreds, are
            nearly no weights at all; 10 and 30 gained most where it was tried on 4,000 papers.
        space: of the stores that are handed over, the one that is clustered; None = each of them. An anchor of another
            space is in the cluster of its positive.
        prototype_weight: of a second loss that pulls each anchor to its cluster's centre, away from the other centres;
            0 leaves it out. It harmed where it was tried.
        prototype_temperature: of that loss; None = the pool's.
        shuffled: deal the clusters out at random: a control, which removes as much and knows nothing.
        seed: of the rows that centres start from.

    Shapes:
        B anchors, N candidates, M clusterings. ``usable`` and ``log_weight`` (B, N) change; synthetic blocks do not.

    Raises:
        ValueError: numbers out of range; at a refresh, more clusters than a fifth of the things, or a space that is not
            among the stores.

    Source:
        MEOW, SDM 2023, and arXiv 2212.13847, and their code. Differs: g is divided by M and the positive is in the
        denominator, without which the loss has no lower bound; clusters are as old as the last refresh, not made at
        each step; one temperature for all prototypes (the code's are inverted, see ``tests/oracles/meow.py``).
    """

    def __init__(
        self,
        num_clusters: Sequence[int] = (10, 30),
        space: str | None = None,
        prototype_weight: float = 0.0,
        prototype_temperature: float | None = None,
        shuffled: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(num_clusters, default=2) < 2:
            raise ValueError(f"ClusterWeights(num_clusters={list(num_clusters)}): wants 2 clusters or more in each.")
        if prototype_weight < 0 or (prototype_temperature is not None and not prototype_temperature > 0):
            raise ValueError(
                f"ClusterWeights(prototype_weight={prototype_weight}, prototype_temperature={prototype_temperature}): "
                "a weight is at least 0, a temperature above 0 or None."
            )
        self.num_clusters = tuple(num_clusters)
        self.space = space
        self.prototype_weight = prototype_weight
        self.prototype_temperature = prototype_temperature
        self.shuffled = shuffled
        self.seed = seed
        if prototype_weight:
            self.needs = frozenset({"embeddings"})
        # nothing of it is in a checkpoint: a resumed run is handed the same embeddings, and clusters them alike
        self.labels: dict[str, Tensor] = {}  # space -> (1 + highest id, M) clusters, -1 = unknown
        self.centres: dict[str, tuple[Tensor, ...]] = {}  # space -> M times (K, d)
        self._warned = False

    def refresh(self, stores: Mapping[str, Store]) -> None:
        """Cluster the stores; the same clusters on all processes."""
        if self.space is not None and self.space not in stores:
            raise ValueError(
                f"ClusterWeights clusters space '{self.space}' and was handed {sorted(stores)}: set its space to one "
                "of them, or let the refresh encode it."
            )
        for space in stores if self.space is None else [self.space]:
            self._cluster(space, stores[space])

    def forward(self, pool: NegativePool) -> NegativePool:
        if not self.labels or not self.num_clusters:
            return pool
        most = len(self.num_clusters)

        def always(scores: Tensor, block: Block) -> Tensor | None:
            count = self._together(pool, block)
            return None if count is None else count == most

        def apart(scores: Tensor, block: Block) -> Tensor | None:
            count = self._together(pool, block)
            # what is always together is masked by now, and must not bring an infinite weight
            return None if count is None else torch.log1p(-count.clamp_max(most - 1).to(scores.dtype) / most)

        mined = pool.mask(always, reason="one_cluster")
        return mined if most == 1 else mined.weight(apart)

    def aux_loss(self, pool: NegativePool) -> tuple[Tensor, Tensor] | None:
        """``prototype_weight`` x the loss of anchors and centres: sum over anchors, and how many have a cluster."""
        if not self.prototype_weight:
            return None
        space = pool.positives.items.space
        anchors = pool.anchors.unit
        total, count = 0 * anchors.sum(), torch.zeros((), dtype=torch.long, device=anchors.device)
        if space in self.centres:
            labels = self._of_left(pool, pool.anchors, space)  # (B, M)
            known = labels[:, 0] != NOBODY
            temperature = pool.temperature if self.prototype_temperature is None else self.prototype_temperature
            for number, centres in enumerate(self.centres[space]):
                own = labels[known, number]
                total = total + prototype_terms(anchors[known], centres.to(anchors), own, temperature).sum()
            total, count = total * self.prototype_weight / len(self.num_clusters), known.sum()
        return total, count

    def commit(self, pool: NegativePool) -> None:
        """Say once that nobody has handed over anything to cluster, or that the clusters are of other spaces."""
        if self._warned or not pool.context.training or not self.num_clusters:
            return
        candidates = {block.items.space for block in pool.negatives if block.real}
        if candidates and not candidates & set(self.labels):
            self._warned = True
            log.warning(
                "ClusterWeights, step %d: clusters are known of %s, candidates are of %s, so that all weigh 1. Add "
                "hardneg.callbacks.RefreshNegatives, with the candidates' space among its spaces.",
                pool.context.step,
                sorted(self.labels) or "nothing",
                sorted(candidates),
            )

    def _cluster(self, space: str, store: Store) -> None:
        if max(self.num_clusters, default=0) > len(store) // 5:
            raise ValueError(
                f"ClusterWeights(num_clusters={list(self.num_clusters)}): with {len(store)} things of space '{space}', "
                f"at most {len(store) // 5} clusters; beyond, nearly each is alone in its own."
            )
        ids, vectors = store.ids, store.rows(store.ids)
        table = torch.full((int(ids.max()) + 1, len(self.num_clusters)), NOBODY, device=vectors.device)
        centres = []
        for number, clusters in enumerate(self.num_clusters):
            found, centre = alike_on_all(spherical_kmeans, vectors, clusters, generator_for(self.seed, number))
            if self.shuffled:
                found = found[
                    torch.randperm(len(found), generator=generator_for(self.seed, number, 1)).to(found.device)
                ]
            table[ids.to(table.device), number] = found.to(table.device)
            centres.append(centre)
        self.labels[space], self.centres[space] = table, tuple(centres)
        for a, b in combinations(range(len(self.num_clusters)), 2):
            log.info(
                "ClusterWeights: %d things of space '%s' in %d and in %d clusters, which tell %.2f of each other.",
                len(store),
                space,
                self.num_clusters[a],
                self.num_clusters[b],
                mutual_information(table[ids, a], table[ids, b]),
            )

    def _together(self, pool: NegativePool, block: Block) -> Tensor | None:
        """(B, N) in how many clusterings anchor and candidate share a cluster; None where nothing is known."""
        space = block.items.space
        other = self._labels_of(block.items)  # (N, M) | (B, N, M)
        if other is None:
            return None
        own = self._of_left(pool, block.left or pool.anchors, space)  # (B, M)
        count = torch.zeros((), dtype=torch.long, device=own.device)
        for number in range(own.shape[1]):
            mine = own[:, number, None]
            count = count + ((mine == other[..., number]) & (mine != NOBODY))
        return count

    def _of_left(self, pool: NegativePool, left: Items, space: str) -> Tensor:
        """(B, M) clusters, in ``space``, of what candidates are compared with: its own, or those of its positive."""
        if left.space == space and (own := self._labels_of(left)) is not None:
            return own.flatten(0, -2) if own.ndim == 3 else own  # positives as the left side: one row each
        positives = pool.positives
        ids = positives.items.ids
        if ids is None or positives.items.space != space:
            return torch.full((len(pool), len(self.num_clusters)), NOBODY, device=pool._device())
        usable = pool.usable_of(positives)  # (B, P)
        first = usable.byte().argmax(1)
        chosen = ids[first] if ids.ndim == 1 else ids.gather(1, first[:, None])[:, 0]
        found = self._labels_of(Items(ids=chosen.where(usable.any(1), NOBODY), space=space))
        assert found is not None
        return found

    def _labels_of(self, items: Items) -> Tensor | None:
        """(..., M) clusters of things by id; -1 for those that the last refresh did not hold."""
        table = self.labels.get(items.space)
        if table is None or items.ids is None:
            return None
        table = table.to(items.ids.device)
        known = (items.ids >= 0) & (items.ids < len(table))
        return table[items.ids.where(known, 0)].where(known[..., None], NOBODY)


def prototype_terms(anchors: Tensor, centres: Tensor, labels: Tensor, temperature: Tensor | float) -> Tensor:
    """(B,) ``-log softmax`` of each anchor's own centre among all K.

    Args:
        anchors, centres: (B, d), (K, d) unit vectors.
        labels: (B,) which centre is the anchor's own.
        temperature: one for all, or (K,) one for each centre.

    Source:
        MEOW's code, without its factor N / K, which adds the constant log(N / K).
    """
    return F.cross_entropy(anchors @ centres.T / temperature, labels, reduction="none")


def mutual_information(a: Tensor, b: Tensor) -> float:
    """How much two clusterings (n,) tell of each other: 0 nothing, 1 everything (over their mean entropy).

    Example:
        >>> round(mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0])), 6)
        1.0
    """
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    joint.index_put_((a.cpu(), b.cpu()), torch.ones(len(a), dtype=torch.float64), accumulate=True)
    joint /= len(a)
    rows, columns = (torch.special.entr(joint.sum(axis)).sum() for axis in (1, 0))
    if rows + columns == 0:
        return 1.0
    return float(2 * (rows + columns - torch.special.entr(joint).sum()) / (rows + columns))
