"""GISTEmbed as published, row by row: what both codes do, their quirks included.

Sources: avsolatorio/GISTEmbed, `guided_in_batch_contrastive_loss`; sentence-transformers 6.2.0, `GISTEmbedLoss`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Angles = Sequence[Sequence[float]]


def guided(
    student: Angles,
    guide: Angles,
    temperature: float = 0.1,
    margin: float = 0.0,
    strategy: str = "absolute",
    queries: bool = True,
    documents: bool = True,
    diagonals: bool = False,
    rows: slice | None = None,
) -> float:
    """Mean loss of unit vectors given by angles in degrees: queries, positives and, where there is a third, negatives.

    Quirks that are reproduced: only the guide's threshold keeps the diagonals of QQ and PP out, so that they leak in
    where the guide scores the labelled pair like a self-pair, or where the margin is negative; a second copy of the
    positive ties with the threshold and stays; with ``rows`` (one process' share) documents are gathered and queries
    are not.

    Args:
        diagonals: mask the two diagonals explicitly, as the unguided branch of the published code does.
    """
    rows = rows or slice(0, len(student[0]))
    own = range(*rows.indices(len(student[0])))
    losses = []
    for i in own:
        threshold = _cosine(guide[0][i], guide[1][i])
        ceiling = threshold - margin * (abs(threshold) if strategy == "relative" else 1)
        kept = [_cosine(student[0][i], student[1][i])]
        for left, right, columns, target, diagonal in (
            (0, 1, range(len(student[1])), True, False),
            (0, 2, range(len(student[1])) if len(student) > 2 else (), False, False),
            (0, 0, own if queries else (), False, True),
            (1, 1, range(len(student[1])) if documents else (), False, True),
        ):
            for j in columns:
                if (target and i == j) or (diagonal and diagonals and i == j):
                    continue
                # a query is compared with itself through cos(0), which is exactly 1
                if _cosine(guide[left][i], guide[right][j]) <= ceiling:
                    kept.append(_cosine(student[left][i], student[right][j]))
        logits = [score / temperature for score in kept]
        top = max(logits)
        losses.append(top + math.log(sum(math.exp(z - top) for z in logits)) - logits[0])
    return sum(losses) / len(losses)


def _cosine(a: float, b: float) -> float:
    return math.cos(math.radians(a - b))
