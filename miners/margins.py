"""Margins: the anchor's own class must win by some distance (CosFace, ArcFace, MagFace, AdaFace)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from miners.base import PoolMiner
from miners.pool import Items, NegativePool

SMALLEST = 1e-12  # of a squared sine: its root has a finite slope
EDGE = 1e-3  # AdaFace's: how near to 0 and pi an angle may come


class Margin(PoolMiner):
    """Lowers the similarity of each anchor to its positives before the loss, so that the softmax asks for more.

    Stands in the chain like a miner, since it makes every negative harder by the same amount; behind miners that
    compare candidates with the positive (`PositiveAware`), which are to see the true one. Angles are added by
    cos(t + m) = cos t cos m - sin t sin m and never computed: acos has no finite slope at 1, and clamping moves values.

    Shapes:
        B anchors, P positives. ``positives.given`` (B, P) is set; nothing else changes.

    Raises:
        ValueError: similarities that are dot products: margins are defined on cosines.
    """

    needs = frozenset({"embeddings"})

    def forward(self, pool: NegativePool) -> NegativePool:
        if pool.similarity != "cosine":
            raise ValueError(
                f"{type(self).__name__} adds a margin to cosines, and this pool compares by '{pool.similarity}'. Set "
                "model.init_args.similarity: cosine, or take the margin out."
            )
        target = self.target(pool.scores(pool.positives), pool)
        return replace(pool, positives=replace(pool.positives, given=target))

    @abstractmethod
    def target(self, cosine: Tensor, pool: NegativePool) -> Tensor:
        """(B, P) what the loss sees in place of the cosines (B, P) of anchors and positives."""


class CosFace(Margin):
    """``cos t - margin``: the positive must be nearer by a fixed cosine (additive margin softmax).

    Args:
        margin: in cosine. Faces: 0.35 to 0.5; translation retrieval (LaBSE): 0.3.

    Source:
        CosFace, arXiv 1801.09414, equation 4; AM-Softmax, arXiv 1801.05599.
    """

    def __init__(self, margin: float = 0.35) -> None:
        super().__init__()
        if margin < 0:
            raise ValueError(f"CosFace(margin={margin}): wants at least 0.")
        self.margin = margin

    def target(self, cosine: Tensor, pool: NegativePool) -> Tensor:
        return cosine - self.margin


class ArcFace(Margin):
    """``cos(t + margin)``: the positive must be nearer by a fixed angle.

    As published by UNPG without a guard: an anchor more than pi - margin away from its class is drawn the wrong way.

    Args:
        margin: in radians.

    Source:
        ArcFace, arXiv 1801.07698, equation 3.
    """

    def __init__(self, margin: float = 0.5) -> None:
        super().__init__()
        _check_angle(self, margin=margin)
        self.margin = margin

    def target(self, cosine: Tensor, pool: NegativePool) -> Tensor:
        return cosine * math.cos(self.margin) - _sine(cosine) * math.sin(self.margin)


class MagFace(Margin):
    """``cos(t + m(a))`` with a margin that grows with the vector's length a, and a price that wants vectors long.

    Easy pictures become long vectors near their class, poor ones short vectors with a small margin: the length is a
    quality. m rises linearly from lowest_margin at ``shortest`` to highest_margin at ``longest``; where the cosine is
    not above 0 there is no margin. The price is ``price * (a / longest^2 + 1 / a)``, mean over anchors.

    Args:
        shortest, longest: lengths between which margins grow; others are cut.
        lowest_margin, highest_margin: in radians.
        price: weight of the length's term.

    Source:
        MagFace, arXiv 2103.06627, equations 3 to 5, and its code's defaults.
    """

    def __init__(
        self,
        shortest: float = 10.0,
        longest: float = 110.0,
        lowest_margin: float = 0.45,
        highest_margin: float = 0.8,
        price: float = 35.0,
    ) -> None:
        super().__init__()
        _check_angle(self, lowest_margin=lowest_margin, highest_margin=highest_margin)
        if not 0 < shortest < longest or lowest_margin > highest_margin or price < 0:
            raise ValueError(
                f"MagFace(shortest={shortest}, longest={longest}, lowest_margin={lowest_margin}, "
                f"highest_margin={highest_margin}, price={price}): wants 0 < shortest < longest, a highest margin not "
                "below the lowest, and a price of at least 0."
            )
        self.shortest, self.longest = shortest, longest
        self.lowest_margin, self.highest_margin = lowest_margin, highest_margin
        self.price = price

    def target(self, cosine: Tensor, pool: NegativePool) -> Tensor:
        share = (self._lengths(pool) - self.shortest) / (self.longest - self.shortest)
        margin = self.lowest_margin + (self.highest_margin - self.lowest_margin) * share[:, None]  # (B, 1)
        moved = cosine * margin.cos() - _sine(cosine) * margin.sin()
        return moved.where(cosine > 0, cosine)

    def aux_loss(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        lengths = self._lengths(pool)
        terms = self.price * (lengths / self.longest**2 + 1 / lengths)
        own = pool.usable_of(pool.positives).any(1)
        return terms.where(own, 0).sum(), own.sum()

    def _lengths(self, pool: NegativePool) -> Tensor:
        return lengths_of(pool.anchors).clamp(self.shortest, self.longest)


class AdaFace(Margin):
    """``cos(t - margin z) - margin (1 + z)``: z in [-1, 1] says how much longer the vector is than usual.

    The length stands for the picture's quality: hard samples count where the picture is good, and are passed by where
    it is too poor to be recognised. Mean and deviation of lengths are followed over batches of all processes.

    Args:
        margin: in radians and in cosine alike.
        h: deviations / h from the mean at which z is 1.
        rate: share of a batch in the followed mean and deviation.

    Attributes:
        mean, std: of lengths, as followed so far; they start at 20 and 100, as published.

    Source:
        AdaFace, arXiv 2204.00964, equations 5 to 8, and its code.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, margin: float = 0.4, h: float = 0.333, rate: float = 0.01) -> None:
        super().__init__()
        _check_angle(self, margin=margin)
        if not (h > 0 and 0 < rate <= 1):
            raise ValueError(f"AdaFace(h={h}, rate={rate}): wants h above 0 and a rate in (0, 1].")
        self.margin, self.h, self.rate = margin, h, rate
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("std", torch.tensor(100.0))

    def target(self, cosine: Tensor, pool: NegativePool) -> Tensor:
        mean, std = self._followed(pool)
        quality = (self.h * (_cut(pool.anchors) - mean) / (std + EDGE)).clamp(-1, 1)[:, None]  # (B, 1)
        turn = -self.margin * quality
        cosine = cosine.clamp(-1 + EDGE, 1 - EDGE)
        sine = _sine(cosine)
        moved = cosine * turn.cos() - sine * turn.sin()
        inside = sine * turn.cos() + cosine * turn.sin() >= math.sin(EDGE)  # the angle is in [edge, pi - edge]
        edge = torch.full_like(moved, math.cos(EDGE)).copysign(moved.detach())
        return moved.where(inside, edge) - self.margin * (1 + quality)

    def commit(self, pool: NegativePool) -> None:
        mean, std = self._followed(pool)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def _followed(self, pool: NegativePool) -> tuple[Tensor, Tensor]:
        """Mean and deviation with this batch in them: the published code updates before it uses."""
        batch = pool.sides.get("anchors", pool.anchors)
        if not isinstance(batch, Items) or len(batch) < 2 or not pool.context.training:
            return self.mean, self.std
        lengths = _cut(batch)
        return torch.lerp(self.mean.to(lengths), lengths.mean(), self.rate), torch.lerp(
            self.std.to(lengths), lengths.std(), self.rate
        )


def lengths_of(items: Items) -> Tensor:
    """(N,) lengths of vectors before normalising, in fp32 at least, with gradient."""
    if items.norms is not None:
        return items.norms
    vectors = items._need("embeddings")
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.promote_types(vectors.dtype, torch.float32))


def _cut(items: Items) -> Tensor:
    return lengths_of(items).detach().clamp(0.001, 100)


def _sine(cosine: Tensor) -> Tensor:
    return (1 - cosine**2).clamp_min(SMALLEST).sqrt()


def _check_angle(who: Margin, /, **angles: float) -> None:
    for name, angle in angles.items():
        if not 0 <= angle < math.pi / 2:
            raise ValueError(f"{type(who).__name__}({name}={angle}): radians, so 0 <= {name} < pi / 2.")
