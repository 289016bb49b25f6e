"""Our miners and theirs, our losses and theirs, where both are defined alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import (
    ArcFaceLoss,
    CrossBatchMemory,
    MultiSimilarityLoss,
    NTXentLoss,
    TripletMarginLoss,
)
from pytorch_metric_learning.miners import BatchHardMiner, MultiSimilarityMiner
from pytorch_metric_learning.reducers import MeanReducer
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

from benchmarks.step.guided import batch as guided_batch
from benchmarks.step.guided import pool_of
from hardneg.interop.pytorch_metric_learning import ChainMiner, MetricLoss
from hardneg.losses import InfoNCE, PoolLoss, TripletMargin
from miners import GIST, HardnessConcentration, InBatch, MemoryQueue, NegativePool, PositiveAware, SelfBlocks


def batch(rows: int = 24, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator) - 1  # -1 is a class like any other
    return torch.randn(rows, 8, generator=generator), labels


def as_set(indices: tuple[torch.Tensor, ...]) -> set[tuple[int, ...]]:
    pairs = list(zip(*(part.tolist() for part in indices), strict=True))
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


@pytest.mark.parametrize("reference", [False, True])
def test_in_batch_gives_all_pairs_and_triplets(reference):
    embeddings, labels = batch()
    more = batch(17, seed=1) if reference else (None, None)
    pairs = ChainMiner()(embeddings, labels, *more)
    expected = lmu.get_all_pairs_indices(labels, more[1])
    assert as_set(pairs[:2]) == as_set(expected[:2])
    assert as_set(pairs[2:]) == as_set(expected[2:])
    triplets = ChainMiner(output="triplets")(embeddings, labels, *more)
    assert as_set(triplets) == as_set(lmu.get_all_triplets_indices(labels, more[1]))
    assert all(index.dtype == torch.int64 for index in (*pairs, *triplets))


def test_the_hardest_negative_is_theirs():
    embeddings, labels = batch()
    _, _, anchor, negative = ChainMiner(num_negatives=1)(embeddings, labels)
    theirs = BatchHardMiner(distance=CosineSimilarity())(embeddings, labels)
    assert set(zip(theirs[0].tolist(), theirs[2].tolist(), strict=True)) <= as_set((anchor, negative))
    assert anchor.tolist() == list(range(len(labels)))


def test_masks_carry_over():
    embeddings, labels = batch()
    scores = torch.nn.functional.normalize(embeddings, dim=1)
    scores = scores @ scores.T
    same = labels[:, None] == labels
    _, _, anchor, negative = ChainMiner([InBatch(), PositiveAware(0.1)])(embeddings, labels)
    expected = set()
    for i in range(len(labels)):
        own = [float(scores[i, p]) for p in range(len(labels)) if same[i, p] and p != i]
        ceiling = min(own) - 0.1 * abs(min(own)) if own else float("inf")
        expected |= {(i, n) for n in range(len(labels)) if not same[i, n] and float(scores[i, n]) <= ceiling}
    assert as_set((anchor, negative)) == expected
    assert len(expected) < int((~same).sum())  # something was masked


def test_their_loss_over_our_tuples():
    embeddings, labels = batch()
    loss = TripletMarginLoss(margin=0.3, distance=CosineSimilarity(), reducer=MeanReducer())
    for output in ("pairs", "triplets"):
        ours = loss(embeddings, labels, ChainMiner(output=output)(embeddings, labels))
        assert float(ours) == pytest.approx(float(loss(embeddings, labels)), rel=1e-5)


def finished(*chain: torch.nn.Module, rows: int = 12) -> tuple[NegativePool, list[torch.Tensor]]:
    student, guide = guided_batch(rows, 16, seed=3)
    pool = pool_of(student, guide)
    for miner in chain:
        pool = miner(pool)
    return pool, student


def value_and_gradients(loss: PoolLoss, *chain: torch.nn.Module) -> tuple[float, list[torch.Tensor]]:
    pool, leaves = finished(*chain)
    total, count = loss(pool)
    gradients = torch.autograd.grad(total / count, leaves)
    return float((total / count).detach()), list(gradients)


@pytest.mark.parametrize("chain", [[InBatch()], [InBatch("own")], [InBatch(), GIST()], [InBatch(), PositiveAware()]])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (NTXentLoss(0.05), InfoNCE(0.05)),
        (TripletMarginLoss(0.2, distance=CosineSimilarity(), reducer=MeanReducer()), TripletMargin(0.2, 1000)),
    ],
    ids=["NTXent", "TripletMargin"],
)
def test_their_losses_equal_ours(theirs, ours, chain):
    value, gradients = value_and_gradients(MetricLoss(theirs), *chain)
    expected, others = value_and_gradients(ours, *chain)
    assert value == pytest.approx(expected, rel=1e-5)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("miner", [MultiSimilarityMiner(0.3), BatchHardMiner(distance=CosineSimilarity())])
def test_their_miners_choose_as_they_do_on_their_own(miner):
    """Rows of queries and documents, where both are defined alike; our copies of a positive mislead nobody."""
    loss = MultiSimilarityLoss()
    (queries, documents, _), guide = guided_batch(12, 16, seed=3)
    total, count = MetricLoss(loss, miner)(InBatch()(pool_of([queries, documents], guide[:2])))
    labels = torch.arange(len(queries))
    pairs = miner(queries, labels, documents, labels.clone())  # of the same object it would skip the diagonal
    expected = loss(queries, labels, pairs, documents, labels.clone())
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-5)
    assert 0 < len(pairs[-1]) < 12 * 11


def test_what_the_chain_masked_no_miner_of_theirs_brings_back():
    class Remembering(TripletMarginLoss):
        def forward(self, embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None):
            self.seen = indices_tuple
            return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    loss = Remembering()
    pool, _ = finished(InBatch(), PositiveAware(0.0), rows=40)
    MetricLoss(loss, BatchHardMiner(distance=CosineSimilarity()))(pool)
    anchor, positive, negative = loss.seen
    usable = torch.cat([pool.usable_of(block) for block in pool.negatives], 1)
    assert 0 < len(anchor) < 40  # of most anchors the hardest was masked
    column = torch.where(negative < 40, negative, negative - 40)  # each in-batch document is there as a positive too
    assert usable[anchor, column].all()
    assert positive.equal(anchor)


def test_a_thing_of_two_anchors_is_no_class():
    pool, _ = finished(InBatch())
    twice = pool.positives.items.ids.clone()
    twice[1] = twice[0]
    pool = replace(pool, positives=replace(pool.positives, items=replace(pool.positives.items, ids=twice)))
    with pytest.raises(ValueError, match=r"id \d+ is a positive of 2 anchors .* MultiSimilarityMiner"):
        MetricLoss(NTXentLoss(), MultiSimilarityMiner())(pool)


def test_a_queue_is_seen_by_their_loss():
    queue = MemoryQueue(30)
    queue.commit(finished(rows=12)[0])
    value, _ = value_and_gradients(MetricLoss(NTXentLoss(0.05)), InBatch(), queue)
    expected, _ = value_and_gradients(InfoNCE(0.05), InBatch(), queue)
    assert value == pytest.approx(expected, rel=1e-5)


def test_no_negatives_cost_nothing():
    loss, count = MetricLoss(NTXentLoss())(finished()[0])
    assert float(loss) == 0
    assert int(count) == 12
    loss.backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e, y: ChainMiner([InBatch(), GIST()]), "GIST needs"),
        (lambda e, y: ChainMiner([InBatch(), SelfBlocks()]), "SelfBlocks needs"),
        (lambda e, y: ChainMiner(output="quads"), "'pairs' or 'triplets'"),
        (lambda e, y: ChainMiner(num_negatives=0), "at least 1"),
        (lambda e, y: ChainMiner([InBatch(), HardnessConcentration()])(e, y), "HardnessConcentration cannot be"),
        (lambda e, y: MetricLoss(ArcFaceLoss(5, 8)), "class centres"),
        (lambda e, y: MetricLoss(CrossBatchMemory(NTXentLoss(), 8)), "MemoryQueue"),
        (lambda e, y: MetricLoss(NTXentLoss())(finished(InBatch(), HardnessConcentration())[0]), "without weights"),
        (lambda e, y: MetricLoss(NTXentLoss())(finished(InBatch(), SelfBlocks())[0]), "compares other things"),
    ],
)
def test_what_does_not_carry_over_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(*batch())


def test_a_queue_has_no_index():
    embeddings, labels = batch()
    miner = ChainMiner([InBatch(), MemoryQueue(30)])
    miner(embeddings, labels)
    miner.chain[1].commit(miner._pool(embeddings, labels, embeddings, labels))
    with pytest.raises(ValueError, match=r"MemoryQueue cannot be .* not in the batch"):
        miner(embeddings, labels)
