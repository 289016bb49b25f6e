"""CET: two models that know different things weigh each other's unlabelled negatives."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from miners.base import PoolMiner, process_count
from miners.draws import generator_for
from miners.pool import Block, Items, NegativePool

log = logging.getLogger(__name__)

LOOK_EVERY = 50  # steps between two looks at the correlation: each scores all candidates once more


class SelectionModel(nn.Module, ABC):
    """Says how likely somebody would have picked a candidate for judging.

    Attributes:
        needs: what it asks of the family, in the words of `miners.pool.ABILITIES`.
    """

    needs: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, pool: NegativePool, block: Block) -> Tensor:
        """(B, N) log-odds of having been selected, with a gradient into the selection model's own weights only."""

    @torch.no_grad()
    def settled(self, pool: NegativePool, block: Block) -> Tensor:
        """(B, N) the same without dropout and without gradient: what weights are made of."""
        return self(pool, block)

    @torch.no_grad()
    def relevance(self, pool: NegativePool, block: Block) -> Tensor:
        """(B, N) log-odds of being relevant in the eyes of the trained model, without dropout and gradient."""
        return pool.scores(block) / pool.temperature


class SelectionFeatures(SelectionModel):
    """Logistic model on what a candidate list tells for nothing: the place in the list, and a guide's similarity.

    ``rank_weight x -log(rank) + guide_weight x cosine``, both weights trained. A feature that a block does not have is
    0. Its inputs are not the trained model's, which keeps the two apart (see `CET`).

    Shapes:
        Two weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))  # as a start: what a retriever ranks high is looked at

    def forward(self, pool: NegativePool, block: Block) -> Tensor:
        zero = torch.zeros_like(pool.scores(block).detach())  # (B, N)
        rank = zero if block.rank is None else -block.rank.clamp_min(1).to(zero.dtype).log()
        guided = (block.left or pool.anchors).guide is not None and block.items.guide is not None
        guide = pool.guide_scores(block).to(zero.dtype) if guided else zero
        return self.weight[0] * rank + self.weight[1] * guide


class SelectionTower(SelectionModel):
    """A second bi-encoder head: cosine of two projections of the trained model's own vectors, which are not moved.

    Args:
        dim: length d of a vector.
        width: of the projections.
        scale: log-odds at cosine 1.
        seed: of the first weights.

    Shapes:
        2 x d x width weights; B x N dot products more per step.
    """

    needs = frozenset({"embeddings"})

    def __init__(self, dim: int = 384, width: int = 64, scale: float = 10.0, seed: int = 0) -> None:
        super().__init__()
        self.scale = scale
        dice = generator_for(seed)
        self.anchors, self.candidates = (
            nn.Parameter(torch.randn(dim, width, generator=dice) / dim**0.5) for _ in range(2)
        )

    def forward(self, pool: NegativePool, block: Block) -> Tensor:
        left = self._projected(block.left or pool.anchors, self.anchors)  # (B, width)
        right = self._projected(block.items, self.candidates)  # (N, width) | (B, N, width)
        if left.ndim == 3:
            left = left.squeeze(1)
        return self.scale * (left @ right.T if right.ndim == 2 else torch.einsum("bw,bnw->bn", left, right))

    def _projected(self, items: Items, weights: Tensor) -> Tensor:
        vectors = items.unit.detach()
        if vectors.shape[-1] != len(weights):
            raise ValueError(
                f"SelectionTower(dim={len(weights)}) meets vectors of {vectors.shape[-1]} dims in space "
                f"'{items.space}'. Set its dim to {vectors.shape[-1]}."
            )
        with torch.autocast(vectors.device.type, enabled=False):
            return F.normalize(vectors @ weights.to(vectors.dtype), dim=-1)


class SelectionOfFamily(SelectionModel):
    """The family's own second model (`RerankingModule.selection`), whose scores travel with the pool.

    The sides "selection" (B, 1 + K), with gradient and dropout, "settled selection" and "settled relevance" (B, K) hold
    the scores; the first of the 1 + K columns is the positive's, the others are those of the drawn block.
    """

    needs = frozenset({"selection"})

    def forward(self, pool: NegativePool, block: Block) -> Tensor:
        scores = _side(pool, "selection")
        return scores[:, :1] if block is pool.positives else scores[:, 1:]

    def settled(self, pool: NegativePool, block: Block) -> Tensor:
        return _side(pool, "settled selection")

    def relevance(self, pool: NegativePool, block: Block) -> Tensor:
        return _side(pool, "settled relevance")


class CET(PoolMiner):
    """Weigh each unlabelled negative by the inverse propensity that a second model gives it.

    A document is labelled positive if it was selected for judging and is relevant, so what carries no label is not
    therefore irrelevant. A selection model S learns the first half beside the trained model R, on the same pairs; each
    weighs its negatives by what the other says of them at this moment, as a constant:
    ``w = 1 / (1 - sigmoid(a / T)) = 1 + exp(a / T)``, a the score of S in the loss of R, the score of R in the loss of
    S. An unlabelled but relevant document is scored high by R, therefore pushed down by S, and so weighs little in R.

    Nothing in that breaks the symmetry: if S comes to say what R says, harder negatives weigh more, the opposite of
    what is wanted. So give S other inputs than R, and watch ``CET/correlation``, which is logged at each step.

    Args:
        selection: the selection model: `SelectionFeatures` (rank and guide; the default), `SelectionTower` (a second
            head), or `SelectionOfFamily` (a second cross-encoder, in `RerankingModule`).
        temperature: T; divides log-odds. The published script has 10, its parser 2.
        weights: "inverse_propensity", as published, or "posterior": the probability (1 - rho) / (1 - lambda rho) that
            an unlabelled candidate is irrelevant, in [0, 1], which lowers likely positives directly.
        clamp: a / T is kept within [-clamp, clamp]; null for no bound, as published, where weights have none.
        normalise: divide weights by their mean over all processes' candidates ("batch") or over each anchor's ("row",
            which leaves a single negative at 1), by 2, their value at log-odds 0 ("halved"), or by nothing ("none", as
            published: twice the gradient of an unweighted run).
        origins: blocks that are weighed; in-batch negatives are no part of the judged pool and keep weight 1. Null
            weighs all.
        start_step: weights are 1 before this step, while scores are noise; the selection model trains from the start.
        learning_rate: of the selection model's own weights; null takes the module's.

    Shapes:
        B anchors, N candidates. ``log_weight`` gains (B, N), without gradient.

    Raises:
        ValueError: an option out of range.

    Source:
        CET, CIKM 2022, arXiv 2209.05072, and its code. Differs: clamp and normalisation, which the code has not;
        "posterior" is not in the paper; a bi-encoder R has one pass, so its scores are those of the training pass.
    """

    def __init__(
        self,
        selection: SelectionModel | None = None,
        temperature: float = 10.0,
        weights: Literal["inverse_propensity", "posterior"] = "inverse_propensity",
        clamp: float | None = 5.0,
        normalise: Literal["batch", "row", "halved", "none"] = "batch",
        origins: Sequence[str] | None = ("mined",),
        start_step: int = 0,
        learning_rate: float | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"CET(temperature={temperature}): wants a positive number.")
        if weights not in ("inverse_propensity", "posterior"):
            raise ValueError(f"CET(weights='{weights}'): wants 'inverse_propensity' or 'posterior'.")
        if clamp is not None and not clamp > 0:
            raise ValueError(f"CET(clamp={clamp}): wants a positive number, or None for no bound.")
        if normalise not in ("batch", "row", "halved", "none"):
            raise ValueError(f"CET(normalise='{normalise}'): wants 'batch', 'row', 'halved' or 'none'.")
        self.selection = selection or SelectionFeatures()
        self.temperature = temperature
        self.weights = weights
        self.clamp = clamp
        self.normalise = normalise
        self.origins = None if origins is None else tuple(origins)
        self.start_step = start_step
        self.learning_rate = learning_rate
        self.needs = self.selection.needs | (frozenset({"drawn"}) if self.origins == ("mined",) else frozenset())
        self._warned = False

    def forward(self, pool: NegativePool) -> NegativePool:
        with torch.no_grad():
            log_weights = self._log_weights(pool, self._weight_of_negative)
        weighed = {id(block): own for block, own in zip(self._blocks(pool), log_weights, strict=True)}
        return pool.weight(lambda scores, block: weighed.get(id(block)))

    def aux_loss(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        """The selection model's own pairwise loss, weighed by the trained model's scores: sum and number of pairs."""
        rows, columns = pool.usable_of(pool.positives).nonzero(as_tuple=True)
        positive = self.selection(pool, pool.positives)[rows, columns][:, None]  # (V, 1)
        total, count = 0 * positive.sum(), rows.new_zeros(())
        with torch.no_grad():
            log_weights = self._log_weights(pool, self._weight_for_selection)
        for block, log_weight in zip(self._blocks(pool), log_weights, strict=True):
            usable = pool.usable_of(block)[rows]
            pairs = F.softplus(self.selection(pool, block)[rows] - positive)
            total = total + (log_weight.exp()[rows] * pairs).where(usable, 0).sum()
            count = count + usable.sum()
        return total, count

    @torch.no_grad()
    def statistics(
        self, pool: NegativePool, combine: Callable[[Tensor], Tensor] = lambda sums: sums
    ) -> dict[str, Tensor]:
        """Mean weight of the weighed negatives before it is normalised (to 1, say), and the two models' correlation."""
        weight = pool.scores(pool.positives).new_zeros(1)
        for block in self._blocks(pool):
            weight = weight + self._weight_of_negative(pool, block).exp()[pool.usable_of(block)].sum()
        *sums, weight_sum = combine(torch.cat([self._sums(pool), weight]))
        return {"correlation": _correlation(torch.stack(sums)), "weight_mean": weight_sum / sums[0].clamp_min(1)}

    @torch.no_grad()
    def commit(self, pool: NegativePool) -> None:
        """Say once that the selection model has become a copy of the trained one."""
        if self._warned or pool.context.step % LOOK_EVERY or not pool.context.step:
            return
        correlation = float(_correlation(self._sums(pool)))  # of this process: who has warned asks the others nothing
        if correlation > 0.9:
            self._warned = True
            log.warning(
                "CET, step %d: the selection model's scores correlate with the trained model's at %.2f, so that harder "
                "negatives weigh more, false ones included. Give it other inputs (SelectionFeatures, a smaller model).",
                pool.context.step,
                correlation,
            )

    def _sums(self, pool: NegativePool) -> Tensor:
        """(6,) number of weighed negatives, and sums of both models' scores, of their squares and of their product."""
        sums = pool.scores(pool.positives).new_zeros(6)
        for block in self._blocks(pool):
            usable = pool.usable_of(block)
            a, c = (
                self._log_odds(of(pool, block))[usable].to(sums.dtype)
                for of in (self.selection.settled, self.selection.relevance)
            )
            sums = sums + torch.stack([usable.sum().to(sums.dtype), *(x.sum() for x in (a, c, a * a, c * c, a * c))])
        return sums

    def _blocks(self, pool: NegativePool) -> list[Block]:
        """What is weighed; synthetic candidates are nobody that could have been judged."""
        blocks = [b for b in pool.negatives if b.real and (self.origins is None or b.origin in self.origins)]
        if long := [b for b in blocks if b.chunk_size is not None]:
            raise ValueError(
                f"CET weighs all candidates of an anchor together, and the block '{long[0].origin}' is scored in "
                f"chunks of {long[0].chunk_size}. Set the chunk_size of the miner that adds it to null, or leave its "
                "origin out of CET's."
            )
        return blocks

    def _log_odds(self, scores: Tensor) -> Tensor:
        scaled = scores / self.temperature
        return scaled if self.clamp is None else scaled.clamp(-self.clamp, self.clamp)

    def _weight_of_negative(self, pool: NegativePool, block: Block) -> Tensor:
        """(B, N) log of a negative's weight for the trained model."""
        selected = self._log_odds(self.selection.settled(pool, block))
        if self.weights == "inverse_propensity":
            return F.softplus(selected)
        return log_posterior(selected, self._log_odds(self.selection.relevance(pool, block)))

    def _weight_for_selection(self, pool: NegativePool, block: Block) -> Tensor:
        return F.softplus(self._log_odds(self.selection.relevance(pool, block)))

    def _log_weights(self, pool: NegativePool, of: Callable[[NegativePool, Block], Tensor]) -> list[Tensor]:
        """(B, N) log weights of each weighed block, normalised."""
        blocks = self._blocks(pool)
        if pool.context.step < self.start_step:
            return [torch.zeros_like(pool.scores(block)) for block in blocks]
        found = [of(pool, block) for block in blocks]
        if self.normalise == "none":
            return found
        if self.normalise == "halved":
            return [log_weight - math.log(2) for log_weight in found]
        total = count = pool.scores(pool.positives).detach().new_zeros(len(pool))  # (B,)
        for block, log_weight in zip(blocks, found, strict=True):
            usable = pool.usable_of(block)
            total, count = total + log_weight.exp().where(usable, 0).sum(1), count + usable.sum(1)
        if self.normalise == "batch":
            sums = torch.stack([total.sum(), count.sum()])
            if process_count() > 1:  # a process without candidates has to come by here too
                dist.all_reduce(sums)
            total, count = sums[0].expand_as(total), sums[1].expand_as(count)
        mean = (total / count.clamp_min(1)).where(count > 0, 1)[:, None]  # (B, 1)
        return [log_weight - mean.log() for log_weight in found]


def _correlation(sums: Tensor) -> Tensor:
    """Of two scores, given what `CET._sums` adds up; 0 where one of them does not vary."""
    number, a, c, aa, cc, ac = sums
    number = number.clamp_min(1)
    spread = ((aa - a * a / number) * (cc - c * c / number)).clamp_min(0).sqrt()
    return ((ac - a * c / number) / spread.clamp_min(1e-9)).where(spread > 1e-6, 0)


def log_posterior(selected: Tensor, relevant: Tensor) -> Tensor:
    """log of ``(1 - rho) / (1 - lambda rho)``: that an unlabelled candidate is irrelevant.

    Args:
        selected, relevant: log-odds of lambda (selected for judging) and rho (relevant), any shape.

    Example:
        >>> odds = lambda share: torch.tensor(share).logit()
        >>> round(float(log_posterior(odds(0.8), odds(0.9)).exp()), 6)
        0.357143
    """
    return F.logsigmoid(-relevant) - torch.log1p(-selected.sigmoid() * relevant.sigmoid())


def _side(pool: NegativePool, name: str) -> Tensor:
    side = pool.sides[name]
    assert isinstance(side, Block), "RerankingModule hands its scores over as blocks"
    assert side.given is not None
    return side.given
