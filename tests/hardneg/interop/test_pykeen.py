"""Our negatives in PyKEEN: the candidates and rates of the specification, what is masked, and a model that trains."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("pykeen")

from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import DistMult
from pykeen.training import SLCWATrainingLoop
from pykeen.triples import CoreTriplesFactory

from hardneg.interop.pykeen import ClusterNegativeSampler
from miners.neighbourhoods import Neighbourhoods

NEAR = Neighbourhoods.from_labels(torch.tensor([0, 0, 0, 1, 1, 2, 2, 3]))
TRIPLES = torch.tensor([[0, 0, 3], [0, 0, 4], [1, 0, 3], [5, 1, 6], [2, 1, 7]])  # A, B, C, D, F
DRAWS = 10_000


def sampler(mix: float = 0.0, filtered: bool = False, number: int = 1, **options: object) -> ClusterNegativeSampler:
    return ClusterNegativeSampler(
        mapped_triples=TRIPLES,
        num_entities=8,
        num_relations=2,
        num_negs_per_pos=number,
        neighbourhoods=NEAR,
        mix=mix,
        filterer="python-set" if filtered else None,
        generator=torch.Generator().manual_seed(0),
        **options,  # type: ignore[arg-type]
    )


def test_candidates_of_the_specification() -> None:
    """By side, itself excluded; F's tail 7 is alone, and so anybody."""
    wanted = [
        ({1, 2}, {4}),
        ({1, 2}, {3}),
        ({0, 2}, {4}),
        ({6}, {5}),
        ({0, 1}, set(range(8))),
    ]
    for triple, (heads, tails) in zip(TRIPLES, wanted, strict=True):
        found = sampler().corrupt_batch(triple.expand(2000, 3))[:, 0]
        changed = found[:, 0] != triple[0]
        assert set(found[changed][:, 0].tolist()) == heads
        assert set(found[~changed][:, 2].tolist()) == tails


@pytest.mark.parametrize(("number", "rate"), [(0, 0.75), (1, 0.50), (2, 0.25), (3, 0.0)])
def test_rate_of_known_triples_without_a_filter(number: int, rate: float) -> None:
    found = sampler().corrupt_batch(TRIPLES[number].expand(DRAWS, 3))[:, 0]
    known = (found[:, None] == TRIPLES).all(-1).any(-1).double().mean()
    assert abs(float(known) - rate) <= 3 * math.sqrt(rate * (1 - rate) / DRAWS)


def test_half_of_the_draws_of_a_triple_with_a_tail_alone_fall_back() -> None:
    drawn = sampler()
    drawn.corrupt_batch(TRIPLES[4].expand(DRAWS, 3))
    assert abs(drawn.counts["alone"] / DRAWS - 0.5) < 3 * math.sqrt(0.25 / DRAWS)
    assert drawn.counts["alone"] + drawn.counts["neighbour"] == DRAWS


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_nothing_unmasked_is_known_or_the_triple_itself(mix: float) -> None:
    batch = TRIPLES.repeat(50, 1)
    negatives, valid = sampler(mix, filtered=True, number=4).sample(batch)
    assert negatives.shape == (250, 4, 3)
    assert valid.shape == (250, 4)
    left = negatives[valid]
    assert not bool((left[:, None] == TRIPLES).all(-1).any())
    assert not bool((negatives == batch[:, None]).all(-1)[valid].any())
    assert bool(valid.any(1).all()), "a triple is left with no negative, though others are there"


def test_without_a_filter_only_the_triple_itself_is_masked() -> None:
    batch = TRIPLES[4].expand(DRAWS, 3)
    negatives, valid = sampler().sample(batch)
    assert torch.equal(valid, (negatives != batch[:, None]).any(-1))


def test_a_head_whose_neighbours_are_all_known_is_replaced_uniformly() -> None:
    """B's tail has the one neighbour 3, and (0, 0, 3) is known; with heads never chosen only uniform draws are left."""
    drawn = sampler(filtered=True, number=2)
    drawn.head_chance = torch.zeros(2)
    negatives, valid = drawn.sample(TRIPLES[1].expand(200, 3))
    left = negatives[valid]
    assert set(left[:, 0].tolist()) == {0}
    assert 3 not in left[:, 2].tolist()
    assert len(set(left[:, 2].tolist())) > 3


def test_same_seed_same_draws() -> None:
    first, second = (sampler(0.5, number=3).sample(TRIPLES) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_sides_by_relation() -> None:
    """Relation 0: heads 0 and 1 have 2 and 1 tails (tph 1.5), tails 3 and 4 have 2 and 1 heads (hpt 1.5)."""
    assert sampler(side="bernoulli").head_chance.tolist() == pytest.approx([0.5, 0.5])
    many = torch.tensor([[0, 0, 1], [0, 0, 2], [0, 0, 3], [1, 1, 2]])
    drawn = ClusterNegativeSampler(mapped_triples=many, neighbourhoods=NEAR, num_entities=8, side="bernoulli")
    assert drawn.head_chance.tolist() == pytest.approx([0.75, 0.5])


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="neighbourhoods of 8 entities, and the graph 9"):
        ClusterNegativeSampler(mapped_triples=TRIPLES, neighbourhoods=NEAR, num_entities=9)
    with pytest.raises(ValueError, match="0 <= mix <= 1"):
        sampler(mix=2)
    with pytest.raises(ValueError, match="wants 'coin' or 'bernoulli'"):
        sampler(side="both")


def test_a_model_trains_with_it_and_ranks_what_it_saw() -> None:
    """A ring of 16 entities, each followed by the next: after training, filtered MRR is far above chance (0.2)."""
    torch.manual_seed(0)
    ring = torch.stack([torch.arange(16), torch.zeros(16, dtype=torch.long), (torch.arange(16) + 8) % 16], 1)
    factory = CoreTriplesFactory.create(mapped_triples=ring, num_entities=16, num_relations=1)
    near = Neighbourhoods.from_labels(torch.arange(16) // 4)
    model = DistMult(triples_factory=factory, embedding_dim=16, random_seed=0, loss="softplus")
    loop = SLCWATrainingLoop(
        model=model,
        triples_factory=factory,
        optimizer="adam",
        optimizer_kwargs={"lr": 0.1},
        negative_sampler=ClusterNegativeSampler,
        negative_sampler_kwargs={"neighbourhoods": near, "num_negs_per_pos": 4, "filterer": "python-set"},
    )
    losses = loop.train(factory, num_epochs=30, batch_size=16, use_tqdm=False)
    assert losses is not None
    assert losses[-1] < losses[0]
    found = RankBasedEvaluator(filtered=True).evaluate(
        model=model, mapped_triples=ring, additional_filter_triples=[ring], batch_size=16, use_tqdm=False
    )
    assert found.get_metric("both.realistic.inverse_harmonic_mean_rank") > 0.9
