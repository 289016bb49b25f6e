"""Two models weigh each other's negatives; the numbers are those of the published formulas."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hardneg.losses import InfoNCE, PairwiseLogistic
from miners import CET, Block, InBatch, Items, NegativePool, PoolMiner, StepContext
from miners.cet import SelectionFeatures, SelectionModel, SelectionOfFamily, SelectionTower, log_posterior
from miners.testing import PoolMinerContract, random_pool


class TestFeatures(PoolMinerContract):
    def make(self) -> PoolMiner:
        return CET(SelectionFeatures(), normalise="row", origins=None)


class TestTower(PoolMinerContract):
    def make(self) -> PoolMiner:
        return CET(SelectionTower(dim=8, width=4), temperature=2.0, normalise="none")

    kinds = ("two_tower",)


class TestPosterior(PoolMinerContract):
    def make(self) -> PoolMiner:
        return CET(SelectionFeatures(), weights="posterior", normalise="halved", origins=None)


DOUBLE = torch.float64


class Known(SelectionModel):
    """A selection model whose scores are free parameters: (B, 1) of the positives, (B, N) of the negatives."""

    def __init__(self, positives: list[list[float]], negatives: list[list[float]]) -> None:
        super().__init__()
        self.positives = torch.nn.Parameter(torch.tensor(positives, dtype=DOUBLE))
        self.negatives = torch.nn.Parameter(torch.tensor(negatives, dtype=DOUBLE))

    def forward(self, pool: NegativePool, block: Block) -> Tensor:
        return self.positives if block is pool.positives else self.negatives


def scored(
    positives: Tensor, negatives: Tensor, usable: Tensor | None = None, step: int = 0, temperature: float = 1.0
) -> NegativePool:
    """A pool of ready scores: positives (B, 1), negatives (B, N)."""
    anchors = Items(ids=torch.arange(len(positives)), space="query")
    own = Block(Items(), "positive", given=positives)
    pool = NegativePool(anchors, own, temperature, context=StepContext(step=step))
    return pool.add(Block(Items(), "mined", given=negatives, usable=usable))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)[:, None]


def mean(terms: tuple[Tensor, Tensor]) -> Tensor:
    return terms[0] / terms[1]


def weights(pool: NegativePool) -> Tensor:
    assert pool.negatives[0].log_weight is not None
    return pool.negatives[0].log_weight.exp()


PUBLISHED: dict[str, Any] = {"normalise": "none", "clamp": None}


@pytest.mark.parametrize(
    ("temperature", "of_ranker", "of_selection", "ranker", "selection"),
    [
        (10.0, [2.221403, 1.904837, 2.0], [2.051271, 2.161834, 1.818731], 0.831323, 1.275972),
        (2.0, [3.718282, 1.606531, 2.0], [2.284025, 3.117000, 1.367879], 0.834962, 1.331203),
    ],
)
def test_t1_t3_losses_weights_and_gradients(
    temperature: float, of_ranker: list[float], of_selection: list[float], ranker: float, selection: float
) -> None:
    positives, negatives = column(2.0, 1.0, 0.3).requires_grad_(), column(0.5, 1.5, -2.0).requires_grad_()
    miner = CET(Known([[1.5], [0.2], [0.0]], [[2.0], [-1.0], [0.0]]), temperature, **PUBLISHED)
    pool = scored(positives, negatives)
    # the spec's 0.423678 is cut, not rounded
    assert mean(PairwiseLogistic()(pool)).item() == pytest.approx(0.4236786, abs=5e-7)
    weighed = miner(pool)
    assert weights(weighed)[:, 0].tolist() == pytest.approx(of_ranker, abs=5e-7)
    assert miner._log_weights(pool, miner._weight_for_selection)[0].exp()[:, 0].tolist() == pytest.approx(
        of_selection, abs=5e-7
    )
    loss, own = mean(PairwiseLogistic()(weighed)), mean(miner.aux_loss(weighed))
    assert (loss.item(), own.item()) == pytest.approx((ranker, selection), abs=5e-7)
    if temperature == 10:
        (gradient,) = torch.autograd.grad(loss, negatives, retain_graph=True)
        assert gradient[0].item() == pytest.approx(0.135080, abs=5e-7)
    # neither model's loss reaches the other
    assert torch.autograd.grad(loss, list(miner.parameters()), allow_unused=True, retain_graph=True) == (None, None)
    assert torch.autograd.grad(own, [positives, negatives], allow_unused=True) == (None, None)


def test_t1_losses_of_the_selection_model_alone() -> None:
    alone = scored(column(1.5, 0.2, 0.0), column(2.0, -1.0, 0.0))
    total, count = PairwiseLogistic()(alone)
    assert (total / count).item() == pytest.approx((0.974077 + 0.263282 + 0.693147) / 3, abs=1e-6)


def test_t2_weights_and_the_limit_of_a_high_temperature() -> None:
    pool = scored(column(1.0), torch.zeros(1, 3, dtype=DOUBLE))
    known = Known([[0.0]], [[-50.0, 0.0, 50.0]])
    assert weights(CET(known, 10.0, **PUBLISHED)(pool))[0].tolist() == pytest.approx(
        [1.006738, 2.0, 149.413159], abs=5e-7
    )
    assert weights(CET(known, 1e9, **PUBLISHED)(pool))[0].tolist() == pytest.approx([2.0] * 3, abs=1e-6)
    unweighted = mean(PairwiseLogistic()(pool))
    assert mean(PairwiseLogistic()(CET(known, 1e9, **PUBLISHED)(pool))).item() == pytest.approx(
        2 * unweighted.item(), abs=1e-6
    )


def test_t4_weights_restore_the_whole_population() -> None:
    """Types selected with probability .2, .5, .8 are seen, unselected, .8, .5, .2 of the time."""
    selected, values = torch.tensor([0.2, 0.5, 0.8], dtype=DOUBLE), torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)
    seen = 1 - selected
    weight = weights(
        CET(Known([[0.0]], [selected.logit().tolist()]), 1.0, **PUBLISHED)(scored(column(0), values[None]))
    )
    assert (seen * values).sum() / seen.sum() == pytest.approx(1.6)
    assert (seen * weight[0] * values).sum() / (seen * weight[0]).sum() == pytest.approx(2.0)


class Copy(SelectionModel):
    """The trained model's own scores: what two equal models come to."""

    def forward(self, pool: NegativePool, block: Block) -> Tensor:
        return pool.scores(block).detach() + 0 * self.nothing

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))


