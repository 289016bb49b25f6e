"""Who may stand in for whom: the layout and the numbers of the specification, and laws of every form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from miners.neighbourhoods import NEIGHBOUR, UNIFORM, Neighbourhoods

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])


def drawn(near: Neighbourhoods, thing: int, mix: float, number: int = 20_000) -> Tensor:
    """(n,) share of draws that gave each thing."""
    dice = torch.rand(2, number, generator=torch.Generator().manual_seed(0))
    ids, _ = near.draw(torch.full((number,), thing), dice[0], dice[1], mix)
    return torch.bincount(ids, minlength=len(near)) / number


def test_layout_in_compressed_rows() -> None:
    near = Neighbourhoods.from_labels(LABELS)
    assert near.members.values.tolist() == list(range(8))
    assert near.members.offsets.tolist() == [0, 3, 5, 7, 8]
    assert near.others.tolist() == [2, 2, 2, 1, 1, 1, 1, 0]


def test_chances_of_the_specification() -> None:
    near = Neighbourhoods.from_labels(LABELS)
    x = torch.zeros(4, dtype=torch.long)
    found = near.chance(x, torch.tensor([1, 2, 5, 0]), mix=0.5)
    assert found.tolist() == pytest.approx([0.3125, 0.3125, 0.0625, 0.0625])
    shares = drawn(near, 0, 0.5)
    for thing, chance in ((1, 0.3125), (5, 0.0625)):
        assert abs(float(shares[thing]) - chance) < 3 * math.sqrt(chance * (1 - chance) / 20_000)


def test_correction_to_the_uniform_target() -> None:
    """n = 8, three others in the cluster, mix 0.5."""
    near = Neighbourhoods.from_labels(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    chance = near.chance(torch.zeros(2, dtype=torch.long), torch.tensor([1, 5]), mix=0.5)
    assert chance.tolist() == pytest.approx([0.229167, 0.0625], abs=5e-7)
    assert (math.log(1 / 8) - chance.log()).tolist() == pytest.approx([-0.606136, 0.693147], abs=5e-7)


def test_things_without_cluster_are_uniform_and_those_alone_are_counted() -> None:
    near = Neighbourhoods.from_labels(torch.tensor([0, 0, -1, 1]))
    half = torch.full((4,), 0.5)
    ids, how = near.draw(torch.tensor([0, 2, 3, -1]), half, half, mix=0.0)
    assert how.tolist() == [NEIGHBOUR, UNIFORM, 2, UNIFORM]
    assert ids.tolist() == [1, 2, 2, 2]
    assert near.chance(torch.tensor([2, 3]), torch.tensor([0, 0]), 0.0).tolist() == [0.25, 0.25]


def test_an_empty_cluster_is_legal() -> None:
    assert Neighbourhoods.from_labels(torch.tensor([0, 2, 2])).members.to_lists() == [[0], [], [1, 2]]


labels = st.lists(st.integers(-1, 5), min_size=2, max_size=30)


@settings(max_examples=60, deadline=None)
@given(labels=labels, seed=st.integers(0, 9), mix=st.sampled_from([0.0, 0.5, 1.0]))
def test_draws_follow_the_chances(labels: list[int], seed: int, mix: float) -> None:
    near = Neighbourhoods.from_labels(torch.tensor(labels)).shuffled(seed)
    things = torch.arange(len(near)).repeat_interleave(len(near))
    chance = near.chance(things, torch.arange(len(near)).repeat(len(near)), mix).view(len(near), -1)
    assert torch.allclose(chance.sum(1), torch.ones(len(near), dtype=torch.float64))
    dice = torch.rand(2, 50 * len(near), generator=torch.Generator().manual_seed(seed))
    asked = torch.arange(len(near)).repeat(50)
    ids, how = near.draw(asked, dice[0], dice[1], mix)
    assert bool((chance[asked, ids] > 0).all())
    assert bool((ids != asked)[how == NEIGHBOUR].all()), "a thing stood in for itself"


@settings(max_examples=30, deadline=None)
@given(labels=labels, seed=st.integers(0, 9))
def test_shuffling_keeps_sizes_and_who_has_none(labels: list[int], seed: int) -> None:
    near = Neighbourhoods.from_labels(torch.tensor(labels))
    other = near.shuffled(seed)
    assert sorted(near.members.lengths.tolist()) == sorted(other.members.lengths.tolist())
    assert torch.equal(near.group < 0, other.group < 0)
    again = Neighbourhoods.from_labels(other.group)  # it is a clustering, with each thing where it says
    assert [sorted(of) for of in other.members.to_lists()] == again.members.to_lists()
    inside = (other.group >= 0).nonzero()[:, 0]
    at = other.members.offsets[other.group[inside]] + other.place[inside]
    assert torch.equal(other.members.values[at], inside)


def test_nearest_are_a_sort_and_never_oneself() -> None:
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    vectors[7] = vectors[3]  # equal texts stand in for each other
    near = Neighbourhoods.nearest(vectors, 5)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    scores = unit @ unit.T - 9 * torch.eye(40)
    for thing, found in enumerate(near.members.to_lists()):
        assert thing not in found
        assert sorted(scores[thing, found].tolist()) == pytest.approx(sorted(scores[thing].topk(5).values.tolist()))
    assert 7 in near.members.to_lists()[3]
    shuffled = near.shuffled(0)
    assert all(thing not in found for thing, found in enumerate(shuffled.members.to_lists()[g] for g in shuffled.group))
    assert near.others.tolist() == [5] * 40


def test_what_an_approximate_index_does_not_find_is_nobody() -> None:
    pytest.importorskip("faiss")
    vectors = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    near = Neighbourhoods.nearest(vectors, 30, "IVF16,Flat")  # it looks into one cell, which holds fewer than 30
    assert int(near.members.values.min()) >= 0
    assert int(near.others.min()) < 30
    everyone = torch.arange(256)
    ids, how = near.draw(everyone, torch.ones(256), torch.full((256,), 0.999), 0.0)
    assert bool((ids != everyone)[how == NEIGHBOUR].all())
    assert int((ids == 255).sum()) < 20, "the last one stands in for what is not there"


def test_nobody_has_a_neighbour() -> None:
    near = Neighbourhoods.from_labels(torch.tensor([-1, -1]))
    assert near.others.tolist() == [0, 0]
    assert near.draw(torch.arange(2), torch.ones(2), torch.tensor([0.0, 0.9]), 0.0)[0].tolist() == [0, 1]


def test_clusters_find_what_is_apart() -> None:
    centres = torch.eye(3).repeat_interleave(4, 0)
    near = Neighbourhoods.clusters(centres + 0.01 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), 3)
    assert all(len({int(near.group[i]) for i in range(at, at + 4)}) == 1 for at in (0, 4, 8))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="13 clusters of 12 vectors"):
        Neighbourhoods.clusters(torch.randn(12, 3), 13)
    with pytest.raises(ValueError, match="nearest 12 of 12 things"):
        Neighbourhoods.nearest(torch.randn(12, 3), 12)
    with pytest.raises(ValueError, match=r"from 0 on, or -1 for none; got shape \(2,\) with -2"):
        Neighbourhoods.from_labels(torch.tensor([0, -2]))
