"""What breaks when a model is replaced: answers that were right and are wrong now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hardneg.metrics.verification import tar_at_far
from miners.index import TorchIndex
from miners.pool import among
from miners.ragged import Ragged
from miners.store import Store


@dataclass(frozen=True)
class NegativeFlipRate:
    """How many of N answers a new model breaks, and how many it mends: ``new - old = mended - rate``.

    Equal shares of right answers hide flips: users notice what worked yesterday.

    Args:
        old, new: shares of right answers of both models.
        rate: NFR, share that the old model had right and the new one has wrong.
        mended: PFR, the reverse.
        relative: NFR over what two independent models of these shares would have, ``old * (1 - new)``; 1 = as if they
            had nothing in common. None where that is 0.
        broken: (N,) bool, who flipped.

    Source:
        Yan et al., arXiv 2011.09161; Ricci et al., arXiv 2511.08322.

    Example:
        >>> found = NegativeFlipRate.of_ranks(torch.tensor([1, 1, 2, 5, 1, 3]), torch.tensor([1, 2, 1, 1, 4, 3]), k=1)
        >>> found.old, found.new, round(found.rate, 4), round(found.mended, 4)
        (0.5, 0.5, 0.3333, 0.3333)
    """

    old: float
    new: float
    rate: float
    mended: float
    relative: float | None
    broken: Tensor

    @classmethod
    def of_answers(cls, old: Tensor, new: Tensor) -> NegativeFlipRate:
        """Compare right answers (N,) bool of the old model with those of the new one, in the same order.

        Raises:
            ValueError: no answers, or two numbers of them.
        """
        if old.shape != new.shape or old.ndim != 1 or not len(old):
            raise ValueError(
                f"NegativeFlipRate wants the same answers (N,) of both models, at least one; got {tuple(old.shape)} "
                f"and {tuple(new.shape)}."
            )
        broken, mended = old & ~new, ~old & new
        before, after, rate = (float(part.double().mean()) for part in (old, new, broken))
        expected = before * (1 - after)
        return cls(
            before, after, rate, float(mended.double().mean()), rate / expected if expected > 0 else None, broken
        )

    @classmethod
    def of_ranks(cls, old: Tensor, new: Tensor, k: int) -> NegativeFlipRate:
        """Retrieval: right = a relevant document among the first k.

        Args:
            old, new: (Q,) rank of each query's best relevant document, 1 = best; what was not found ranks beyond k.
            k: cutoff.
        """
        if k < 1:
            raise ValueError(f"NegativeFlipRate.of_ranks(k={k}): wants at least 1.")
        return cls.of_answers(old <= k, new <= k)

    @classmethod
    def of_pairs(cls, old: Tensor, new: Tensor, same: Tensor, far: float) -> Mapping[str, NegativeFlipRate]:
        """Verification: each model at its own threshold for a fixed false accept rate, genuine and impostor apart.

        Args:
            old, new: (P,) similarities of the same pairs.
            same: (P,) bool, genuine.
            far: at most this share of the impostor pairs is accepted by either model.

        Returns:
            "genuine": pairs that were accepted and are not any more; "impostor": pairs that were refused and now pass.
        """
        accepted = [scores.double() >= tar_at_far(scores, same, far)[2] for scores in (old, new)]
        right = {"genuine": [part[same] for part in accepted], "impostor": [~part[~same] for part in accepted]}
        return {name: cls.of_answers(*answers) for name, answers in right.items()}

    def as_dict(self) -> dict[str, float | None]:
        """Plain values, without the list of who flipped."""
        return {name: getattr(self, name) for name in ("old", "new", "rate", "mended", "relative")}


def first_relevant(
    queries: Tensor, corpus: Store, relevant: Ragged, depth: int = 100, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Rank of each query's best relevant document, by exact search.

    Args:
        queries: (Q, d) in the corpus' geometry.
        corpus: all documents.
        relevant: Q lists of ids.
        depth: how far is looked; may be more than there are documents.

    Returns:
        rank (Q,) int64, 1 = best, depth + 1 where none is found; and the id (Q,) that stands first.
    """
    _, ids = TorchIndex(corpus, device=str(device)).search(queries, min(depth, len(corpus)))
    ids = ids.cpu()
    found = among(ids, relevant)  # (Q, at most depth)
    rank = torch.where(found.any(1), found.int().argmax(1) + 1, depth + 1)
    return rank, ids[:, 0]
