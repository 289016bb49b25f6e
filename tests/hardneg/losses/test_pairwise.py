"""Losses over pairs against loops: STAR's, the triplet hinge, ADORE's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hardneg.losses import LambdaRank, NGAMEHinge, PairwiseLogistic, PoolLoss, TripletMargin
from miners import Block, InBatch, Items, NegativePool
from miners.testing import KINDS, leaves, process_share, random_pool
from tests.oracles import pairs as oracle


def ranked(pool: NegativePool, seed: int = 0) -> NegativePool:
    """Places in a list for the positives and every block."""
    generator = torch.Generator().manual_seed(seed)

    def with_rank(block: Block) -> Block:
        return replace(block, rank=torch.randint(1, 20, pool.usable_of(block).shape, generator=generator))

    blocks = tuple(with_rank(block) for block in pool.negatives)
    return replace(pool, positives=with_rank(pool.positives), negatives=blocks)


def mined(seed: int, kind: str, dtype: torch.dtype = torch.float64) -> NegativePool:
    pool = InBatch()(random_pool(seed, kind, dtype=dtype, temperature=0.5))
    pool = pool.mask(lambda scores, block: scores > 0.6, "test")
    return ranked(pool.weight(lambda scores, block: 0.5 * scores.detach() - 0.2), seed)


def mean(loss: PoolLoss, pool: NegativePool) -> Tensor:
    total, count = loss(pool)
    return total / count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_loops(kind: str, seed: int) -> None:
    pool = mined(seed, kind)
    with torch.no_grad():
        assert float(mean(PairwiseLogistic(), pool)) == pytest.approx(oracle.pairwise_logistic(pool), rel=1e-9)
        for cutoff in (None, 7):
            expected = oracle.lambda_rank(pool, cutoff)
            assert float(mean(LambdaRank(cutoff), pool)) == pytest.approx(expected, rel=1e-6)
    # the hinge is one of similarities: no temperature, no weights
    plain = replace(pool, temperature=1.0, negatives=tuple(replace(b, log_weight=None) for b in pool.negatives))
    for k in (1, 3, 100):
        with torch.no_grad():
            total, count = TripletMargin(0.3, k)(replace(plain, temperature=0.5))
        expected_total, expected_count = oracle.triplet(plain, 0.3, k)
        assert (float(total), int(count)) == (pytest.approx(expected_total, rel=1e-9), expected_count)


@pytest.mark.parametrize("loss", [PairwiseLogistic(), TripletMargin(0.35, 2), LambdaRank(), LambdaRank(6)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(loss: PoolLoss, kind: str) -> None:
    pool = mined(4, kind)
    inputs = leaves(pool)

    def value(*parts: Tensor) -> Tensor:
        swapped = {id(old): new for old, new in zip(inputs, parts, strict=True)}

        def renewed(items: Items) -> Items:
            return replace(items, embeddings=swapped.get(id(items.embeddings), items.embeddings))

        base = random_pool(4, kind, dtype=torch.float64, temperature=0.5)
        if kind == "scores_only":
            side = base.sides["positives"]
            assert isinstance(side, Block)
            positives = replace(base.positives, given=parts[0].diagonal()[:, None])
            base = replace(base, sides={"positives": replace(side, given=parts[0])}, positives=positives)
        else:
            assert all(isinstance(side, Items) for side in pool.sides.values())
            sides = {name: renewed(side) for name, side in pool.sides.items()}
            own = sides["positives"]
            if kind != "labelled":
                own = own.map(lambda part: part[:, None])
            base = replace(
                base, anchors=sides["anchors"], sides=sides, positives=replace(base.positives, items=own), memo={}
            )
        again = InBatch()(base)
        again = replace(
            again,
            negatives=tuple(
                replace(new, usable=old.usable, log_weight=old.log_weight)
                for new, old in zip(again.negatives, pool.negatives, strict=True)
            ),
        )
        return mean(loss, ranked(again, 4))

    torch.testing.assert_close(value(*inputs), mean(loss, pool))
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("loss", [PairwiseLogistic(), TripletMargin(), LambdaRank()])
def test_nothing_to_push_away_from(loss: PoolLoss) -> None:
    for has_blocks in (True, False):
        pool = InBatch()(random_pool(0, "symmetric"))
        emptied = pool.mask(lambda s, b: torch.ones_like(s).bool(), "test")
        emptied = emptied if has_blocks else replace(pool, negatives=())
        total, count = loss(emptied)
        assert total == 0
        assert int(count) in (0, 6)
        for gradient in torch.autograd.grad(total, leaves(pool), allow_unused=True) if total.requires_grad else ():
            assert gradient is None or bool(gradient.isfinite().all())


@pytest.mark.parametrize("loss", [PairwiseLogistic(), TripletMargin()])
def test_sums_and_counts_of_shares_add_up(loss: PoolLoss) -> None:
    whole = loss(InBatch()(random_pool(0)))
    shares = [loss(InBatch()(process_share(random_pool(0), at, n))) for at, n in ((0, 1), (1, 3), (4, 2))]
    torch.testing.assert_close(sum(total for total, _ in shares), whole[0])
    assert sum(int(count) for _, count in shares) == int(whole[1])


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [PairwiseLogistic(), TripletMargin(), LambdaRank()])
def test_half_precision_embeddings_cost_the_same(loss: PoolLoss, half: torch.dtype) -> None:
    value = mean(loss, mined(1, "two_tower", half))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, mean(loss, mined(1, "two_tower", torch.float32)))


def test_large_gaps_of_raw_products_stay_finite() -> None:
    """Where log(1 + exp(x)) overflows: unnormalised products of 768 dims reach gaps of hundreds."""
    pool = NegativePool(Items(), Block(Items(), "positive", given=torch.tensor([[-200.0]])), 1.0)
    pool = pool.add(Block(Items(), "mined", given=torch.tensor([[300.0]])))
    assert float(PairwiseLogistic()(pool)[0]) == 500.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_without_a_list_ranks_are_those_of_the_scores(kind: str, seed: int) -> None:
    pool = mined(seed, kind)
    unranked = replace(
        pool,
        positives=replace(pool.positives, rank=None),
        negatives=tuple(replace(block, rank=None) for block in pool.negatives),
    )
    by_anchor = [oracle.live_ranks(pool, i) for i in range(len(pool))]
    places = [torch.tensor([ranks[n] for ranks in by_anchor]) for n in range(len(pool.negatives) + 1)]
    slow = replace(
        pool,
        positives=replace(pool.positives, rank=places[0]),
        negatives=tuple(replace(b, rank=rank) for b, rank in zip(pool.negatives, places[1:], strict=True)),
    )
    for cutoff in (None, 4):
        torch.testing.assert_close(mean(LambdaRank(cutoff), unranked), mean(LambdaRank(cutoff), slow))


def test_hinges_weigh_each_of_the_hardest_by_its_own_weight() -> None:
    """Two blocks, one without weights, one with a weight per candidate."""
    positive, weights = torch.tensor([[0.5], [0.5]]), torch.tensor([[2.0, 3.0], [5.0, 7.0]])
    pool = NegativePool(Items(), Block(Items(), "positive", given=positive))
    pool = pool.add(Block(Items(), "in_batch", given=torch.tensor([[0.6], [-0.9]])))
    given = torch.tensor([[0.4, 0.7], [0.2, 0.3]])
    pool = pool.add(Block(Items(), "mined", given=given, log_weight=weights.log()))
    # hinges of margin 1: 1.2 and 1.1 of the first anchor, 0.8 and 0.7 of the second
    for loss in (TripletMargin(1.0, num_negatives=2), NGAMEHinge(1.0, num_negatives=2, temperature=None)):
        assert loss(pool)[0].item() == pytest.approx(3 * 1.2 + 1.1 + 7 * 0.8 + 5 * 0.7)


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"LambdaRank\(cutoff=0\): wants at least 1, or None for no cut"):
        LambdaRank(0)


def test_a_batch_without_negatives_costs_nothing_and_has_a_gradient():
    pool = random_pool(0, "two_tower")
    total, count = PairwiseLogistic()(pool)
    assert (float(total), int(count)) == (0.0, 0)
    assert all(not bool(gradient.any()) for gradient in torch.autograd.grad(total, leaves(pool)[:1]))
