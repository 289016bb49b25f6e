"""ADORE and the parity numbers of its published code (T1 to T6 of the method's specification)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hardneg.losses import LambdaRank, PairwiseLogistic
from miners import ADORE, Block, InBatch, Items, NegativePool, PoolMiner, Ragged, StaticNegatives, StepContext
from miners.base import TrainingTable
from miners.draws import RowGenerator
from miners.index import TorchIndex
from miners.store import Store
from miners.testing import PoolMinerContract


class Frozen(PoolMiner):
    """Stands for a module with a frozen side."""

    provides = frozenset({"frozen"})

    def forward(self, pool: NegativePool) -> NegativePool:
        return pool


class TestADORE(PoolMinerContract):
    kinds = ("two_tower",)

    def before(self) -> Sequence[PoolMiner]:
        return (Frozen(),)

    def make(self) -> PoolMiner:
        vectors = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
        miner = ADORE(num_negatives=9)
        miner.refresh({"document": Store(torch.nn.functional.normalize(vectors, dim=1))})
        return miner

    def test_ids_stay_with_their_vectors(self) -> None:
        """A frozen vector is not the batch's vector of the same document: it is compared with the store."""
        miner = self.make()
        for pool in self._pools():
            mined = miner(pool)
            for block in (mined.positives, *mined.negatives):
                there = block.items.ids >= 0
                assert torch.equal(block.items.embeddings[there], miner._index.store.rows(block.items.ids[there]))


# ---- the published numbers -----------------------------------------------------------------------------------------

DOCUMENTS = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8], [0.6, 0.8], [-1, 0]])
QUERIES = torch.tensor([[1, 0.1], [0.2, 1]])


def adore(**options: Any) -> ADORE:
    miner = ADORE(**{"num_negatives": 3, **options})
    miner.refresh({"document": Store(DOCUMENTS)})
    return miner


def pool_of(known: Sequence[Sequence[int]], queries: Tensor = QUERIES, similarity: Any = "dot") -> NegativePool:
    """Queries with their known positives, of which the first travels with the row."""
    own = torch.tensor([[row[0] if row else -1] for row in known])
    queries = queries.clone().requires_grad_()
    positives = Block(Items(torch.zeros(len(known), 1, 2), own), "positive", usable=own >= 0)
    anchors = Items(queries, torch.arange(len(known)), space="query")
    return NegativePool(anchors, positives, 1.0, similarity, known=Ragged.from_lists(known), context=StepContext())


def step(
    known: Sequence[Sequence[int]], cutoff: int | None = None, queries: Tensor = QUERIES, **options: Any
) -> tuple[float, Tensor, list[float]]:
    """Loss, gradient of the queries, and each query's own loss."""
    pool = pool_of(known, queries)
    total, count = LambdaRank(cutoff)(adore(**options)(pool))
    loss = total / count.clamp_min(1)
    loss.backward()
    each = [
        LambdaRank(cutoff)(adore(**options)(pool_of([row], query[None])))[0].item()
        for row, query in zip(known, queries, strict=True)
    ]
    return float(loss), pool.anchors.embeddings.grad, each


def test_t2_the_lists_and_the_loss() -> None:
    mined = adore()(pool_of([[1], [3]]))
    assert mined.positives.items.ids.tolist() == [[0, 1, 4, -1], [2, 4, 1, 3]]
    assert mined.positives.rank.tolist() == [[1, 2, 3, 4]] * 2
    assert mined.positives.usable.tolist() == [[False, True, False, False], [False, False, False, True]]
    assert mined.negatives[0].usable.tolist() == [[True, False, True, False], [True, True, True, False]]
    loss, gradient, each = step([[1], [3]], cutoff=200)
    assert loss == pytest.approx(0.273610, abs=5e-7)
    assert each == pytest.approx([0.241998, 0.305221], abs=5e-7)
    torch.testing.assert_close(gradient, torch.tensor([[0.009581, -0.036328], [0.081546, 0.013039]]), atol=5e-7, rtol=0)


def test_t2_a_cut_at_three() -> None:
    loss, gradient, each = step([[1], [3]], cutoff=3)
    assert loss == pytest.approx(0.374450, abs=5e-7)
    assert each == pytest.approx([0.241998, 0.506902], abs=5e-7)
    torch.testing.assert_close(gradient[1], torch.tensor([0.154347, 0.013533]), atol=5e-7, rtol=0)


def test_t2_no_cut_is_no_cut() -> None:
    assert step([[1], [3]], cutoff=None)[0] == pytest.approx(0.273610, abs=5e-7)  # the published code's is 0


def test_t2_other_positives() -> None:
    first = QUERIES[:1]
    assert step([[5]], 200, first)[0] == pytest.approx(0.750203, abs=5e-7)
    assert step([[5]], 3, first)[0] == pytest.approx(1.248746, abs=5e-7)
    for cutoff in (3, 200):
        assert step([[0, 4]], cutoff, first)[0] == pytest.approx(0.221998, abs=5e-7)


