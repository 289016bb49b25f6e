"""StaticBank, scoring in chunks, and the parity numbers of SPN4CIR (T1, T3, T4 of its specification)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hardneg.losses import InfoNCE, LambdaRank, PairwiseLogistic, TripletMargin
from miners import (
    CET,
    GIST,
    Block,
    Debiased,
    HardnessConcentration,
    InBatch,
    Items,
    NegativePool,
    PoolMiner,
    PositiveAware,
    Ragged,
    StaticBank,
    StepContext,
)
from miners.store import Store
from miners.testing import PoolMinerContract
from tests.miners.test_adore import Frozen


class TestStaticBank(PoolMinerContract):
    kinds = ("two_tower",)

    def before(self) -> Sequence[PoolMiner]:
        return (Frozen(),)

    def make(self) -> PoolMiner:
        return filled(StaticBank(chunk_size=7))

    def test_ids_stay_with_their_vectors(self) -> None:
        """A frozen vector is not the batch's vector of the same document: it is compared with the store."""
        miner = self.make()
        for pool in self._pools():
            (block,) = miner(pool).negatives
            for piece in pool.pieces(block):
                assert torch.equal(piece.items.embeddings, miner._stores["document"].rows(piece.items.ids))


class TestDrawn(TestStaticBank):
    random = True

    def make(self) -> PoolMiner:
        return filled(StaticBank(num_negatives=5))

    def test_permuting_the_batch_permutes_the_answer(self) -> None:
        """Draws go with places in the batch."""


def filled(miner: StaticBank, rows: int = 40, dims: int = 8) -> StaticBank:
    vectors = torch.randn(rows, dims, generator=torch.Generator().manual_seed(3))
    guide = torch.randn(rows, 5, generator=torch.Generator().manual_seed(4))
    miner.refresh({"document": Store(vectors), "guide/document": Store(guide)})
    return miner


# ---- the published numbers -----------------------------------------------------------------------------------------

BANK = torch.tensor([[1, 0], [0, 1], [1, 1], [-1, 1], [2, 1]], dtype=torch.float64)
REFERENCES = torch.tensor([[1, 0], [0.5, 0.5]], dtype=torch.float64)
REFERENCE_IDS, TARGET_IDS = [0, 2], [2, 1]


def composed(texts: Tensor, temperature: float, known: Sequence[Sequence[int]] | None = None) -> NegativePool:
    """Two queries of sum fusion with their targets: raw bank rows, which the pool normalises."""
    targets = torch.tensor(TARGET_IDS)
    anchors = Items(REFERENCES + texts, torch.arange(2), space="query")
    own = Items(BANK[targets][:, None], targets[:, None], space="image")
    sides = {"anchors": anchors, "positives": Items(BANK[targets], targets, space="image")}
    lists = Ragged.from_lists([[target] for target in TARGET_IDS] if known is None else known)
    return NegativePool(anchors, Block(own, "positive"), temperature, known=lists, sides=sides)


def bank(**options: Any) -> StaticBank:
    miner = StaticBank(**options)
    miner.refresh({"image": Store(BANK, space="image")})
    return miner


def mean(loss: tuple[Tensor, Tensor]) -> Tensor:
    return loss[0] / loss[1]


TEXTS = torch.tensor([[0, 1], [-0.5, 0.25]], dtype=torch.float64)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5, 100])
@pytest.mark.parametrize(
    ("temperature", "whole", "in_batch", "masked"),
    [(0.5, 1.047715, 0.442548, 0.828986), (0.02, 0.037023, 4.364198e-07, 0.0370228)],
)
def test_t1_losses(temperature: float, whole: float, in_batch: float, masked: float, chunk_size: int | None) -> None:
    loss, miner = InfoNCE(temperature), bank(chunk_size=chunk_size)
    assert mean(loss(miner(composed(TEXTS, temperature)))).item() == pytest.approx(whole, abs=5e-7)
    assert mean(loss(InBatch()(composed(TEXTS, temperature)))).item() == pytest.approx(in_batch, abs=5e-7, rel=1e-6)
    known = [[target, reference] for target, reference in zip(TARGET_IDS, REFERENCE_IDS, strict=True)]
    assert mean(loss(miner(composed(TEXTS, temperature, known)))).item() == pytest.approx(masked, abs=5e-7)