def test_t5_a_copy_weighs_harder_negatives_more_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    scores = torch.tensor([[-2.0, -0.5, 0.0, 1.0, 3.0]], dtype=DOUBLE)
    miner = CET(Copy(), normalise="row")
    pool = miner(scored(column(1.0), scores, step=50))
    assert bool((weights(pool)[0].diff() > 0).all())
    assert miner.statistics(pool)["correlation"].item() == pytest.approx(1.0)
    with caplog.at_level(logging.WARNING):
        miner.commit(pool)
        miner.commit(pool)
    assert [record.message.count("harder negatives weigh more") for record in caplog.records] == [1]


def test_the_logged_correlation_and_mean_weight() -> None:
    a, c = torch.tensor([[2.0, -1.0, 0.0, 0.5]], dtype=DOUBLE), torch.tensor([[0.5, 1.5, -2.0, 9.0]], dtype=DOUBLE)
    usable = torch.tensor([[True, True, True, False]])
    known, pool = Known([[0.0]], a.tolist()), scored(column(1.0), c, usable)
    miner = CET(known, **PUBLISHED)
    found = miner.statistics(miner(pool))
    assert found["correlation"].item() == pytest.approx(torch.corrcoef(torch.cat([a, c])[:, :3])[0, 1].item())
    assert found["weight_mean"].item() == pytest.approx((2.221403 + 1.904837 + 2.0) / 3, abs=1e-6)
    normalised = CET(known, normalise="batch")  # to a mean of 1, which would say nothing
    assert torch.equal(normalised.statistics(normalised(pool))["weight_mean"], found["weight_mean"])


def test_t6_weights_are_those_of_the_settled_models() -> None:
    """What the family hands over: training scores with dropout, settled ones without; weights follow the latter."""
    negatives = torch.tensor([[0.5, -1.0]], dtype=DOUBLE)
    settled = {
        "settled selection": Block(Items(), "selection", given=torch.tensor([[1.0, 2.0]], dtype=DOUBLE)),
        "settled relevance": Block(Items(), "selection", given=torch.tensor([[3.0, -3.0]], dtype=DOUBLE)),
    }
    answers = []
    for noise in (0.0, 5.0):
        training = torch.tensor([[0.3, 0.7, 0.1]], dtype=DOUBLE) + noise * torch.rand(1, 3, dtype=DOUBLE)
        side = Block(Items(), "selection", given=training.requires_grad_())
        pool = replace(scored(column(1.0), negatives + noise), sides={"selection": side, **settled})
        miner = CET(SelectionOfFamily(), **PUBLISHED)
        answers.append(weights(miner(pool)))
        total, count = miner.aux_loss(pool)
        (gradient,) = torch.autograd.grad(total, training)
        assert count == 2
        assert bool((gradient != 0).all())
        expected = (1 + (settled["settled relevance"].given / 10).exp()) * torch.nn.functional.softplus(
            training[:, 1:] - training[:, :1]
        )
        assert total.item() == pytest.approx(expected.sum().item())
    assert torch.equal(*answers)
    assert answers[0][0].tolist() == pytest.approx([1 + math.exp(0.1), 1 + math.exp(0.2)])


