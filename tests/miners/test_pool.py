"""The pool against loops: who may be a negative, and what the sums over many blocks are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miners import Block, InBatch, Items, NegativePool, Ragged, SelfBlocks, StepContext
from miners.testing import KINDS, cost, leaves, random_pool
from tests.oracles import pool as oracle

INF = float("inf")


def numbers(shape: Sequence[int], low: int = -1, high: int = 4) -> st.SearchStrategy[Tensor]:
    """Few different ids, nobody among them, so that everything collides."""
    size = 1
    for side in shape:
        size *= side
    return st.lists(st.integers(low, high), min_size=size, max_size=size).map(
        lambda values: torch.tensor(values, dtype=torch.long).reshape(*shape)
    )


@st.composite
def colliding_pools(draw: st.DrawFn) -> tuple[NegativePool, Block]:
    anchors, columns, positives = draw(st.integers(1, 4)), draw(st.integers(0, 6)), draw(st.integers(1, 3))
    spaces = st.sampled_from(["query", "document"])
    shared = draw(st.booleans())
    own = (positives,) if shared else (anchors, positives)
    usable = draw(numbers((anchors, positives), 0, 1)).bool()
    maybe = st.booleans()
    queries = Items(
        torch.zeros(anchors, 2),
        ids=draw(numbers((anchors,))),
        content=draw(numbers((anchors,))) if draw(maybe) else None,
        labels=draw(numbers((anchors,), -1, 1)) if draw(maybe) else None,
        space="query",
    )
    documents = Items(
        torch.zeros(*own, 2),
        ids=draw(numbers(own)) if draw(maybe) else None,
        content=draw(numbers(own)) if draw(maybe) else None,
        space=draw(spaces),
    )
    known = draw(st.lists(st.lists(st.integers(-1, 4), max_size=3), min_size=anchors, max_size=anchors))
    pool = NegativePool(
        queries,
        Block(documents, "positive", usable=usable if shared or draw(maybe) else None),
        known=Ragged.from_lists(known) if draw(maybe) else None,
    )
    each = (anchors, columns) if draw(maybe) else (columns,)
    candidates = Items(
        torch.zeros(*each, 2),
        ids=draw(numbers(each)) if draw(maybe) else None,
        content=draw(numbers(each)) if draw(maybe) else None,
        labels=draw(numbers((columns,), -1, 1)) if draw(maybe) else None,
        space=draw(spaces),
    )
    return pool, Block(candidates, "in_batch")


@given(colliding_pools())
@settings(max_examples=300, deadline=None)
def test_identities_are_masked_as_the_loops_say(example: tuple[NegativePool, Block]) -> None:
    pool, block = example
    mined = pool.add(block)
    assert mined.usable.tolist() == oracle.may_be_negative(pool, block)
    assert sum(int(n) for n in mined.dropped.values()) == int((~mined.usable).sum())


@given(colliding_pools(), st.data())
@settings(max_examples=50, deadline=None)
def test_what_was_masked_before_stays_masked_and_is_not_counted_again(
    example: tuple[NegativePool, Block], data: st.DataObject
) -> None:
    pool, block = example
    before = data.draw(numbers((len(pool), len(block.items)), 0, 1)).bool()
    mined = pool.add(replace(block, usable=before))
    assert not (mined.usable & ~before).any()
    assert sum(int(n) for n in mined.dropped.values()) == int((before & ~mined.usable).sum())


def wide(pool: NegativePool) -> Tensor:
    """(B, all N) logits of every block side by side: the matrix that the pool never makes."""
    return torch.cat([pool.logits(block) for block in pool.negatives], dim=1)


def weighted(seed: int, kind: str = "two_tower", dtype: torch.dtype = torch.float64) -> NegativePool:
    pool = InBatch()(random_pool(seed, kind, dtype=dtype))
    if "own_positive" in KINDS[kind]:
        pool = SelfBlocks()(pool)
    pool = pool.mask(lambda scores, block: scores > 0.7, "test")
    return pool.weight(lambda scores, block: 0.3 * scores - 0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [1.0, 0.0, 2.5, -1.0])
def test_mass_is_the_logsumexp_of_all_blocks(kind: str, power: float) -> None:
    pool = weighted(0, kind)
    expected = (wide(pool) * power).where(pool.usable, -INF).logsumexp(1)
    torch.testing.assert_close(pool.mass(power), expected)


def test_mass_with_and_without_synthetic_blocks() -> None:
    pool = InBatch()(random_pool(0, "symmetric", dtype=torch.float64))
    real = pool.mass()
    pool = pool.add(Block(Items(), "mixed", given=torch.zeros(6, 2, dtype=torch.float64), real=False))
    torch.testing.assert_close(pool.mass(real=True), real)
    torch.testing.assert_close(pool.mass(), wide(pool).logsumexp(1))
    assert torch.equal(pool.count(), pool.count(real=False) - 2)


def test_an_empty_pool_has_no_mass() -> None:
    pool = random_pool(0)
    assert pool.mass().tolist() == [-INF] * 6
    assert pool.count().tolist() == [0] * 6
    assert pool.hardest(3)[0].shape == (6, 0)
    assert pool.statistics()["empty_rows"] == 6


@pytest.mark.parametrize("columns", [0, 1])
def test_a_block_of_no_columns(columns: int) -> None:
    pool = random_pool(0, "symmetric")
    nothing = pool.sides["positives"].take(torch.arange(columns))
    mined = InBatch()(pool).add(Block(nothing, "queue"))
    torch.testing.assert_close(mined.mass(), wide(mined).logsumexp(1))
    assert mined.hardest(100)[0].shape == (6, 6 + columns)
    assert bool(mined.statistics()["hardness_max"].isfinite())
    assert len(NegativePool(pool.anchors, pool.positives).add(Block(nothing, "queue")).hardest(2)[0]) == 6


def test_empty_rows_have_no_mass_and_a_finite_gradient() -> None:
    pool = InBatch()(random_pool(0, "symmetric"))
    pool = pool.mask(lambda scores, block: (torch.arange(6) < 2)[:, None].expand_as(scores), "test")
    assert pool.mass()[:2].tolist() == [-INF, -INF]
    for gradient in torch.autograd.grad(cost(pool).sum(), leaves(pool)):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 3, 100])
def test_hardest_are_the_best_of_all_blocks(seed: int, k: int) -> None:
    pool = weighted(seed)
    scores = torch.cat([pool.scores(block) for block in pool.negatives], 1).masked_fill(~pool.usable, -INF)
    best, valid, where = pool.hardest(k)
    expected = scores.sort(dim=1, descending=True).values[:, :k]
    assert torch.equal(valid, expected > -INF)
    assert torch.equal(best, expected.where(valid, 0))
    for i, j in valid.nonzero().tolist():
        block = pool.negatives[where[i, j, 0]]
        assert pool.scores(block)[i, where[i, j, 1]] == best[i, j]
        assert pool.usable_of(block)[i, where[i, j, 1]]
    (gradient,) = torch.autograd.grad(best.sum(), pool.anchors.embeddings)
    assert bool(gradient.isfinite().all())


def test_hardest_of_one_origin() -> None:
    pool = weighted(1)
    best, _, where = pool.hardest(2, origins={"mined"})
    assert set(where[:, :, 0].flatten().tolist()) == {1}
    assert torch.equal(
        best[:, 0], pool.scores(pool.negatives[1]).masked_fill(~pool.usable_of(pool.negatives[1]), -INF).amax(1)
    )
    assert pool.hardest(2, origins={"queue"})[0].shape == (6, 0)


def test_statistics_are_those_of_loops() -> None:
    pool = InBatch()(random_pool(3, dtype=torch.float64)).mask(lambda scores, block: scores > 0.3, "test")
    pool = pool.mask(lambda scores, block: (torch.arange(6) == 4)[:, None].expand_as(scores), "other")
    scores = torch.cat([pool.scores(block).detach() for block in pool.negatives], 1)
    rows = [scores[i][pool.usable[i]] for i in range(6)]
    found = pool.statistics()
    assert float(found["hardness_mean"]) == pytest.approx(float(torch.cat(rows).mean()))
    assert float(found["hardness_max"]) == pytest.approx(sum(float(r.max()) for r in rows if len(r)) / 5)
    assert float(found["negatives_per_anchor"]) == pytest.approx(int(pool.usable.sum()) / 6)
    assert float(found["empty_rows"]) == 1
    judged = float(found["dropped/test"] + found["dropped/other"])
    assert float(found["dropped_share"]) == pytest.approx(judged / (judged + int(pool.usable.sum())))
    assert not any(value.requires_grad for value in found.values())


def test_synthetic_blocks_are_neither_judged_nor_weighted() -> None:
    pool = random_pool(0, "symmetric").add(Block(Items(), "mixed", given=torch.ones(6, 2), real=False))
    judged = pool.mask(lambda scores, block: scores > -5, "test").weight(lambda scores, block: scores)
    assert judged.usable.all()
    assert judged.negatives[0].log_weight is None
    assert judged.weight(lambda scores, block: scores, real=False).negatives[0].log_weight is not None


def test_weights_add_up() -> None:
    pool = InBatch()(random_pool(0, "symmetric"))
    twice = pool.weight(lambda s, b: torch.full((6, 1), 0.5)).weight(lambda s, b: torch.full((6, 1), 0.25))
    torch.testing.assert_close(twice.mass(), pool.mass() + 0.75)


def test_new_positives_are_masked_among_the_negatives() -> None:
    pool = InBatch()(random_pool(0, "symmetric", anchors=4))
    documents = pool.sides["positives"]
    both = Block(documents.take(torch.tensor([[0, 3], [1, 0], [2, 3], [3, 2]])), "positive")
    changed = pool.with_positives(both)
    assert changed.positives is both
    assert pool.usable[0, 3]
    assert not changed.usable[0, 3]
    assert not (changed.usable & ~pool.usable).any()


def test_nobody_equals_nobody() -> None:
    nobody = torch.tensor([-1, -1])
    anchors = Items(torch.eye(2), nobody, nobody, nobody, space="document")
    pool = NegativePool(anchors, Block(Items(torch.eye(2)[:, None], nobody[:, None], nobody[:, None]), "positive"))
    pool = replace(pool, known=Ragged.from_lists([[-1], [-1]]))
    assert pool.add(Block(anchors, "in_batch")).usable.all()


def test_ids_of_two_spaces_are_never_equal_and_content_is() -> None:
    pool = random_pool(0, "symmetric", anchors=4)
    document = pool.sides["positives"]
    elsewhere = replace(document, space="picture")
    mined = pool.add(Block(elsewhere, "bank"))
    assert mined.usable.tolist() == [[i != j and {i, j} != {0, 1} for j in range(4)] for i in range(4)]
    unknown = replace(elsewhere, content=None)
    assert pool.add(Block(unknown, "bank")).usable.all()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_scores_and_sums_have_fp32_at_least(dtype: torch.dtype, expected: torch.dtype, similarity: str) -> None:
    pool = SelfBlocks()(InBatch()(replace(random_pool(0, dtype=dtype), similarity=similarity)))
    reference = SelfBlocks()(InBatch()(replace(random_pool(0, dtype=torch.float64), similarity=similarity)))
    for block, other in zip(pool.negatives, reference.negatives, strict=True):
        assert pool.scores(block).dtype == expected
        torch.testing.assert_close(pool.scores(block).double(), reference.scores(other), atol=1e-5, rtol=1e-5)
    assert pool.mass().dtype == pool.total().dtype == pool.hardest(1)[0].dtype == expected
    torch.testing.assert_close(pool.mass().double(), reference.mass(), atol=1e-4, rtol=1e-4)
    assert pool.guide_scores(pool.negatives[0]).dtype == expected


def test_dot_and_cosine() -> None:
    pool = InBatch()(random_pool(0, "symmetric", dtype=torch.float64))
    a, b = pool.anchors.embeddings, pool.sides["positives"].embeddings
    dot = replace(pool, similarity="dot", memo={})
    torch.testing.assert_close(dot.scores(dot.negatives[0]), a @ b.T)
    torch.testing.assert_close(
        pool.scores(pool.negatives[0]),
        torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2),
    )


def test_own_candidates_and_shared_ones_score_alike() -> None:
    pool = random_pool(0, "two_tower", dtype=torch.float64)
    documents = pool.sides["positives"]
    own = documents.map(lambda part: part[None].expand(6, *part.shape))
    shared, each = pool.add(Block(documents, "queue")), pool.add(Block(own, "queue"))
    torch.testing.assert_close(shared.mass(), each.mass())
    assert torch.equal(shared.usable, each.usable)
    torch.testing.assert_close(shared.guide_scores(shared.negatives[0]), each.guide_scores(each.negatives[0]))


def test_a_score_asked_for_without_gradient_does_not_silence_the_loss() -> None:
    pool = InBatch()(random_pool(0, "symmetric"))
    with torch.no_grad():
        pool.scores(pool.negatives[0])
    pool.statistics()
    gradients = torch.autograd.grad(cost(pool).sum(), leaves(pool))
    expected = InBatch()(random_pool(0, "symmetric"))
    for gradient, other in zip(gradients, torch.autograd.grad(cost(expected).sum(), leaves(expected)), strict=True):
        torch.testing.assert_close(gradient, other)


def test_a_product_is_made_once() -> None:
    pool = InBatch()(random_pool(0, "symmetric"))
    first = pool.scores(pool.negatives[0])
    masked = pool.mask(lambda scores, block: scores > 0.5, "test").weight(lambda scores, block: scores)
    assert masked.scores(masked.negatives[0]) is first
    with torch.no_grad():
        assert masked.scores(masked.negatives[0]) is first


def test_items_move_together() -> None:
    items = random_pool(0).sides["drawn"]
    assert isinstance(items, Items)
    taken = items.take(torch.tensor([4, 1]))
    assert taken.ids is not None
    assert taken.rows is not None
    assert (len(taken), taken.ids.tolist(), taken.rows.tolist()) == (2, [19, 16], [2, 0])
    assert torch.equal(taken.embeddings, items.embeddings[[4, 1]])
    assert items.detach().embeddings is not None
    assert not items.detach().embeddings.requires_grad
    assert items.to(torch.float64).tensors().keys() == items.tensors().keys()
    assert torch.equal(replace(items, embeddings=-items.embeddings).unit, -items.unit)
    assert len(Items()) == 0


def test_processes_draw_what_one_process_draws() -> None:
    def sample(rows: int, generator: torch.Generator) -> Tensor:
        return torch.rand(rows, 3, generator=generator)

    whole = StepContext(step=7, seed=3).draw(sample, 6)
    for offset in (0, 2, 4):
        share = StepContext(step=7, seed=3, offset=offset, global_rows=6).draw(sample, 2)
        assert torch.equal(share, whole[offset : offset + 2])
    assert not torch.equal(StepContext(step=8, seed=3).draw(sample, 6), whole)
    assert not torch.equal(StepContext(step=7, seed=3).draw(sample, 6, stream=1), whole)


def test_messages() -> None:
    with pytest.raises(
        ValueError, match=r"Items of space 'document' disagree on how many things they are: \{'embeddings'"
    ):
        Items(torch.zeros(3, 2), torch.arange(2))
    pool = random_pool(0, "symmetric")
    with pytest.raises(ValueError, match="NegativePool\\(similarity='l2'\\): wants 'cosine' or 'dot'"):
        replace(pool, similarity="l2")
    other = pool.add(Block(Items(torch.zeros(2, 5), space="document"), "queue"))
    with pytest.raises(ValueError, match="anchors of space 'imu' have 8 dims, candidates of space 'document' 5"):
        other.mass()
    with pytest.raises(
        ValueError, match="needs guide vectors on every block; block 'positive' \\(space 'imu'\\) has none"
    ):
        pool.guide_scores(pool.positives)
    with pytest.raises(ValueError, match="Items of space 'query' have no embeddings"):
        NegativePool(Items(ids=torch.arange(2), space="query"), pool.positives).scores(pool.positives)


def test_weights_of_minus_infinity_are_masks_with_a_finite_gradient() -> None:
    """MEOW and DCL may weigh every negative of a row with 0."""
    pool = InBatch()(random_pool(0, "symmetric"))
    nothing = torch.zeros(6, 1).index_fill(0, torch.tensor([1, 4]), -INF)
    weighted = pool.weight(lambda scores, block: nothing)
    assert weighted.mass()[[1, 4]].tolist() == [-INF, -INF]
    torch.testing.assert_close(cost(weighted)[[0, 2, 3, 5]], cost(pool)[[0, 2, 3, 5]])
    for gradient in torch.autograd.grad(cost(weighted).sum(), leaves(pool)):
        assert bool(gradient.isfinite().all())