def test_t3_by_hand() -> None:
    by_hand = (
        0.5 * torch.nn.functional.softplus(torch.tensor(0.14)) + torch.nn.functional.softplus(torch.tensor(-0.18)) / 6
    )
    assert step([[1]], 200, QUERIES[:1])[0] == pytest.approx(float(by_hand) / 2, abs=5e-7)


def test_t4_pairs_below_the_cut_weigh_nothing_and_still_count() -> None:
    # q0 retrieves 0, 1, 4, 2: with the cut at 1 only pairs with document 0 weigh, and there are three pairs
    loss, *_ = step([[1]], 1, QUERIES[:1], num_negatives=4)
    assert loss == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(1.0 - 0.86))) / 3, abs=5e-7)
    loss, *_ = step([[0]], 1, QUERIES[:1], num_negatives=4)  # inside the cut: weight 1/1 against each of the three
    gaps = torch.tensor([0.86 - 1.0, 0.68 - 1.0, 0.1 - 1.0])
    assert loss == pytest.approx(float(torch.nn.functional.softplus(gaps).mean()), abs=5e-7)


def test_t4_the_documents_get_no_gradient_and_do_not_move() -> None:
    miner, before = adore(), DOCUMENTS.clone()
    mined = miner(pool_of([[1], [3]]))
    assert not mined.positives.items.embeddings.requires_grad
    LambdaRank()(mined)[0].backward()
    assert torch.equal(miner._index.store.vectors, before)
    assert not list(miner.parameters())


def test_t1_star() -> None:
    """STAR's loss: in-batch and static negatives under one mean, a hard negative that is somebody's positive masked."""
    queries = torch.tensor([[1.0, 0], [0, 1], [1, 1]], requires_grad=True)
    documents = Items(torch.tensor([[1, 0.2], [0.1, 1], [0.9, 0.8]]), torch.tensor([0, 1, 2]))
    hard = Items(torch.tensor([[0.8, -0.1], [0.4, 0.9], [1, 0.2]]), torch.tensor([7, 8, 0]), rows=torch.arange(3))
    own = documents.map(lambda part: part[:, None])

    def star(**sides: Items) -> tuple[Tensor, int]:
        pool = NegativePool(
            Items(queries, torch.arange(3), space="query"), Block(own, "positive"), 1.0, "dot", sides=sides
        )
        total, count = PairwiseLogistic()(InBatch()(pool))
        return total / count, int(count)

    loss, count = star(positives=documents)
    assert (float(loss), count) == (pytest.approx(0.477726, abs=5e-7), 6)
    loss, count = star(drawn=hard)
    assert (float(loss), count) == (pytest.approx(0.454852, abs=5e-7), 8)
    loss, count = star(positives=documents, drawn=hard)
    assert (float(loss), count) == (pytest.approx(0.464655, abs=5e-7), 14)
    loss.backward()
    expected = torch.tensor([[-0.043592, 0.044946], [0.088250, -0.064878], [-0.031108, -0.041721]])
    torch.testing.assert_close(queries.grad, expected, atol=5e-7, rtol=0)


def test_t5_static_lists_hold_no_positive_and_begin_with_the_best_other() -> None:
    generator = torch.Generator().manual_seed(0)
    documents, queries = torch.randn(60, 5, generator=generator), torch.randn(9, 5, generator=generator)
    positives = Ragged.from_lists([[3 * row, 3 * row + 1] for row in range(9)])
    scores, ids = TorchIndex(Store(documents), device="cpu").search(queries, 10 + 2)
    kept = ~torch.stack([torch.isin(row, torch.tensor(known)) for row, known in zip(ids, positives.to_lists())])
    lists = [row[keep][:10].tolist() for row, keep in zip(ids, kept)]
    best = (queries @ documents.T).scatter(1, positives.padded(), -torch.inf).argmax(1)
    assert [row[0] for row in lists] == best.tolist()
    assert all(bool((row[:-1] >= row[1:]).all()) for row in scores)
    source = StaticNegatives(Ragged.from_lists(lists), num_negatives=10)
    source.attach(TrainingTable(torch.arange(9), positives))
    drawn = source.draw(torch.arange(9), torch.zeros(9).long(), 0, RowGenerator(0, 0))
    assert [sorted(row) for row in drawn.ids.tolist()] == [sorted(row) for row in lists]


def test_t6_the_next_list_is_that_of_the_new_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    documents = torch.randn(200, 2, generator=generator)
    miner = ADORE(num_negatives=7)
    miner.refresh({"document": Store(documents)})
    encoder = torch.nn.Linear(3, 2)
    inputs = torch.randn(5, 3, generator=generator)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=50.0)
    seen = []
    for _ in range(2):
        queries = encoder(inputs)
        own = Block(Items(torch.zeros(5, 1, 2), torch.arange(5)[:, None]), "positive")
        mined = miner(NegativePool(Items(queries, torch.arange(5), space="query"), own, 1.0, "dot"))
        assert torch.equal(mined.positives.items.ids[:, :7], (queries @ documents.T).topk(7).indices)
        seen.append(mined.positives.items.ids[:, :7])
        optimizer.zero_grad()
        LambdaRank()(mined)[0].backward()
        optimizer.step()
    assert not torch.equal(*seen)


