"""Flips are counted right, by rank and by threshold, and add up to the difference in recall."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardneg.metrics import NegativeFlipRate, first_relevant, tar_at_far
from miners.ragged import Ragged
from miners.store import Store
from tests.oracles.other_negatives import flip_rates

OLD, NEW = torch.tensor([1, 1, 2, 5, 1, 3]), torch.tensor([1, 2, 1, 1, 4, 3])


def test_equal_recall_hides_one_flip_in_six() -> None:
    first, third = (NegativeFlipRate.of_ranks(OLD, NEW, k) for k in (1, 3))
    assert (first.old, first.new) == (0.5, 0.5)
    assert (first.rate, first.mended) == pytest.approx((0.3333, 0.3333), abs=5.1e-5)
    assert (third.old, third.new) == pytest.approx((0.8333, 0.8333), abs=5.1e-5)
    assert (third.rate, third.mended) == pytest.approx((0.1667, 0.1667), abs=5.1e-5)
    assert third.relative == pytest.approx(1.2)
    assert third.broken.tolist() == [False, False, False, False, True, False]
    assert set(third.as_dict()) == {"old", "new", "rate", "mended", "relative"}


ranks = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=20)


@given(ranks, st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_laws(pairs: list[tuple[int, int]], k: int) -> None:
    old, new = torch.tensor(pairs).T
    found = NegativeFlipRate.of_ranks(old, new, k)
    assert found.new - found.old == pytest.approx(found.mended - found.rate, abs=1e-12)
    assert (found.old, found.new, found.rate, found.mended) == pytest.approx(
        flip_rates(old.tolist(), new.tolist(), k), abs=1e-12
    )
    back = NegativeFlipRate.of_ranks(new, old, k)
    assert (back.rate, back.mended) == (found.mended, found.rate)
    assert NegativeFlipRate.of_ranks(old, old, k).rate == 0
    assert found.rate <= min(found.old, 1 - found.new) + 1e-12
    assert (found.relative is None) == (found.old * (1 - found.new) == 0)


def test_pairs_are_judged_by_each_models_own_threshold() -> None:
    same = torch.tensor([1, 1, 1, 0, 0, 0, 0]).bool()
    old = torch.tensor([0.9, 0.8, 0.3, 0.7, 0.2, 0.1, 0.0])
    new = 0.1 + torch.tensor([0.8, 0.2, 0.7, 0.1, 0.6, 0.1, 0.0]) / 2  # another scale: no threshold is shared
    for far, genuine, impostor in ((0.0, 1 / 3, 0.0), (0.25, 0.0, 1 / 4)):
        found = NegativeFlipRate.of_pairs(old, new, same, far)
        assert found["genuine"].rate == pytest.approx(genuine)
        assert found["impostor"].rate == pytest.approx(impostor)
        assert found["genuine"].old == pytest.approx(tar_at_far(old, same, far)[0])
        assert 1 - found["impostor"].new == pytest.approx(tar_at_far(new, same, far)[1])


def test_ranks_of_the_best_relevant_document() -> None:
    degrees = torch.tensor([0.0, 10, 30, 60, 90]).deg2rad()
    corpus = Store(torch.stack([degrees.cos(), degrees.sin()], 1), torch.tensor([7, 8, 9, 10, 11]), "document")
    queries = corpus.vectors[[0, 4, 2]]
    rank, first = first_relevant(queries, corpus, Ragged.from_lists([[9, 8], [7], []]), depth=4)
    assert rank.tolist() == [2, 5, 5]  # beyond the depth, and nothing to be found
    assert first.tolist() == [7, 11, 9]
    rank, _ = first_relevant(queries, corpus, Ragged.from_lists([[9], [7], [8]]), depth=100)
    assert rank.tolist() == [3, 5, 2]
    rank, _ = first_relevant(queries, corpus, Ragged.from_lists([[9], [], [99]]), depth=10)
    assert rank.tolist() == [3, 11, 11]  # not among five documents is not among the first ten


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"wants the same answers \(N,\) of both models, at least one; got \(6,\)"):
        NegativeFlipRate.of_ranks(OLD, NEW[:5], 1)
    with pytest.raises(ValueError, match="at least one"):
        NegativeFlipRate.of_ranks(OLD[:0], NEW[:0], 1)
    with pytest.raises(ValueError, match=r"of_ranks\(k=0\): wants at least 1"):
        NegativeFlipRate.of_ranks(OLD, NEW, 0)
    with pytest.raises(ValueError, match="genuine and impostor pairs"):
        NegativeFlipRate.of_pairs(torch.rand(3), torch.rand(3), torch.ones(3).bool(), 0.1)
