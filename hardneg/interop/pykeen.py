"""PyKEEN trains and evaluates models of knowledge graphs; this is our negative sampler for it."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.triples import KnowledgeGraph
from miners.neighbourhoods import HOW, Neighbourhoods

try:
    from pykeen.sampling import BernoulliNegativeSampler, NegativeSampler
    from pykeen.triples import CoreTriplesFactory
except ImportError as error:
    raise ImportError("hardneg.interop.pykeen needs PyKEEN: pip install 'hardneg[kg]'") from error

HEAD, TAIL = 0, 2


class ClusterNegativeSampler(NegativeSampler):
    """Corrupt a triple with an entity from the neighbourhood of the one that is replaced (LEMON).

    A corruption that equals its own triple is masked, and so are known triples where there is a filterer. A triple all
    of whose corruptions are masked draws again, ``redraws`` times, then uniformly over all entities.

    Args:
        mapped_triples: (m, 3) training triples; a filter knows these alone, never those of validation or test.
        neighbourhoods: of all entities, from their texts.
        mix: share of uniform draws, in [0, 1].
        side: "coin" corrupts head or tail with even chances, "bernoulli" the head with tph / (tph + hpt) by relation.
        redraws: further attempts.
        generator: of the draws; None = torch's own, as in PyKEEN's samplers.
        options: num_entities, num_relations, num_negs_per_pos, filtered, filterer, filterer_kwargs; as in PyKEEN.

    Attributes:
        counts: draws so far, "neighbour", "uniform" and "alone" (uniform since the entity has no neighbour).

    Shapes:
        positives (B, 3) in; negatives (B, K, 3) and mask (B, K), True = valid, out.

    Raises:
        ValueError: neighbourhoods of another number of entities.

    Example:
        >>> from pykeen.pipeline import pipeline  # doctest: +SKIP
        >>> pipeline(dataset=..., model="DistMult", negative_sampler=ClusterNegativeSampler,  # doctest: +SKIP
        ...          negative_sampler_kwargs={"neighbourhoods": near, "num_negs_per_pos": 8, "filtered": True})

    Source:
        LEMON, arXiv 2203.04703, after its abstract; sides as PyKEEN's `BernoulliNegativeSampler`. Differs: a share of
        uniform draws; an entity is never replaced by itself; each negative tosses its own coin.
    """

    def __init__(
        self,
        *,
        mapped_triples: Tensor,
        neighbourhoods: Neighbourhoods,
        mix: float = 0.5,
        side: Literal["coin", "bernoulli"] = "coin",
        redraws: int = 3,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mapped_triples=mapped_triples, **options)
        if not 0 <= mix <= 1:
            raise ValueError(f"ClusterNegativeSampler(mix={mix}): a share, so 0 <= mix <= 1.")
        if side not in ("coin", "bernoulli"):
            raise ValueError(f"ClusterNegativeSampler(side='{side}'): wants 'coin' or 'bernoulli'.")
        if len(neighbourhoods) != self.num_entities:
            raise ValueError(
                f"ClusterNegativeSampler has neighbourhoods of {len(neighbourhoods)} entities, and the graph "
                f"{self.num_entities}. Find them for the entities of this graph, in their order."
            )
        self.near = neighbourhoods
        self.mix = mix
        self.side = side
        self.redraws = redraws
        self.generator = generator
        self.counts: Counter[str] = Counter()
        self.head_chance = torch.full((self.num_relations,), 0.5)
        if side == "bernoulli":
            by_relation = BernoulliNegativeSampler(
                mapped_triples=mapped_triples, num_entities=self.num_entities, num_relations=self.num_relations
            )
            self.head_chance = by_relation.corrupt_head_probability.cpu()

    def sample(self, positive_batch: Tensor) -> tuple[Tensor, Tensor]:
        negatives = self.corrupt_batch(positive_batch)
        valid = self._valid(negatives, positive_batch)
        for attempt in range(self.redraws + 1):
            empty = (~valid.any(-1)).nonzero()[:, 0]
            if not len(empty):
                break
            mix = self.mix if attempt < self.redraws else 1.0
            again = self._corrupted(positive_batch[empty], mix)
            negatives[empty] = again
            valid[empty] = self._valid(again, positive_batch[empty])
        return negatives, valid

    def corrupt_batch(self, positive_batch: Tensor) -> Tensor:
        return self._corrupted(positive_batch, self.mix)

    def _corrupted(self, positives: Tensor, mix: float) -> Tensor:
        batch = positives.view(-1, 3)
        wanted = (len(batch), self.num_negs_per_pos)
        dice = torch.rand(3, *wanted, generator=self.generator)
        head = dice[0] < self.head_chance[batch[:, 1].cpu()][:, None]
        column = torch.where(head, HEAD, TAIL)  # (B, K)
        replaced = batch.cpu().gather(1, column)
        drawn, how = self.near.draw(replaced, dice[1], dice[2].double(), mix)
        for number, name in enumerate(HOW):
            self.counts[name] += int((how == number).sum())
        out = batch[:, None].repeat(1, self.num_negs_per_pos, 1)
        out.scatter_(2, column.to(out.device)[..., None], drawn.to(out.device)[..., None])
        return out.view(*positives.shape[:-1], self.num_negs_per_pos, 3)

    def _valid(self, negatives: Tensor, positives: Tensor) -> Tensor:
        """(B, K) corruptions that differ from their triple and are not known to be true."""
        valid = (negatives != positives[:, None]).any(-1)
        return valid if self.filterer is None else valid & self.filterer(negatives)


def triples_factories(graph: KnowledgeGraph) -> dict[str, CoreTriplesFactory]:
    """PyKEEN's factory of each split; ids are those of the graph, also of entities that training never shows."""
    return {
        split: CoreTriplesFactory.create(
            mapped_triples=triples, num_entities=len(graph.entities), num_relations=len(graph.relations)
        )
        for split, triples in graph.triples.items()
    }