# ---- edges ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("if_none", [[0, 1, 4, -1], [2, 4, 1, 3]]), ("always", [[0, 1, 4, 5], [2, 4, 1, 3]]), ("never", None)],
)
def test_missing_positives(missing: Any, expected: Any) -> None:
    mined = adore(missing_positives=missing)(pool_of([[1, 5], [3]]))
    assert mined.positives.items.ids.tolist() == (expected or [[0, 1, 4], [2, 4, 1]])
    assert mined.positives.usable.any(1).tolist() == [True, missing != "never"]
    _, count = LambdaRank()(mined)
    assert int(count) == (2 if missing != "never" else 1)  # a query without a positive costs nothing and is no term


def test_several_missing_positives_are_all_appended_only_if_none_was_found() -> None:
    mined = adore()(pool_of([[3, 5], [3, 2]]))
    assert mined.positives.items.ids.tolist() == [[0, 1, 4, 3, 5], [2, 4, 1, -1, -1]]


def test_a_list_of_positives_only_costs_nothing() -> None:
    loss, gradient, _ = step([[0, 1, 4], [3]])
    assert bool(gradient.isfinite().all())
    assert float(gradient[0].abs().max()) == 0
    assert loss == pytest.approx(0.305221 / 2, abs=5e-7)


def test_known_ids_may_be_kept_apart() -> None:
    mined = adore(positives="own")(pool_of([[1, 4], [3]]))
    assert mined.positives.usable[0].tolist() == [False, True, False, False]
    assert mined.negatives[0].usable[0].tolist() == [True, False, False, False]  # 4 is known: neither


class Leaky(TorchIndex):
    """An approximate index that fills one slot of the first query only."""

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, ids = super()._search(queries, k)
        ids[0, 1:], scores[0, 1:] = -1, -torch.inf
        return scores, ids


def test_empty_slots_are_nobody() -> None:
    miner = adore()
    miner._index = Leaky(miner._index.store)
    mined = miner(pool_of([[5], [3]]))
    assert mined.positives.items.ids[0].tolist() == [0, -1, -1, 5]
    assert mined.positives.usable[0].tolist() == [False, False, False, True]
    assert mined.negatives[0].usable[0].tolist() == [True, False, False, False]
    gap = torch.tensor(1.0 - -1.0)  # one pair: document 0 (rank 1) against the appended 5 (rank 4)
    total, _ = LambdaRank()(miner(pool_of([[5]], QUERIES[:1])))
    assert float(total) == pytest.approx(float(0.75 * torch.nn.functional.softplus(gap)), abs=5e-7)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,PQ2x4", "HNSW8", "torch"])
def test_vectors_come_from_the_store_whatever_the_index(factory: str) -> None:
    if factory != "torch":
        pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(1)
    documents = torch.nn.functional.normalize(torch.randn(400, 4, generator=generator), dim=1)
    ids = torch.randperm(1000, generator=generator)[:400]
    miner = ADORE(num_negatives=20, index=factory, device="cpu")
    miner.refresh({"document": Store(documents, ids)})
    queries = Items(torch.randn(6, 4, generator=generator), torch.arange(6), space="query")
    mined = miner(NegativePool(queries, Block(Items(torch.zeros(6, 1, 4), ids[:6, None]), "positive")))
    for block in (mined.positives, *mined.negatives):
        there = block.items.ids >= 0
        assert torch.equal(block.items.embeddings[there], miner._index.store.rows(block.items.ids[there]))
        assert not (mined.usable_of(block) & ~there).any()
    assert mined.positives.usable.sum(1).tolist() == [1] * 6
    assert mined.scores(mined.negatives[0]).shape == mined.negatives[0].rank.shape


def test_errors_say_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"no frozen store of space 'document': give the module frozen="):
        ADORE()(pool_of([[1], [3]]))
    miner = ADORE(num_negatives=3)
    miner.refresh({"document": Store(2 * DOCUMENTS)})
    with pytest.raises(ValueError, match=r"not of length 1.*Normalise them before they are stored, or set similarity"):
        miner(pool_of([[1], [3]], similarity="cosine"))
    with pytest.raises(ValueError, match=r"positives that are not in its frozen store: .*holds no id 99"):
        adore()(pool_of([[99], [3]]))
    turned = Block(Items(torch.zeros(2, 1, 2), torch.zeros(2, 1).long(), space="query"), "positive")
    pool = NegativePool(pool_of([[1], [3]]).anchors, turned, 1.0, "dot")
    with pytest.raises(ValueError, match="this chain's positives are of space 'query'"):
        adore()(pool)
    for options in ({"num_negatives": 0}, {"missing_positives": "sometimes"}, {"positives": "all"}):
        with pytest.raises(ValueError, match="wants"):
            ADORE(**options)


def test_a_store_that_is_held_already_is_not_indexed_again() -> None:
    store, miner = Store(DOCUMENTS), ADORE()
    miner.refresh({"document": store})
    index = miner._index
    miner.refresh({"document": store, "query": Store(QUERIES, space="query")})
    assert miner._index is index
    miner.refresh({"document": Store(DOCUMENTS.clone())})
    assert miner._index is not index
