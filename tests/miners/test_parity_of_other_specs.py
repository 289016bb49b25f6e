"""The pool alone carries the published numbers of methods whose miners come later.

Each method is written as the smallest miner that does it; no family, no data, no trainer around it. Values are those
that the published codes print, or float64 derivations where no code exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hardneg.losses import InfoNCE, LambdaRank, PairwiseLogistic, PoolLoss
from miners import Block, InBatch, Items, NegativePool, PoolMiner, Ragged, Store, TorchIndex
from miners.testing import cost

DOUBLE = torch.float64


def table(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


def pairs(anchors: Tensor, positives: Tensor, temperature: Tensor | float, **parts: object) -> NegativePool:
    """Row i of the anchors belongs to row i of the positives."""
    ids = torch.arange(len(anchors))
    queries, documents = Items(anchors, ids, space="query"), Items(positives, ids)
    own = Block(documents.map(lambda part: part[:, None]), "positive")
    sides = {"anchors": queries, "positives": documents}
    return NegativePool(queries, own, temperature, sides=sides, **parts)


def scored(
    positives: Tensor, negatives: Tensor, temperature: float = 1.0, usable: Tensor | None = None
) -> NegativePool:
    """A pool of ready scores: positives (B, 1), negatives (B, N)."""
    rows = torch.arange(len(positives))
    pool = NegativePool(Items(ids=rows, space="query"), Block(Items(), "positive", given=positives), temperature)
    return pool.add(Block(Items(), "mined", given=negatives, usable=usable))


def mean(loss: PoolLoss, pool: NegativePool) -> Tensor:
    total, count = loss(pool)
    return total / count


def close(value: Tensor, expected: object, digits: int = 6) -> None:
    assert torch.as_tensor(value).detach().tolist() == pytest.approx(expected, abs=0.51 * 10**-digits)


# ---- MoCHi: mixes are one lean block, without the vectors of the mixes -----------------------------------------------


class MoCHi(PoolMiner):
    """Two mixes per anchor of its two hardest queue entries, with fixed shares (spec 2.7)."""

    def __init__(self, kinds: Sequence[str] = ("pair", "query"), attached: bool = False) -> None:
        super().__init__()
        self.kinds, self.attached = kinds, attached

    def forward(self, pool: NegativePool) -> NegativePool:
        score, _, where = pool.hardest(2, origins={"queue"})  # (B, 2), with gradient
        queue = pool.negatives[0].items.unit
        inner = (queue[where[:, 0, 1]] * queue[where[:, 1, 1]]).sum(1)  # (B,)
        columns = []
        if "pair" in self.kinds:
            share, rest = 0.25, 0.75
            norm = (share**2 + rest**2 + 2 * share * rest * inner).sqrt()
            columns.append((share * score[:, 0] + rest * score[:, 1]) / norm)
        if "query" in self.kinds:
            share, rest, hard = 0.4, 0.6, score[:, 1]
            anchor = pool.anchors.embeddings
            assert anchor is not None
            own = (anchor * (anchor if self.attached else anchor.detach())).sum(1)
            norm = (share**2 * own + rest**2 + 2 * share * rest * hard).sqrt()
            columns.append((share * own + rest * hard) / (norm if self.attached else norm.detach()))
        return pool.add(Block(Items(), "mixed", given=torch.stack(columns, 1), real=False))


def moco(anchor: Tensor) -> NegativePool:
    pool = pairs(anchor, table([[0.96, 0.28, 0]]), 0.2, similarity="dot")
    queue = table([[0.8, 0.6, 0], [0.6, 0, 0.8], [0, 1, 0], [-0.6, 0, 0.8]])
    return pool.add(Block(Items(queue, torch.arange(10, 14)), "queue"))


def test_mochi_t1_values() -> None:
    pool = moco(table([[1, 0, 0]]))
    close(mean(InfoNCE(), pool), 0.484441)
    close(mean(InfoNCE(), MoCHi(["pair"])(pool)), 0.658171)
    mixed = MoCHi()(pool)
    close(mean(InfoNCE(), mixed), 0.914424)
    close(mixed.scores(mixed.negatives[1])[0], [0.724462, 0.845489])
    close(mixed.logits(mixed.negatives[1])[0], [3.622308, 4.227445])
    close(torch.cat([mixed.logits(block)[0] for block in (mixed.positives, mixed.negatives[0])]), [4.8, 4, 3, 0, -3])
    assert mixed.count().tolist() == [4]  # mixes are not counted
    close(mixed.mass(real=True), pool.mass().tolist())


@pytest.mark.parametrize(
    ("miner", "expected"),
    [
        (None, (-0.431044, 0.318223, 0.408334)),
        (MoCHi(), (-0.555189, -0.179088, 1.281881)),
        (MoCHi(attached=True), (-0.411769, -0.179088, 1.054800)),  # the mistake that the spec warns of
    ],
)
def test_mochi_t2_gradients(miner: PoolMiner | None, expected: tuple[float, ...]) -> None:
    anchor = table([[1, 0, 0]]).requires_grad_()
    pool = moco(anchor) if miner is None else miner(moco(anchor))
    (gradient,) = torch.autograd.grad(mean(InfoNCE(), pool), anchor)
    close(gradient[0], list(expected))


# ---- SPN4CIR: a bank of frozen targets instead of the batch ----------------------------------------------------------


class StaticBank(PoolMiner):
    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        self.bank = Items(bank, torch.arange(len(bank)), space="image")

    def forward(self, pool: NegativePool) -> NegativePool:
        return pool.add(Block(self.bank, "bank"))


@pytest.mark.parametrize(
    ("temperature", "whole", "in_batch", "masked"),
    [(0.5, 1.047715, 0.442548, 0.828986), (0.02, 0.037023, 4.364198e-07, 0.037023)],
)
def test_spn4cir_t1(temperature: float, whole: float, in_batch: float, masked: float) -> None:
    raw = table([[1, 0], [0, 1], [1, 1], [-1, 1], [2, 1]]).requires_grad_()
    bank = StaticBank(raw.detach())
    texts = table([[0, 1], [-0.5, 0.25]]).requires_grad_()
    queries = Items(table([[1, 0], [0.5, 0.5]]) + texts, torch.arange(2), space="query")
    targets = bank.bank.take(torch.tensor([2, 1]))
    own = Block(targets.map(lambda part: part[:, None]), "positive")
    pool = NegativePool(queries, own, temperature, sides={"anchors": queries, "positives": targets})
    loss = mean(InfoNCE(), bank(pool))
    close(loss, whole)
    close(mean(InfoNCE(), InBatch()(pool)), in_batch, digits=6 if temperature == 0.5 else 12)
    references = replace(pool, known=Ragged.from_lists([[0], [2]]))
    close(mean(InfoNCE(), bank(references)), masked)
    if temperature == 0.5:
        close(cost(bank(pool)), [1.1478, 0.9477], digits=4)
        (gradient,) = torch.autograd.grad(loss, texts)
        close(gradient.flatten(), [0.023808, -0.023808, 0.222977, 0])
        assert raw.grad is None


# ---- MMCLIP: each anchor's own list of negatives, of any length -----------------------------------------------------


def test_mmclip_geo_t1_and_t4() -> None:
    positives, negatives = table([[0.30], [0.40]]), table([[0.25, 0.28, 0.10], [0.10, -0.05, 0.38]])
    close(cost(scored(positives, negatives)), [1.3218, 1.2115], digits=4)
    close(mean(InfoNCE(), scored(positives, negatives)), 1.2667, digits=4)
    own, others = (10 * positives).requires_grad_(), (10 * negatives).requires_grad_()
    pool = scored(own, others)
    close(cost(pool), [0.9402, 0.6311], digits=4)
    close(mean(InfoNCE(), pool), 0.7857, digits=4)
    gradient = torch.cat(torch.autograd.grad(cost(pool).sum(), [own, others]), 1)
    close(gradient[0], [-0.6095, 0.2369, 0.3197, 0.0529], digits=4)
    close(gradient[1], [-0.4680, 0.0265, 0.0059, 0.4356], digits=4)


def test_mmclip_geo_t3_ragged() -> None:
    positives, negatives = table([[0.30], [0.40]]), table([[0.25, 0.28, 0.10], [0.10, -0.05, 0.38]])
    usable = torch.tensor([[True, True, True], [True, False, False]])
    pool = scored(positives, negatives, 0.1, usable)
    close(cost(pool), [0.9402, 0.0486], digits=4)
    close(mean(InfoNCE(), pool), 0.4944, digits=4)


# ---- Sample4Geo: symmetric, smoothed, with a learned temperature -----------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "smoothing", "expected", "slope"),
    [
        (10, 0, 0.558971, 0.066945),
        (10, 0.1, 0.843416, 0.351390),
        (1 / 0.07, 0, 0.612073, 0.238406),
        (1 / 0.07, 0.1, 1.018423, 0.644755),
    ],
)
def test_sample4geo_t1(scale: float, smoothing: float, expected: float, slope: float) -> None:
    ground, sky = table([[1, 0], [0.6, 0.8], [0, 2]]), table([[0.8, 0.6], [3, 4], [-0.6, 0.8]])
    loss = InfoNCE(1 / scale, learn_temperature=True, label_smoothing=smoothing).double()
    pools = [InBatch()(pairs(a, b, loss.temperature)) for a, b in ((ground, sky), (sky, ground))]
    value = torch.stack([mean(loss, pool) for pool in pools]).mean()
    close(value, expected)
    value.backward()
    assert loss.logit_scale.grad is not None
    close(loss.logit_scale.grad, slope)


# ---- STAR and ADORE ------------------------------------------------------------------------------------------------


def test_star_t1() -> None:
    queries = table([[1, 0], [0, 1], [1, 1]]).requires_grad_()
    pool = pairs(queries, table([[1, 0.2], [0.1, 1], [0.9, 0.8]]), 1.0, similarity="dot")
    hard = Items(table([[0.8, -0.1], [0.4, 0.9], [1, 0.2]]), torch.tensor([10, 11, 0]))  # the last is document 0
    star = replace(pool, sides={**pool.sides, "drawn": hard})
    loss = mean(PairwiseLogistic(), InBatch()(star))
    close(loss, 0.464655)
    close(mean(PairwiseLogistic(), InBatch()(pool)), 0.477726)
    close(mean(PairwiseLogistic(), pool.add(Block(hard, "mined"))), 0.454852)
    assert PairwiseLogistic()(InBatch()(star))[1] == 14
    (gradient,) = torch.autograd.grad(loss, queries)
    close(gradient.flatten(), [-0.043592, 0.044946, 0.088250, -0.064878, -0.031108, -0.041721])


class LiveRetrieval(PoolMiner):
    """Search a frozen index with the anchors of this step; retrieved positives keep their place in the list.

    Where none was retrieved, all known positives stand behind the list (the published rule).
    """

    def __init__(self, store: Store, depth: int) -> None:
        super().__init__()
        self.index, self.depth = TorchIndex(store, device="cpu"), depth

    def forward(self, pool: NegativePool) -> NegativePool:
        anchors = pool.anchors.embeddings
        assert anchors is not None
        assert pool.known is not None
        _, ids = self.index.search(anchors.detach().float(), self.depth)  # (B, n)
        rank = torch.arange(1, self.depth + 1).expand_as(ids)
        known = pool.known.padded()  # (B, P)
        retrieved = ids[:, :, None] == known[:, None, :]  # (B, n, P); tiny here, and not for the product
        relevant = retrieved.any(2)
        behind = (known >= 0) & ~relevant.any(1, keepdim=True)
        place = self.depth + torch.arange(1, known.shape[1] + 1).expand_as(known)
        positives = Block(
            self._items(torch.cat([ids, known], 1)),
            "positive",
            usable=torch.cat([relevant, behind], 1),
            rank=torch.cat([rank, place], 1),
        )
        pool = pool.with_positives(positives)
        return pool.add(Block(self._items(ids), "retrieved", usable=ids >= 0, rank=rank))

    def _items(self, ids: Tensor) -> Items:
        vectors = self.index.store.vectors[ids.clamp_min(0)]
        return Items(vectors, ids)


DOCUMENTS = table([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8], [0.6, 0.8], [-1, 0]])


def adore(queries: Tensor, known: Sequence[Sequence[int]]) -> NegativePool:
    anchors = Items(queries, torch.arange(len(queries)), space="query")
    nothing = Block(Items(ids=torch.full((len(queries), 1), -1)), "positive", usable=torch.zeros(len(queries), 1) > 0)
    pool = NegativePool(anchors, nothing, 1.0, "dot", known=Ragged.from_lists(known))
    return LiveRetrieval(Store(DOCUMENTS), 3)(pool)


def test_adore_t2_lists_are_those_of_brute_force() -> None:
    pool = adore(table([[1, 0.1], [0.2, 1]]), [[1], [3]])
    assert pool.negatives[0].items.ids is not None
    assert pool.negatives[0].items.ids.tolist() == [[0, 1, 4], [2, 4, 1]]


@pytest.mark.parametrize(
    ("cutoff", "known", "expected"),
    [
        (200, [[1], [3]], (0.241998, 0.305221)),
        (None, [[1], [3]], (0.241998, 0.305221)),  # no cut, where the published code's loss is 0
        (3, [[1], [3]], (0.241998, 0.506902)),
        (200, [[5], [3]], (0.750203, 0.305221)),
        (3, [[5], [3]], (1.248746, 0.506902)),
        (200, [[0, 4], [3]], (0.221998, 0.305221)),
        (3, [[0, 4], [3]], (0.221998, 0.506902)),
    ],
)
def test_adore_t2_values(cutoff: int | None, known: list[list[int]], expected: tuple[float, float]) -> None:
    queries = table([[1, 0.1], [0.2, 1]])
    for row in range(2):
        close(mean(LambdaRank(cutoff), adore(queries[row : row + 1], known[row : row + 1])), expected[row])
    close(mean(LambdaRank(cutoff), adore(queries, known)), sum(expected) / 2)


@pytest.mark.parametrize(
    ("cutoff", "loss", "gradient"),
    [
        (200, 0.273610, [0.009581, -0.036328, 0.081546, 0.013039]),
        (3, 0.374450, [0.009581, -0.036328, 0.154347, 0.013533]),
    ],
)
def test_adore_t2_gradients(cutoff: int, loss: float, gradient: list[float]) -> None:
    queries = table([[1, 0.1], [0.2, 1]]).requires_grad_()
    value = mean(LambdaRank(cutoff), adore(queries, [[1], [3]]))
    close(value, loss)
    close(torch.autograd.grad(value, queries)[0].flatten(), gradient)


def test_adore_t3_by_hand() -> None:
    above = 0.5 * F.softplus(torch.tensor(0.14, dtype=DOUBLE))
    below = F.softplus(torch.tensor(-0.18, dtype=DOUBLE)) / 6
    close(torch.stack([above, below]), [0.382798, 0.101199])
    close((above + below) / 2, 0.241998)
    close(mean(LambdaRank(), adore(table([[1, 0.1]]), [[1]])), 0.241998)


def ranked(scores: Sequence[float], positive: int, cutoff: int | None) -> Tensor:
    """One anchor whose list has these scores, its positive at this place (1-based)."""
    given = torch.tensor([scores], dtype=DOUBLE)
    rank = torch.arange(1, len(scores) + 1)[None]
    is_positive = rank == positive
    pool = NegativePool(Items(), Block(Items(), "positive", given=given, usable=is_positive, rank=rank))
    pool = pool.add(Block(Items(), "retrieved", given=given, usable=~is_positive, rank=rank))
    return mean(LambdaRank(cutoff), pool)


def test_adore_t4_invariants() -> None:
    scores = [3.0, 2.0, 1.5, 0.5, 0.1]
    pair = [F.softplus(torch.tensor(s - 1.5, dtype=DOUBLE)) for s in scores]
    # a positive inside the cut has weight 1/rank against what lies below the cut
    expected = (pair[0] * (1 - 1 / 3) + pair[1] * (1 / 2 - 1 / 3) + (pair[3] + pair[4]) / 3) / 4
    close(ranked(scores, positive=3, cutoff=3), float(expected), digits=12)
    # two members below the cut weigh nothing, and still count
    expected = (pair[0] + pair[1] / 2) / 4
    close(ranked(scores, positive=3, cutoff=2), float(expected), digits=12)
    # longer lists are other losses: the mean is over pairs
    assert ranked([*scores, 0.0], 3, None) != ranked(scores, 3, None)


def test_adore_a_list_of_positives_only_costs_nothing() -> None:
    queries = table([[1, 0.1]]).requires_grad_()
    pool = adore(queries, [[0, 1, 4]])
    value = mean(LambdaRank(), pool)
    close(value, 0.0, digits=12)
    assert bool(torch.autograd.grad(value, queries)[0].isfinite().all())
