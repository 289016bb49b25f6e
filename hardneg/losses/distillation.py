"""Focal distillation: a new model that keeps what the old one got right."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from hardneg.losses.base import PoolLoss
from hardneg.losses.info_nce import per_anchor, positive_logits
from miners.pool import NegativePool

log = logging.getLogger(__name__)


class FocalDistillation(PoolLoss):
    """InfoNCE, plus a pull towards the old model's ranking where that was right.

    ``InfoNCE + weight * (1 + focus * [the old model got it right]) * KL(p_old || p_new)``, mean over each anchor's
    positives, then over anchors. p is the softmax over the positive and the real negatives of the pool, whatever their
    weights; right means that the old model scores the positive above all of them. The old model is the module's guide
    (``model.init_args.guide``): its vectors are made once, before training.

    For replacing a model behind a search index: at equal recall the new model then breaks fewer of the queries that
    worked (negative flips, `hardneg.metrics.NegativeFlipRate`, ``hardneg audit --against``). See docs/upgrading.md.

    Args:
        temperature: divides similarities, of InfoNCE and (times ``softening``) of both distributions.
        learn_temperature: train it, by InfoNCE alone.
        weight: of the distillation; 0 leaves InfoNCE.
        focus: how much more an anchor counts that the old model got right. The paper's 5.
        softening: factor of the temperature for the two distributions. The paper takes 5, for logits of classifiers;
            with ``weight`` 10 it kept most here too (benchmarks/upgrade).

    Shapes:
        B anchors; (sum, count) 0-dim, count = anchors with a positive. Candidates without the old model's vectors
        (mixes, banks, class centres) are left out of both distributions; an anchor whose positives have none is taught
        by InfoNCE alone, which is logged once. Temporary memory: a few B x N, by block.

    Raises:
        ValueError: numbers out of range; similarities that are dot products, which the guide's cosines are not.

    Source:
        Ricci et al., arXiv 2511.08322, equation of the focal distillation, on similarities in place of logits. Without
        its margin on new classes: an encoder has none.
    """

    needs = frozenset({"guide"})

    def __init__(
        self,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        weight: float = 1.0,
        focus: float = 5.0,
        softening: float = 1.0,
    ) -> None:
        super().__init__(temperature, learn_temperature)
        if weight < 0 or focus < 0 or not softening > 0:
            raise ValueError(
                f"FocalDistillation(weight={weight}, focus={focus}, softening={softening}): wants weight and focus of "
                "at least 0 and a softening above 0."
            )
        self.weight, self.focus, self.softening = weight, focus, softening
        self._warned = False

    def forward(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        rows, positive = positive_logits(pool)  # (V,), (V,)
        terms = torch.logaddexp(positive, pool.mass()[rows]) - positive
        if self.weight:
            terms = terms + self.weight * self._drift(pool)
        return per_anchor(terms, rows, len(pool))

    def _drift(self, pool: NegativePool) -> Tensor | float:
        """(V,) weighted divergence of the new ranking from the old one, for each anchor and positive."""
        if pool.similarity != "cosine":
            raise ValueError(
                f"FocalDistillation compares the old model's cosines with similarities by '{pool.similarity}'. Set "
                "model.init_args.similarity: cosine."
            )
        if pool.positives.items.guide is None:
            if not self._warned:
                log.warning(
                    "FocalDistillation: the positives of direction '%s' come without the old model's vectors (a miner "
                    "has replaced them); these anchors are taught by InfoNCE alone.",
                    pool.direction,
                )
                self._warned = True
            return 0.0
        old, new = self._both(pool)
        rows, old_positive = positive_logits(old)
        _, new_positive = positive_logits(new)
        old_mass, new_mass = old.mass(), new.mass()  # (B,)
        expected = torch.zeros_like(new_mass)  # mean of old - new over the old model's softmax of negatives alone
        floor = old_mass.where(old_mass.isfinite(), 0)[:, None]
        for before, after in zip(old.negatives, new.negatives, strict=True):
            share = (old.logits(before) - floor).exp()  # (B, N), 0 where not usable
            expected = expected + (share * (old.scores(before) - new.scores(after)) / old.temperature).sum(1)
        old_z = torch.logaddexp(old_positive, old_mass[rows])
        new_z = torch.logaddexp(new_positive, new_mass[rows])
        drift = (old_positive - old_z).exp() * (old_positive - new_positive)
        drift = drift + (old_mass[rows] - old_z).exp() * expected[rows] + new_z - old_z
        hardest, valid, _ = old.hardest(1)  # (B, 1), or (B, 0) without negatives
        right = ((old_positive[:, None] > hardest[rows] / old.temperature) | ~valid[rows]).all(1)
        return (1 + self.focus * right) * drift

    def _both(self, pool: NegativePool) -> tuple[NegativePool, NegativePool]:
        """The pool as the old model scores it, and as the new one does: the same columns, without weights."""
        temperature = pool.temperature.detach() if isinstance(pool.temperature, Tensor) else pool.temperature
        temperature = self.softening * temperature
        blocks = [
            replace(pool.whole(block), log_weight=None)
            for block in pool.negatives
            if block.real and block.items.guide is not None and (block.left or pool.anchors).guide is not None
        ]
        positives = replace(pool.positives, log_weight=None)
        new = replace(pool, temperature=temperature, positives=positives, negatives=tuple(blocks))
        seen = tuple(replace(block, given=pool.guide_scores(block)) for block in blocks)
        old = replace(new, positives=replace(positives, given=pool.guide_scores(positives)), negatives=seen)
        return old, new