def test_t1_each_query_and_the_fusion() -> None:
    pool = bank()(composed(TEXTS, 0.5))
    each = torch.logaddexp(pool.mass(), pool.logits(pool.positives)[:, 0]) - pool.logits(pool.positives)[:, 0]
    assert each.tolist() == pytest.approx([1.1478, 0.9477], abs=5e-5)
    assert torch.allclose(pool.anchors.unit, torch.tensor([[0.707107, 0.707107], [0, 1]], dtype=torch.float64))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_t1_gradient(chunk_size: int | None) -> None:
    texts = TEXTS.clone().requires_grad_()
    miner = bank(chunk_size=chunk_size)
    mean(InfoNCE(0.5)(miner(composed(texts, 0.5)))).backward()
    wanted = torch.tensor([[0.023808, -0.023808], [0.222977, 0]], dtype=torch.float64)
    torch.testing.assert_close(texts.grad, wanted, atol=1e-6, rtol=0)
    assert miner._stores["image"].vectors.grad is None
    assert not miner._stores["image"].vectors.requires_grad


def random_composed(seed: int = 0, rows: int = 6, documents: int = 50, dims: int = 8) -> tuple[NegativePool, Store]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    store = Store(draw(documents, dims), space="image")
    ids = torch.randperm(documents, generator=generator)[:rows]
    anchors = Items(draw(rows, dims).requires_grad_(), torch.arange(rows), guide=draw(rows, 3).float(), space="query")
    own = Items(store.vectors[ids][:, None], ids[:, None], guide=draw(rows, 1, 3).float(), space="image")
    known = Ragged.from_lists([[int(i), (int(i) + 3) % documents] for i in ids])
    return NegativePool(anchors, Block(own, "positive"), 0.1, known=known, context=StepContext(seed=seed)), store


CHAINS: dict[str, list[PoolMiner]] = {
    "alone": [],
    "gist": [GIST()],
    "gist with a margin": [GIST(margin=0.1, margin_strategy="relative", hard_only=True)],
    "positive-aware": [PositiveAware(0.3)],
    "weighed": [HardnessConcentration(beta=0.7)],
    "judged and weighed": [GIST(), HardnessConcentration(beta=0.7), PositiveAware(0.3)],
    "debiased": [Debiased(tau_plus=0.05)],
}
LOSSES = {
    "info_nce": InfoNCE(0.1),
    "smoothed": InfoNCE(0.1, label_smoothing=0.2),
    "pairwise": PairwiseLogistic(),
    "triplet": TripletMargin(num_negatives=4),
    "lambda_rank": LambdaRank(),
}


@pytest.mark.parametrize(("chain", "loss"), itertools.product(CHAINS, LOSSES))
def test_t3_chunks_change_nothing(chain: str, loss: str) -> None:
    """Value, gradient, counts and statistics are those of all candidates at once."""
    answers = []
    for chunk_size in (None, 50, 16, 1):
        pool, store = random_composed()
        miner = StaticBank(chunk_size=chunk_size)
        guide = torch.randn(50, 3, generator=torch.Generator().manual_seed(9))
        miner.refresh({"image": store, "guide/image": Store(guide, space="image")})
        for each in (miner, *CHAINS[chain]):
            pool = each(pool)
        value = mean(LOSSES[loss](pool))
        value.backward()
        numbers = {name: float(number) for name, number in pool.statistics().items()}
        answers.append((value.detach(), pool.anchors.embeddings.grad, pool.count(), pool.usable, numbers))
    for other in answers[1:]:
        for mine, theirs in zip(answers[0][:4], other[:4], strict=True):
            torch.testing.assert_close(theirs, mine, atol=1e-10, rtol=1e-10)
        assert other[4] == pytest.approx(answers[0][4], rel=1e-9)
    if any(isinstance(each, GIST | PositiveAware) for each in CHAINS[chain]):
        assert answers[0][4]["dropped_share"] > 0


def test_a_learned_temperature_has_its_gradient_in_chunks_too() -> None:
    found = []
    for chunk_size in (None, 7):
        pool, store = random_composed()
        loss = InfoNCE(0.1, learn_temperature=True)
        miner = StaticBank(chunk_size=chunk_size)
        miner.refresh({"image": store})
        pool = NegativePool(pool.anchors, pool.positives, loss.temperature, known=pool.known)
        mean(loss(miner(pool))).backward()
        found.append(loss.logit_scale.grad)
    torch.testing.assert_close(*found)
    assert float(found[0].abs()) > 1e-3


def test_t3_all_but_one_drawn_is_the_whole_bank_without_that_one() -> None:
    """48 are drawn of the 49 that are not the positive; the whole bank gives the same where the other one is known."""
    pool, store = random_composed()
    whole, drawn = StaticBank(), StaticBank(num_negatives=48)
    for miner in (whole, drawn):
        miner.refresh({"image": store})
    pushed = drawn(pool)
    (block,) = pushed.negatives
    seen = [{*ids, own} for ids, own in zip(block.items.ids.tolist(), pool.positives.items.ids[:, 0].tolist())]
    missing = Ragged.from_lists([[i for i in range(50) if i not in of] for of in seen])
    assert missing.lengths.tolist() == [1] * 6
    without = whole(replace(pool, known=pool.known.joined(missing)))
    assert mean(InfoNCE(0.1)(pushed)).item() == pytest.approx(mean(InfoNCE(0.1)(without)).item(), abs=1e-12)
    assert mean(InfoNCE(0.1)(pushed)).item() != pytest.approx(mean(InfoNCE(0.1)(whole(pool))).item(), abs=1e-9)


