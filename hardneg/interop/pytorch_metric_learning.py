"""Chains of pool miners as miners of pytorch-metric-learning, and its losses in our chains.

miner = ChainMiner([InBatch(), PositiveAware(0.1)])
loss = TripletMarginLoss()(embeddings, labels, miner(embeddings, labels))  # its loss, our miners

module = RetrievalModule(loss=MetricLoss(NTXentLoss(0.05)), miners=[InBatch(), GIST()], ...)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hardneg.losses import InfoNCE, PoolLoss
from hardneg.modules.base import check_chain
from miners.base import PoolMiner
from miners.in_batch import InBatch
from miners.pool import Block, Items, NegativePool, StepContext
from miners.ragged import Ragged

try:
    from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity
    from pytorch_metric_learning.losses import BaseMetricLossFunction
    from pytorch_metric_learning.losses.mixins import WeightMixin
    from pytorch_metric_learning.miners import BaseMiner
except ImportError as error:
    raise ImportError(
        "hardneg.interop.pytorch_metric_learning needs pytorch-metric-learning: run "
        "`pip install pytorch-metric-learning`."
    ) from error

__all__ = ["ChainMiner", "MetricLoss"]


class ChainMiner(BaseMiner):
    """The pairs that a chain of pool miners leaves, as index tuples.

    What carries over is what an index can say: which candidates of the batch are an anchor's negatives. Blocks of the
    batch and masks do; weights, queues, mixes and guides do not, and are refused. Rows of a class are each other's
    positives, and never negatives.

    Args:
        miners: the chain, in this order. None = [InBatch()].
        output: "pairs" gives (anchor, positive, anchor, negative), "triplets" every combination of an anchor's.
        num_negatives: keep so many of each anchor's hardest negatives; None keeps all.
        similarity: "cosine" or "dot".
        seed: of the draws that miners make inside a step.

    Shapes:
        embeddings (B, d), labels (B,), and ref_emb (N, d), ref_labels (N,) for candidates that are not the batch
        itself; 1-D int64 indices out, of the anchors in the batch, of positives and negatives among the candidates.

    Raises:
        ValueError: a miner that needs more than embeddings and labels, or whose work no index can say.
    """

    def __init__(
        self,
        miners: Sequence[PoolMiner] | None = None,
        output: Literal["pairs", "triplets"] = "pairs",
        num_negatives: int | None = None,
        similarity: Literal["cosine", "dot"] = "cosine",
        seed: int = 0,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(
            distance=CosineSimilarity() if similarity == "cosine" else DotProductSimilarity(normalize_embeddings=False),
            collect_stats=collect_stats,
        )
        if output not in ("pairs", "triplets"):
            raise ValueError(f"ChainMiner(output='{output}'): wants 'pairs' or 'triplets'.")
        if num_negatives is not None and num_negatives < 1:
            raise ValueError(f"ChainMiner(num_negatives={num_negatives}): wants at least 1, or None for all.")
        chain = [InBatch()] if miners is None else list(miners)
        check_chain(chain, InfoNCE(), frozenset({"embeddings", "sides", "labels", "one_space"}))
        self.chain = nn.ModuleList(copy.deepcopy(chain))
        self.output = output
        self.num_negatives = num_negatives
        self.similarity = similarity
        self.seed = seed
        self.steps = 0

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> tuple[Tensor, ...]:
        pool = self._pool(embeddings, labels, ref_emb, ref_labels)
        candidates = pool.sides["positives"]
        for miner in self.chain:
            pool = miner(pool)
            _check_indices(pool, candidates, type(miner).__name__)
        self.steps += self.training
        anchor, positive = pool.usable_of(pool.positives).nonzero(as_tuple=True)
        rows, negative = self._negatives(pool).nonzero(as_tuple=True)
        if self.output == "pairs":
            return anchor, positive, rows, negative
        lists = Ragged.from_pairs(rows, negative, len(pool)).select(anchor)
        pair = lists.row_of_value
        return anchor[pair], positive[pair], lists.values

    def _pool(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> NegativePool:
        every = torch.cat([labels, ref_labels]).unique(return_inverse=True)[1]  # -1 is a class like others here
        classes, ref_classes = every[: len(labels)], every[len(labels) :]
        ids = torch.arange(len(ref_emb), device=ref_emb.device)
        itself = ref_emb is embeddings
        mine = ids if itself else torch.arange(len(embeddings), device=embeddings.device) + len(ids)
        anchors = Items(embeddings, mine, labels=classes, space="item")
        candidates = Items(ref_emb, ids, labels=ref_classes, space="item")
        usable = classes[:, None] == ref_classes
        if itself:
            usable.fill_diagonal_(False)
        return NegativePool(
            anchors,
            Block(candidates, "positive", usable=usable),
            similarity=self.similarity,
            sides={"anchors": anchors, "positives": candidates},
            context=StepContext(step=self.steps, training=self.training, seed=self.seed, rows=len(anchors)),
        )

    def _negatives(self, pool: NegativePool) -> Tensor:
        """(B, N) bool: which candidates are whose negatives."""
        usable = torch.zeros_like(pool.usable_of(pool.positives))
        if self.num_negatives is None:
            for block in pool.negatives:
                usable |= pool.usable_of(block)
        else:
            _, valid, where = pool.hardest(self.num_negatives)
            rows, place = valid.nonzero(as_tuple=True)
            usable[rows, where[rows, place, 1]] = True
        return usable


def _check_indices(pool: NegativePool, candidates: Items | Block, miner: str) -> None:
    """Raises ValueError where the pool holds something that no index of the batch can say."""
    for block in (pool.positives, *pool.negatives):
        reason = None
        if block.items is not candidates or not block.real:
            reason = f"its block '{block.origin}' holds candidates that are not in the batch"
        elif block.left is not None or block.given is not None:
            reason = f"its block '{block.origin}' compares something else than the anchors' vectors"
        elif block.log_weight is not None:
            reason = "it weighs negatives, and an index is there or not"
        if reason is not None:
            raise ValueError(
                f"{miner} cannot be a miner of pytorch-metric-learning: {reason}. Use it in a chain of ours with "
                "MetricLoss (queues and drawn negatives) or a loss of hardneg.losses (weights and mixes)."
            )


class MetricLoss(PoolLoss):
    """A loss of pytorch-metric-learning over the pairs that the pool's miners left.

    It sees the vectors of anchors and candidates, and an index tuple of the usable pairs; it compares by its own
    distance and divides by its own temperature. Masks, queues, drawn and mixed negatives carry over; weights and ready
    scores do not, and are refused.

    Args:
        metric_loss: a loss of pairs or triplets, such as NTXentLoss, TripletMarginLoss or MultiSimilarityLoss.
        metric_miner: a miner of theirs that chooses among what the chain has left, such as MultiSimilarityMiner. It
            knows things by class alone: each anchor is a class, to which its positives belong by their ids.

    Shapes:
        B anchors; count = anchors with a positive, by which the mean over processes is weighed. Its memory is the
        peer's: often (pairs of positives) x (pairs of negatives).

    Raises:
        ValueError: a loss with class centres or a memory of its own; in training, a pool with weights or ready scores,
            or, with a miner of theirs, a thing that is a positive of several anchors.
    """

    needs = frozenset({"embeddings"})

    def __init__(self, metric_loss: BaseMetricLossFunction, metric_miner: BaseMiner | None = None) -> None:
        super().__init__(temperature=1.0)
        if not isinstance(metric_loss, BaseMetricLossFunction) or isinstance(metric_loss, WeightMixin):
            raise ValueError(
                f"MetricLoss({type(metric_loss).__name__}) wants a loss of pairs or triplets; one with class centres "
                "has no pairs, and a memory is MemoryQueue's business: put it into the chain."
            )
        self.metric_loss = metric_loss
        self.metric_miner = metric_miner

    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        blocks = (pool.positives, *map(pool.whole, pool.negatives))
        vectors, pairs, start = [], [], 0
        for block in blocks:
            found = _vectors(block)
            vectors.append(found.reshape(-1, found.shape[-1]))
            rows, columns = pool.usable_of(block).nonzero(as_tuple=True)
            within = columns if found.ndim == 2 else rows * found.shape[1] + columns
            pairs.append((rows, start + within))
            start += len(vectors[-1])
        negative = [torch.cat(parts) for parts in zip(*pairs[1:], strict=True)] or [pairs[0][0][:0]] * 2
        anchors, candidates = pool.anchors._need("embeddings"), torch.cat(vectors)
        indices: tuple[Tensor, ...] = (*pairs[0], *negative)
        if self.metric_miner is not None:
            indices = _chosen(self.metric_miner, anchors, candidates, torch.cat([_names(b) for b in blocks]), indices)
        loss: Tensor = self.metric_loss(anchors, indices_tuple=indices, ref_emb=candidates)
        count = pool.usable_of(pool.positives).any(1).sum()
        return loss * count, count


def _vectors(block: Block) -> Tensor:
    """(N, d) | (B, N, d) what an index can point at.

    Raises:
        ValueError: a block that says more, or less, than vectors do.
    """
    if block.given is not None or block.left is not None or block.items.embeddings is None:
        raise ValueError(
            f"MetricLoss compares anchors with vectors; the block '{block.origin}' has ready scores or compares other "
            "things. Use a loss of hardneg.losses, or leave the miner that adds it out."
        )
    if block.log_weight is not None:
        raise ValueError(
            f"MetricLoss takes pairs without weights, and those of the block '{block.origin}' have some. Use a loss of "
            "hardneg.losses, or leave the weighing miner out."
        )
    return block.items.embeddings


def _names(block: Block) -> Tensor:
    """(N,) | (B x N,) ids in the order of its vectors; things without ids are nobody."""
    ids = block.items.ids
    if ids is None:
        return torch.full((_vectors(block)[..., 0].numel(),), -1, device=_vectors(block).device)
    return ids.reshape(-1)


def _chosen(
    miner: BaseMiner, anchors: Tensor, candidates: Tensor, ids: Tensor, indices: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """What a miner of theirs takes of the pairs that the chain has left, as its own index tuple.

    Args:
        anchors, candidates: (B, d), (N, d).
        ids: (N,), -1 = nobody.
        indices: positive pairs and negative pairs, as (anchor, candidate) each.
    """
    nobody = -1 - torch.arange(len(ids), device=ids.device)
    things, thing_of = torch.where(ids < 0, nobody, ids).unique(return_inverse=True)
    # one copy of each thing, or the hardest negative might be a copy that the pool has in another role
    copy = torch.full_like(things, len(ids)).scatter_reduce(0, thing_of, -1 - nobody, "amin")
    first, owned, rows, columns = indices
    positives, negatives = (first, thing_of[owned]), (rows, thing_of[columns])
    owner, thing = torch.stack(positives).unique(dim=1)
    owners = torch.bincount(thing, minlength=len(things))
    if bool((owners > 1).any()):
        raise ValueError(
            f"id {int(things[owners.argmax()])} is a positive of {int(owners.max())} anchors of this batch, which the "
            f"classes of {type(miner).__name__} cannot say. Use NoDuplicates' batches, or leave metric_miner out."
        )
    labels = torch.arange(len(anchors), device=anchors.device)
    classes = len(labels) + torch.arange(len(things), device=ids.device)  # by default a thing is like no other
    classes[thing] = owner
    found = miner(anchors, labels, candidates[copy], classes)
    if len(found) == 3:
        anchor, positive, negative = found
        kept = _among(anchor, negative, negatives) & _among(anchor, positive, positives)
        return anchor[kept], copy[positive[kept]], copy[negative[kept]]
    a, p, b, n = found
    near, far = _among(a, p, positives), _among(b, n, negatives)
    return a[near], copy[p[near]], b[far], copy[n[far]]


def _among(anchor: Tensor, candidate: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Which pairs are among some others."""
    width = 1 + max((int(part.max()) for part in (candidate, pairs[1]) if len(part)), default=0)
    return torch.isin(anchor * width + candidate, pairs[0] * width + pairs[1])
