"""MoCHi, its parity numbers (T1 to T5 of the method's specification), and the form that makes no mixes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hardneg.losses import InfoNCE
from miners import Block, InBatch, Items, MemoryQueue, MoCHi, NegativePool, PoolMiner, SelfBlocks, StepContext
from miners.mochi import Draws
from miners.testing import PoolMinerContract, random_pool
from tests.families import FAMILIES, StubFamily, make_batch
from tests.oracles.mochi import naive_loss


def small(**options: Any) -> MoCHi:
    return MoCHi(**{"num_hard": 3, "num_pairs": 5, "num_with_anchor": 4, "warmup_epochs": 0, "min_hard": 1, **options})


class TestMoCHi(PoolMinerContract):
    random = True
    kinds = ("symmetric", "labelled")

    def make(self) -> PoolMiner:
        return small()


class TestMoCHiOfTwoEncoders(PoolMinerContract):
    """Without mixes of anchors and candidates, vectors need not come from one encoder."""

    random = True
    kinds = ("two_tower",)

    def make(self) -> PoolMiner:
        return small(num_with_anchor=0)


def pool_of(
    anchors: Tensor,
    positives: Tensor,
    queue: Tensor,
    usable: Tensor | None = None,
    temperature: float = 0.2,
    **context: Any,
) -> NegativePool:
    """Anchors (B, d), their positives, and a queue (K, d) that all are compared with."""
    own = Block(Items(positives[:, None], space="image"), "positive")
    pool = NegativePool(Items(anchors, space="image"), own, temperature, context=StepContext(**context))
    return pool.add(Block(Items(queue, space="image"), "queue", usable=usable))


def with_draws(miner: MoCHi, draws: Draws, monkeypatch: pytest.MonkeyPatch) -> MoCHi:
    monkeypatch.setattr(miner, "draw", lambda pool, number: draws)
    return miner


def loss_of(pool: NegativePool, temperature: float = 0.2) -> Tensor:
    return InfoNCE(temperature)(pool)[0]


# ---- the specification's numbers -------------------------------------------------------------------------------------

Q = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
K = torch.tensor([[0.96, 0.28, 0]], dtype=torch.float64)
QUEUE = torch.tensor([[0.8, 0.6, 0], [0.6, 0, 0.8], [0, 1, 0], [-0.6, 0, 0.8]], dtype=torch.float64)
FIXED = Draws(  # n1 and n2 with 0.25 of n1; n2 with 0.4 of the anchor
    torch.tensor([[0]]),
    torch.tensor([[1]]),
    torch.tensor([[0.25]], dtype=torch.float64),
    torch.tensor([[1]]),
    torch.tensor([[0.4]], dtype=torch.float64),
)


def published(pairs: int, singles: int, monkeypatch: pytest.MonkeyPatch) -> tuple[NegativePool, Tensor]:
    """The specification's pool with some of its mixes, and the gradient of its loss at the unit anchor."""
    pool = pool_of(Q.clone().requires_grad_(), K, QUEUE)
    miner = MoCHi(2, pairs, singles, warmup_epochs=0)
    pool = with_draws(miner, FIXED, monkeypatch)(pool)
    (gradient,) = torch.autograd.grad(loss_of(pool), pool.anchors.unit)
    return pool, gradient[0]


