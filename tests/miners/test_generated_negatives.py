"""Made negatives: laws of a source, ragged lists, kinds, and the numbers of the specification in a pool."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hardneg.losses import InfoNCE
from miners import Block, GeneratedNegatives, InBatch, Items, NegativePool, NegativeSource, Ragged, TrainingTable
from miners.caption_edits import LettersEdit, NumberEdit
from miners.draws import RowGenerator
from miners.testing import NegativeSourceContract, random_pool
from tests.oracles.mmclip import sigmoid_loss, text_script

COSINES = torch.tensor([[0.30, 0.25, 0.28, 0.10], [0.40, 0.10, -0.05, 0.38]], dtype=torch.float64)
ALL = torch.ones(2, 3, dtype=torch.bool)
FIRST = torch.tensor([[True, True, True], [True, False, False]])


class TestReadyLists(NegativeSourceContract):
    def make(self, table: TrainingTable) -> NegativeSource:
        lists = Ragged.from_lists([[(7 * row + i) % 100 for i in range(row % 13)] for row in range(len(table))])
        return GeneratedNegatives(lists, space="document", num_negatives=3)


def ready(lists: list[list[int]], kinds: list[list[int]] | None = None, **options: object) -> GeneratedNegatives:
    source = GeneratedNegatives(**options)  # type: ignore[arg-type]
    ragged = Ragged.from_lists(lists)
    of = torch.zeros_like(ragged.values) if kinds is None else Ragged.from_lists(kinds).values
    source.use(ragged, of, ("a", "b"))
    source.attach(TrainingTable(torch.arange(len(lists)), Ragged.from_lists([[row] for row in range(len(lists))])))
    return source


def drawn(source: GeneratedNegatives, rows: int, epoch: int = 0) -> list[list[int]]:
    every = torch.arange(rows)
    draw = source.draw(every, every, epoch, RowGenerator(0, epoch, 1))
    return [[i for i in row if i >= 0] for row in draw.ids.tolist()]


def pool_of(cosines: Tensor, usable: Tensor, scale: float) -> NegativePool:
    """Each anchor with its own list of made negatives and nothing else."""
    ids = 10 + torch.arange(cosines.shape[1] - 1).repeat(len(cosines), 1)
    anchors = Items(ids=torch.arange(len(cosines)), space="image")
    positive = Block(Items(ids=torch.arange(len(cosines))[:, None], space="caption"), "positive", given=cosines[:, :1])
    made = Block(Items(ids=ids, space="caption"), "generated", given=cosines[:, 1:], usable=usable)
    return NegativePool(anchors, positive, 1 / scale).add(made)


def rows_of(cosines: Tensor, usable: Tensor, scale: float) -> list[float]:
    """The loss of each anchor by itself."""
    loss = InfoNCE(1 / scale)
    return [float(loss(pool_of(cosines[i : i + 1], usable[i : i + 1], scale))[0]) for i in range(len(cosines))]


@pytest.mark.parametrize(("scale", "rows"), [(1, [1.3218, 1.2115]), (10, [0.9402, 0.6311])])
def test_softmax_of_the_specification(scale: float, rows: list[float]) -> None:
    assert rows_of(COSINES, ALL, scale) == pytest.approx(rows, abs=5e-5)
    total, count = InfoNCE(1 / scale)(pool_of(COSINES, ALL, scale))
    assert float(total / count) == pytest.approx({1: 1.2667, 10: 0.7857}[int(scale)], abs=6e-5)


def test_sigmoid_of_the_published_image_script() -> None:
    assert sigmoid_loss(COSINES, ALL, 1.0, -2.0).tolist() == pytest.approx([2.3321, 2.2250], abs=5e-5)
    found = sigmoid_loss(COSINES, ALL, 10.0, -2.0)
    assert found.tolist() == pytest.approx([2.7717, 2.4721], abs=5e-5)
    assert float(found.mean()) == pytest.approx(2.6219, abs=5e-5)
    assert float(sigmoid_loss(COSINES, FIRST, 10.0, -2.0)[1]) == pytest.approx(0.4402, abs=5e-5)


def test_the_published_text_script_overwrites_its_sigmoid_with_softmax() -> None:
    for bias in (-2.0, 3.0):
        assert text_script(COSINES, 10.0, bias).tolist() == pytest.approx(rows_of(COSINES, ALL, 10), abs=1e-9)


def test_lists_of_different_lengths() -> None:
    assert rows_of(COSINES, FIRST, 10) == pytest.approx([0.9402, 0.0486], abs=5e-5)
    total, count = InfoNCE(0.1)(pool_of(COSINES, FIRST, 10))
    assert float(total / count) == pytest.approx(0.4944, abs=5e-5)


def test_gradient_of_the_specification() -> None:
    cosines = COSINES.clone().requires_grad_()
    total, _ = InfoNCE(0.1)(pool_of(cosines, ALL, 10))
    (gradient,) = torch.autograd.grad(total, cosines)
    wanted = [[-0.6095, 0.2369, 0.3197, 0.0529], [-0.4680, 0.0265, 0.0059, 0.4356]]
    assert torch.allclose(gradient / 10, torch.tensor(wanted, dtype=torch.float64), atol=5e-5)


cosine = st.floats(-1, 1, width=32)


@settings(max_examples=50, deadline=None)
@given(row=st.lists(cosine, min_size=3, max_size=6), seed=st.integers(0, 9), scale=st.sampled_from([1.0, 10.0, 50.0]))
def test_laws_of_own_negatives(row: list[float], seed: int, scale: float) -> None:
    cosines = torch.tensor([row], dtype=torch.float64)
    usable = torch.ones(1, len(row) - 1, dtype=torch.bool)
    plain = rows_of(cosines, usable, scale)[0]
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(len(row) - 1)])
    assert rows_of(cosines[:, order], usable, scale)[0] == pytest.approx(plain, abs=1e-9)
    masked = torch.cat([cosines, torch.full((1, 1), 0.9, dtype=torch.float64)], 1)
    hidden = torch.cat([usable, torch.zeros(1, 1, dtype=torch.bool)], 1)
    assert rows_of(masked, hidden, scale)[0] == plain, "a masked column is not exactly nothing"
    twice = torch.cat([cosines, cosines[:, 1:2]], 1)
    more = math.exp(plain) + math.exp(scale * (row[1] - row[0]))  # one more e^s over e^s_0
    found = rows_of(twice, torch.ones(1, len(row), dtype=torch.bool), scale)[0]
    assert math.exp(found) == pytest.approx(more, rel=1e-9)
    assert rows_of(cosines, torch.zeros_like(usable), scale)[0] == 0


def test_own_and_in_batch_with_empty_lists_is_plain_info_nce() -> None:
    pool = random_pool(kind="two_tower")
    drawn = pool.sides["drawn"]
    assert isinstance(drawn, Items)
    empty = NegativePool(**{**vars(pool), "sides": {**pool.sides, "drawn": drawn.take(slice(0, 0))}})
    loss = InfoNCE(0.1)
    assert torch.equal(loss(InBatch("own")(empty))[0], loss(InBatch("none")(empty))[0])


def test_own_alone_adds_nothing_but_the_rows_own_list() -> None:
    pool = InBatch(drawn="own", others=False)(random_pool(kind="two_tower"))
    assert [block.origin for block in pool.negatives] == ["mined"]
    assert pool.usable.sum(1).tolist() == [int(n) for n in pool.count()]
    assert int(pool.count().max()) <= 2
    with pytest.raises(ValueError, match="would add nothing"):
        InBatch(drawn="none", others=False)


def test_the_published_draw_takes_the_first_and_ours_sees_all() -> None:
    first = ready([[10, 11, 12, 13, 14]], strategy="first", num_negatives=2)
    assert {tuple(drawn(first, 1, epoch)[0]) for epoch in range(20)} == {(10, 11)}
    seen = Counter(
        i for epoch in range(300) for i in drawn(ready([[10, 11, 12, 13, 14]], num_negatives=2), 1, epoch)[0]
    )
    assert set(seen) == {10, 11, 12, 13, 14}
    assert all(80 < number < 160 for number in seen.values())


def test_a_cap_by_kind() -> None:
    source = ready([[10, 11, 12, 13, 20], [14, 15]], [[0, 0, 0, 0, 1], [0, 0]], num_negatives=4, per_kind=1)
    for epoch in range(20):
        long, short = drawn(source, 2, epoch)
        assert len(long) == 2
        assert 20 in long
        assert len(short) == 1
    assert source.counts == {"a": 40, "b": 20}


def test_rows_without_negatives_and_at_least() -> None:
    assert drawn(ready([[], [5]]), 2) == [[], [5]]
    with pytest.raises(ValueError, match=r"at_least=1\): row 0 has 0 negatives"):
        ready([[], [5]], at_least=1)


def test_the_control_hands_lists_to_other_rows() -> None:
    lists = [[100 + row] for row in range(30)]
    found = drawn(ready(lists, shuffled=True), 30)
    assert found != drawn(ready(lists), 30)
    assert sorted(i for row in found for i in row) == [100 + row for row in range(30)]


def test_a_caption_without_a_number_is_named() -> None:
    source = GeneratedNegatives(edits=[NumberEdit()])
    assert source.made_from(["a dot", "2 dots"]) == [(1, "1 dots", "number"), (1, "3 dots", "number")]
    with pytest.raises(
        ValueError, match=r"NumberEdit finds nothing .* in any of 2 captions, such as 'a dot': it wants a number"
    ):
        source.made_from(["a dot", "a bar"])
    with pytest.raises(ValueError, match=r"LettersEdit finds nothing .* four capital letters"):
        GeneratedNegatives(edits=[LettersEdit()]).made_from(["triangle ABC"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_negatives": 0}, "num_negatives=0"),
        ({"per_kind": 0}, "per_kind=0"),
        ({"strategy": "last"}, "wants 'uniform' or 'first'"),
        ({"edits": [NumberEdit()], "space": "image"}, "change captions"),
    ],
)
def test_mistakes(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GeneratedNegatives(**options)
    with pytest.raises(ValueError, match="1 lists for 2 training rows"):
        GeneratedNegatives(Ragged.from_lists([[1]])).attach(
            TrainingTable(torch.arange(2), Ragged.from_lists([[0], [1]]))
        )
    with pytest.raises(RuntimeError, match="made by a data module of pictures and captions"):
        GeneratedNegatives().draw(torch.arange(1), torch.arange(1), 0, RowGenerator(0, 0))