def test_drawn_ones_differ_and_are_never_the_positive() -> None:
    pool, store = random_composed()
    miner = StaticBank(num_negatives=40)
    miner.refresh({"image": store})
    (block,) = miner(pool).negatives
    own = pool.positives.items.ids
    assert block.items.ids.shape == (6, 40)
    assert all(len(set(row)) == 40 for row in block.items.ids.tolist())
    assert not bool((block.items.ids == own).any())
    assert len({tuple(sorted(row)) for row in block.items.ids.tolist()}) == 6
    assert torch.equal(block.items.embeddings, store.vectors[block.items.ids])


def test_t4_the_order_of_the_bank_is_nothing() -> None:
    pool, store = random_composed()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    values = []
    for rows in (torch.arange(50), order):
        miner = StaticBank(chunk_size=9)
        miner.refresh({"image": Store(store.vectors[rows], rows, space="image")})
        values.append(mean(InfoNCE(0.1)(miner(pool))).item())
    assert values[1] == pytest.approx(values[0], abs=1e-12)


def test_a_mapped_bank_in_half_precision_is_scored_from_its_file(tmp_path) -> None:
    pool, store = random_composed()
    Store(store.vectors.half(), space="image").save(tmp_path / "bank")
    mapped = Store.load(tmp_path / "bank")
    anchors, positives = (
        replace(items, embeddings=items.embeddings.detach().float()) for items in (pool.anchors, pool.positives.items)
    )
    pool = replace(pool, anchors=anchors, positives=Block(positives, "positive"))
    values = []
    for given in (mapped, Store(store.vectors.half().float(), space="image")):
        miner = StaticBank(chunk_size=16)
        miner.refresh({"image": given})
        values.append(mean(InfoNCE(0.1)(miner(pool))).item())
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_the_hardest_of_a_long_bank_carry_their_gradient_and_their_place() -> None:
    pool, store = random_composed()
    miner = StaticBank(chunk_size=8)
    miner.refresh({"image": store})
    scores, valid, where = miner(pool).hardest(60)
    assert scores.shape == (6, 50)
    assert valid.sum(1).tolist() == pool.known.lengths.neg().add(50).tolist()
    every = pool.anchors.unit @ torch.nn.functional.normalize(store.vectors, dim=1).T
    torch.testing.assert_close(scores[valid], every.gather(1, where[:, :, 1])[valid])
    scores[:, 0].sum().backward()
    assert bool((pool.anchors.embeddings.grad != 0).any())


# ---- errors --------------------------------------------------------------------------------------------------------


def test_a_bank_of_another_width_is_refused() -> None:
    pool, _ = random_composed()
    miner = StaticBank()
    miner.refresh({"image": Store(torch.randn(5, 3), space="image")})
    with pytest.raises(ValueError, match=r"vectors of 3 numbers, the anchors of 8.*hardneg predict"):
        miner(pool)


def test_without_a_store_it_says_so() -> None:
    pool, store = random_composed()
    with pytest.raises(RuntimeError, match=r"no frozen store of space 'image' \(it has none\)"):
        StaticBank()(pool)
    miner = StaticBank(space="document")
    miner.refresh({"image": store})
    with pytest.raises(RuntimeError, match=r"space 'document' \(it has \['image'\]\)"):
        miner(pool)


@pytest.mark.parametrize("options", [{"chunk_size": 0}, {"num_negatives": 0}])
def test_arguments(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wants at least 1, or null"):
        StaticBank(**options)


def test_who_needs_all_candidates_together_says_what_to_set() -> None:
    pool, store = random_composed()
    miner = StaticBank()
    miner.refresh({"image": store})
    with pytest.raises(ValueError, match="Set the chunk_size of the miner that adds it to null"):
        CET(origins=None)(miner(pool))


def test_a_long_block_is_shared_by_all_anchors() -> None:
    with pytest.raises(ValueError, match="that all anchors share"):
        Block(Items(torch.randn(2, 3, 4)), "bank", chunk_size=2)
    with pytest.raises(ValueError, match="rank"):
        Block(Items(torch.randn(3, 4)), "bank", chunk_size=2, rank=torch.ones(2, 3))