def test_T1_values(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = published(1, 1, monkeypatch)
    logits = torch.cat([pool.logits(block) for block in (pool.positives, *pool.negatives)], 1)
    assert logits[0].tolist() == pytest.approx([4.8, 4.0, 3.0, 0.0, -3.0, 3.622308, 4.227445], abs=1e-6)
    assert pool.scores(pool.negatives[1])[0].tolist() == pytest.approx([0.724462, 0.845489], abs=1e-6)
    losses = [float(loss_of(published(s, singles, monkeypatch)[0]).detach()) for s, singles in ((0, 0), (1, 0), (1, 1))]
    assert losses == pytest.approx([0.484441, 0.658171, 0.914424], abs=1e-6)


def test_T1_tells_wrong_variants_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two published fingerprints are what these mistakes give, and not what we give."""
    plain = published(0, 0, monkeypatch)[0]
    not_normalised = torch.tensor([[0.25 * 0.8 + 0.75 * 0.6, 0.4 * 1 + 0.6 * 0.6]], dtype=torch.float64)
    wrong = plain.add(Block(Items(), "mixed", given=not_normalised))
    assert float(loss_of(wrong).detach()) == pytest.approx(0.789999, abs=1e-6)
    reversed_share = F.normalize(0.6 * Q + 0.4 * QUEUE[1:2], dim=1)
    assert float((Q * reversed_share).sum()) == pytest.approx(0.934488, abs=1e-6)


def test_T2_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    assert published(0, 0, monkeypatch)[1].tolist() == pytest.approx([-0.431044, 0.318223, 0.408334], abs=1e-6)
    assert published(1, 1, monkeypatch)[1].tolist() == pytest.approx([-0.555189, -0.179088, 1.281881], abs=1e-6)


def test_T2_an_attached_mix_would_show() -> None:
    """What the gradient would be if the anchor inside its own mix were not a constant."""
    q = Q[0].clone().requires_grad_()
    h = F.normalize(0.25 * QUEUE[0] + 0.75 * QUEUE[1], dim=0)
    g = F.normalize(0.4 * q + 0.6 * QUEUE[1], dim=0)
    logits = torch.cat([(K @ q), QUEUE @ q, (h @ q)[None], (g @ q)[None]]) / 0.2
    F.cross_entropy(logits[None], torch.tensor([0])).backward()
    assert q.grad.tolist() == pytest.approx([-0.411769, -0.179088, 1.054800], abs=1e-6)


def test_T3_every_row_mixes_its_own_hardest() -> None:
    rows = torch.eye(2, dtype=torch.float64)
    pool = pool_of(rows, rows, rows.repeat_interleave(2, 0))
    mixed = MoCHi(2, 7, 7, warmup_epochs=0)(pool).negatives[1]
    assert torch.allclose(mixed.given, torch.ones(2, 14, dtype=torch.float64))


def unit(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def test_T4_invariants() -> None:
    anchors, queue = unit(0, 6, 4), unit(1, 50, 4)
    pool = pool_of(anchors, unit(2, 6, 4), queue)
    miner = MoCHi(20, 30, 10, warmup_epochs=0)
    mined = miner(pool)
    scores, valid, _ = pool.hardest(20)
    draws = miner.draw(pool, valid.sum(1, keepdim=True))
    given = mined.negatives[1].given
    assert given.shape == (6, 40)  # with the positive and the queue, 1 + K + s + s' columns
    single = scores.gather(1, draws.single)
    assert bool((given[:, 30:] >= single - 1e-12).all())
    lower = torch.minimum(scores.gather(1, draws.first), scores.gather(1, draws.second))
    assert bool((given[:, :30] >= lower - 1e-12)[lower >= 0].all())
    assert bool((draws.first != draws.second).all())
    assert bool((draws.anchor_share < 0.5).all())
    for places in (draws.first, draws.second, draws.single):
        assert int(places.min()) >= 0
        assert int(places.max()) < 20
        assert len(places.unique()) > 15  # all of the hardest are drawn from
    assert given.abs().max() <= 1 + 1e-12


def test_T4_without_mixes_nothing_changes() -> None:
    pool = pool_of(unit(0, 6, 4), unit(2, 6, 4), unit(1, 50, 4))
    mined = MoCHi(20, 0, 0, warmup_epochs=0)(pool)
    assert mined is pool
    assert torch.equal(loss_of(mined), loss_of(pool))


def test_T5_warm_up() -> None:
    miner = MoCHi(20, 3, 2, warmup_epochs=2)
    pools = [pool_of(unit(0, 6, 4), unit(2, 6, 4), unit(1, 50, 4), epoch=epoch) for epoch in range(4)]
    assert [miner(pool).usable.shape[1] for pool in pools] == [50, 50, 55, 55]


# ---- lean and naive --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("masked", [0.0, 0.5, 0.95])
def test_lean_equals_naive_in_value_and_gradient(dtype: torch.dtype, masked: float) -> None:
    """With masks that leave the rows different numbers of negatives, none and one among them."""
    anchors, positives, queue = unit(0, 8, 5, dtype=dtype), unit(1, 8, 5, dtype=dtype), unit(2, 60, 5, dtype=dtype)
    usable = torch.rand(8, 60, generator=torch.Generator().manual_seed(3)) >= masked
    usable[0] = False
    usable[1] = torch.arange(60) == 7
    anchors.requires_grad_()
    pool = pool_of(anchors, positives, queue, usable)
    miner = MoCHi(num_hard=12, num_pairs=20, num_with_anchor=10, warmup_epochs=0)
    mined = miner(pool)
    number = usable.sum(1, keepdim=True).clamp_max(12)
    draws = miner.draw(pool, number)
    for places, least in ((draws.first, 2), (draws.second, 2), (draws.single, 1)):
        assert bool((places < number)[(number >= least).expand_as(places)].all())
    q = anchors.detach().clone().requires_grad_()
    naive = naive_loss(F.normalize(q, dim=1), positives, queue, usable, draws, 12, 0.2)
    lean = loss_of(mined)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(lean, naive, rtol=tolerance, atol=tolerance)
    (expected,), (found,) = torch.autograd.grad(naive, q), torch.autograd.grad(lean, anchors)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_mixes_of_several_blocks_and_of_an_anchors_own_candidates() -> None:
    """The bank of shared and own blocks: every length is that of the vectors that were drawn."""
    anchors = unit(0, 3, 4).requires_grad_()
    own, shared = unit(1, 3, 6, 4), unit(2, 10, 4)
    pool = pool_of(anchors, unit(3, 3, 4), shared).add(Block(Items(own, space="image"), "mined"))
    miner = MoCHi(num_hard=9, num_pairs=20, num_with_anchor=0, warmup_epochs=0)
    draws = miner.draw(pool, torch.full((3, 1), 9))
    mixed = miner(pool).negatives[2].given
    for row in range(3):
        everything = torch.cat([shared, own[row]])
        hard = everything[(everything @ anchors[row].detach()).argsort(descending=True)[:9]]
        share = draws.share[row][:, None]
        made = F.normalize(share * hard[draws.first[row]] + (1 - share) * hard[draws.second[row]], dim=1)
        torch.testing.assert_close(mixed[row], made @ F.normalize(anchors[row], dim=0))


def test_candidates_get_no_gradient_from_mixes() -> None:
    """In-batch candidates carry gradient for their own column; what is mixed from them is a constant."""
    pool = InBatch()(random_pool(0, "symmetric"))
    mined = small()(pool)
    documents = pool.sides["positives"].embeddings
    (gradient,) = torch.autograd.grad(mined.negatives[-1].given.sum(), documents, allow_unused=True)
    assert gradient is None
    assert torch.autograd.grad(mined.negatives[-1].given.sum(), pool.anchors.embeddings)[0].abs().max() > 0


# ---- what is mixed ---------------------------------------------------------------------------------------------------


def test_masked_entries_are_never_mixed() -> None:
    """The anchor's own old key would be its hardest negative."""
    queue = torch.cat([Q, QUEUE])
    usable = torch.tensor([[False, True, True, True, True]])
    mined = MoCHi(5, 200, 200, warmup_epochs=0, min_hard=1)(pool_of(Q, K, queue, usable))
    without = MoCHi(5, 200, 200, warmup_epochs=0, min_hard=1)(pool_of(Q, K, QUEUE))
    assert torch.allclose(mined.negatives[1].given, without.negatives[1].given)


def test_a_queue_remembers_ids_so_that_own_keys_are_not_mixed() -> None:
    miner, queue = small(num_hard=4, num_pairs=50, num_with_anchor=50), MemoryQueue(size=8)
    rows = unit(0, 4, 3)
    items = Items(rows, torch.arange(4), space="image")
    own = Block(items.map(lambda part: part[:, None]), "positive")
    pool = NegativePool(items, own, 0.2, sides={"anchors": items, "positives": items})
    queue.commit(pool)
    mined = miner(queue(pool))
    for row in range(4):
        others = rows[torch.arange(4) != row] @ rows[row]
        mixed = mined.negatives[1].given[row, :50]  # of pairs; mixes with the anchor are closer to it
        assert float(mixed.max()) < 1 - 1e-9
        assert bool((mixed >= others.min() - 1).all())


@pytest.mark.parametrize(("usable", "pairs", "singles"), [(0, 0, 0), (1, 0, 4), (2, 5, 4), (3, 5, 4)])
def test_few_negatives(usable: int, pairs: int, singles: int) -> None:
    mask = (torch.arange(4) < usable)[None]
    mined = small(min_hard=4)(pool_of(Q, K, QUEUE, mask))
    assert int(mined.usable_of(mined.negatives[1])[:, :5].sum()) == pairs
    assert int(mined.usable_of(mined.negatives[1])[:, 5:].sum()) == singles


def test_more_pairs_than_hard_negatives() -> None:
    mined = small(num_hard=2, num_pairs=100)(pool_of(Q, K, QUEUE))
    assert mined.negatives[1].given.shape == (1, 104)


def test_mixing_waits_for_candidates_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    miner, pool = MoCHi(num_hard=5, warmup_epochs=1), pool_of(Q, K, QUEUE, epoch=1)
    with caplog.at_level(logging.WARNING):
        assert miner(pool) is pool
        miner.commit(pool_of(Q, K, QUEUE, epoch=0))  # in the warm-up nothing is expected
        assert not caplog.messages
        for _ in range(2):
            miner.commit(pool)
    (message,) = caplog.messages
    assert "4 candidates to mix, and it wants 5" in message
    assert len(MoCHi(num_hard=5, warmup_epochs=1, min_hard=4)(pool).negatives) == 2


@pytest.mark.parametrize(("origins", "mixes"), [(None, True), (("queue",), True), (("in_batch",), False)])
def test_origins(origins: Sequence[str] | None, mixes: bool) -> None:
    mined = small(origins=origins)(pool_of(Q, K, QUEUE))
    assert (len(mined.negatives) == 2) == mixes


def test_blocks_that_say_nothing_of_the_anchor_are_not_mixed() -> None:
    """Positives among themselves, scores without vectors, and mixes."""
    pool = SelfBlocks()(InBatch()(random_pool(0, "symmetric")))
    miner = small()
    assert [block.origin for block in miner._sources(pool)] == ["in_batch", "queries"]
    twice = miner(miner(pool))
    assert [block.origin for block in miner._sources(twice)] == ["in_batch", "queries"]
    assert miner._sources(InBatch()(random_pool(0, "scores_only"))) == []


def test_mixes_are_not_counted() -> None:
    pool = pool_of(unit(0, 6, 4), unit(2, 6, 4), unit(1, 50, 4))
    mined = small()(pool)
    assert mined.count().tolist() == [50] * 6
    assert mined.count(real=False).tolist() == [59] * 6
    assert torch.equal(mined.statistics()["hardness_max"], pool.statistics()["hardness_max"])


def test_the_share_of_positives_on_top_is_told_with_and_without_mixes() -> None:
    keys = torch.cat([Q, torch.tensor([[0.9, 0.19**0.5, 0]]), torch.tensor([[0.0, 0, 1]])]).double()
    pool = pool_of(Q.expand(3, 3), keys, QUEUE)  # similarities of 1, 0.9 and 0; the hardest negative has 0.8
    mined = small(num_hard=2, num_pairs=200, num_with_anchor=200)(pool)
    found = small().statistics(mined)
    assert float(found["accuracy"]) == pytest.approx(2 / 3)
    assert float(found["accuracy_with_mixes"]) == pytest.approx(1 / 3)  # mixes with the anchor come above 0.9
    assert small().statistics(pool)["accuracy_with_mixes"] == found["accuracy"]


def test_steps_and_seeds_draw_other_mixes() -> None:
    pools = [pool_of(Q, K, QUEUE, step=step, seed=seed) for step, seed in ((0, 0), (1, 0), (0, 1), (0, 0))]
    answers = [small()(pool).negatives[1].given for pool in pools]
    assert torch.equal(answers[0], answers[3])
    assert not torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_exact_opposites_give_finite_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.tensor([[0.5]], dtype=torch.float64)
    draws = FIXED._replace(share=half, single=torch.tensor([[0]]), anchor_share=half)
    pool = pool_of(Q.clone().requires_grad_(), K, torch.cat([-Q, -Q]))
    mined = with_draws(MoCHi(2, 1, 1, warmup_epochs=0), draws, monkeypatch)(pool)
    assert bool(mined.negatives[1].given.isfinite().all())
    pool = pool_of(Q.clone().requires_grad_(), K, torch.cat([Q, -Q]))
    mined = with_draws(MoCHi(2, 1, 1, warmup_epochs=0), draws, monkeypatch)(pool)
    (gradient,) = torch.autograd.grad(loss_of(mined), mined.anchors.embeddings)
    assert bool(gradient.isfinite().all())


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hard": 0}, "num_hard=0"),
        ({"num_pairs": -1}, "num_pairs=-1"),
        ({"num_with_anchor": -1}, "num_with_anchor=-1"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"min_hard": 0}, "min_hard=0"),
        ({"max_anchor_share": 0.6}, "max_anchor_share=0.6"),
        ({"max_anchor_share": 0.0}, "max_anchor_share=0.0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoCHi(**options)


def test_dot_products_say_what_to_do() -> None:
    pool = replace(pool_of(Q, K, QUEUE), similarity="dot")
    with pytest.raises(ValueError, match="similarity to cosine"):
        small()(pool)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda kind: kind.__name__)
def test_mixes_with_the_anchor_want_one_encoder(family: type[StubFamily]) -> None:
    chain = [InBatch(), MemoryQueue(size=30), small(num_pairs=0)]
    if "one_space" not in family.provides:
        with pytest.raises(ValueError, match="needs"):
            family(chain)
        return
    losses = [family(miners).training_step(make_batch(), 0) for miners in (chain, chain[:2])]
    assert losses[0] > losses[1]