def test_t7_the_posterior_of_irrelevance() -> None:
    selected, relevant = torch.tensor([0.8, 0.1, 1e-9], dtype=DOUBLE), torch.tensor(0.9, dtype=DOUBLE)
    found = log_posterior(selected.logit(), relevant.logit()).exp().tolist()
    assert found == pytest.approx([0.357143, 0.109890, 0.1], abs=5e-7)
    miner = CET(Known([[0.0]], [[selected[0].logit().item()]]), 1.0, "posterior", **PUBLISHED)
    assert weights(miner(scored(column(0.0), relevant.logit()[None, None]))).item() == pytest.approx(0.357143, abs=5e-7)


@pytest.mark.parametrize(("normalise", "expected"), [("batch", 1.0), ("row", 1.0), ("halved", None)])
def test_normalised_weights(normalise: Any, expected: float | None) -> None:
    """Padded slots are in no mean, and a row without candidates stays finite."""
    a = [[2.0, -1.0, 7.0], [4.0, 0.0, 7.0], [0.0, 0.0, 0.0]]
    usable = torch.tensor([[True, True, False], [True, True, False], [False] * 3])
    miner = CET(Known([[0.0]] * 3, a), normalise=normalise)
    found = weights(miner(scored(column(1.0, 1.0, 1.0), torch.zeros(3, 3, dtype=DOUBLE), usable)))
    raw = 1 + (torch.tensor(a, dtype=DOUBLE) / 10).exp()
    assert bool(found.isfinite().all())
    if expected is None:
        assert torch.allclose(found, raw / 2)
    elif normalise == "batch":
        assert found[usable].mean().item() == pytest.approx(1.0)
        assert (found / raw)[usable].std().item() == pytest.approx(0.0, abs=1e-12)
    else:
        assert found[:2, :2].mean(1).tolist() == pytest.approx([1.0, 1.0])


def test_clamped_weights_and_steps_without_weights() -> None:
    pool = scored(column(1.0), torch.zeros(1, 2, dtype=DOUBLE), step=3)
    known = Known([[0.0]], [[900.0, -900.0]])
    assert weights(CET(known, normalise="none", clamp=2.0)(pool))[0].tolist() == pytest.approx(
        [1 + math.exp(2), 1 + math.exp(-2)]
    )
    early = CET(known, normalise="none", start_step=4)
    assert weights(early(pool))[0].tolist() == [1.0, 1.0]
    assert early.aux_loss(pool)[0].requires_grad  # the selection model trains from the start


def test_in_batch_negatives_keep_their_weight_and_rows_without_negatives_cost_nothing() -> None:
    pool = InBatch()(random_pool(0, "two_tower"))
    weighed = CET(SelectionFeatures(), normalise="none")(pool)
    assert [block.log_weight is None for block in weighed.negatives] == [True, False]
    empty = scored(column(1.0), torch.zeros(1, 0, dtype=DOUBLE))
    miner = CET()
    total, count = miner.aux_loss(miner(empty))
    assert (total.item(), int(count)) == (0.0, 0)
    assert miner.statistics(miner(empty))["correlation"] == 0


def test_rank_and_guide_are_what_cheap_features_see() -> None:
    pool = scored(column(1.0), torch.tensor([[5.0, -5.0]], dtype=DOUBLE))
    block = replace(pool.negatives[0], rank=torch.tensor([[1, 8]]))
    assert SelectionFeatures()(pool, block)[0].tolist() == pytest.approx([0.0, -math.log(8)])
    guided = random_pool(0, "two_tower")
    scores = SelectionFeatures()(guided, Block(guided.sides["positives"], "in_batch"))
    assert torch.allclose(scores, guided.guide_scores(Block(guided.sides["positives"], "in_batch")))


def test_softmax_losses_take_the_weights_inside_the_partition() -> None:
    pool = scored(column(0.4), torch.tensor([[0.1, 0.3]], dtype=DOUBLE), temperature=0.1)
    weighed = CET(Known([[0.0]], [[1.0, -2.0]]), normalise="row")(pool)
    w = weights(weighed)[0]
    mass = w[0] * math.exp(1) + w[1] * math.exp(3)
    assert mean(InfoNCE()(weighed)).item() == pytest.approx(math.log(math.exp(4) + mass) - 4)


def test_messages() -> None:
    for options, message in (
        ({"temperature": 0.0}, r"CET\(temperature=0.0\): wants a positive number"),
        ({"weights": "ipw"}, "wants 'inverse_propensity' or 'posterior'"),
        ({"clamp": -1.0}, r"CET\(clamp=-1.0\): wants a positive number, or None"),
        ({"normalise": "mean"}, "wants 'batch', 'row', 'halved' or 'none'"),
    ):
        with pytest.raises(ValueError, match=message):
            CET(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"SelectionTower\(dim=384\) meets vectors of 8 dims .* Set its dim to 8"):
        CET(SelectionTower(), origins=None)(InBatch()(random_pool(0, "two_tower")))
