"""The formulas of methods of the seed literature that are no contrastive learning, slow and obvious.

Those that have a counterpart in the product are its oracles; of the others these lines are all there is, and they hold
the numbers on which docs/systems.md bases its "why not". Published faults stand beside the corrected form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

Row = Sequence[float]


def softmax(logits: Row, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(one / temperature) for one in logits]
    return [power / sum(powers) for power in powers]


def focal_kl(
    teacher: Sequence[Row], student: Sequence[Row], right: Sequence[bool], softening: float, focus: float = 5.0
) -> float:
    """Mean over rows of (1 + focus [teacher right]) KL(teacher || student)."""
    total = 0.0
    for before, after, was_right in zip(teacher, student, right, strict=True):
        p, q = softmax(before, softening), softmax(after, softening)
        total += (1 + focus * was_right) * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(teacher)


def flip_rates(old: Sequence[int], new: Sequence[int], k: int) -> tuple[float, float, float, float]:
    """Recall of both, negative and positive flip rate of ranks."""
    number = len(old)
    pairs = list(zip(old, new, strict=True))
    return (
        sum(a <= k for a, _ in pairs) / number,
        sum(b <= k for _, b in pairs) / number,
        sum(a <= k < b for a, b in pairs) / number,
        sum(b <= k < a for a, b in pairs) / number,
    )


def perpendicular(x: Row, y: Row) -> list[float]:
    """Perp-Neg's x without what it shares with y."""
    share = sum(a * b for a, b in zip(x, y, strict=True)) / max(sum(b * b for b in y), 1e-6)
    return [a - share * b for a, b in zip(x, y, strict=True)]


def matched(tokens: Sequence[Row], reference: Sequence[Row], published: bool = False) -> list[int]:
    """NegToMe: the reference token that each token is most like. Published: the maximum over the other axis."""

    def cosine(a: Row, b: Row) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    if published:
        return [max(range(len(tokens)), key=lambda i: cosine(tokens[i], one)) for one in reference]
    return [max(range(len(reference)), key=lambda j: cosine(one, reference[j])) for one in tokens]


def preference(distance: float, beta: float) -> tuple[float, float]:
    """NPO's loss, and its gradient in multiples of gradient ascent's, of one item that is to be forgotten."""
    away = beta * distance
    return 2 / beta * math.log1p(math.exp(-away)), 2 / (1 + math.exp(away))


def advantages(rewards: Row, virtual: bool) -> list[float]:
    """A group's standardised rewards: GRPO's (sample deviation), or NGRPO's with a virtual reward of 1 in the group."""
    group = [*rewards, 1.0] if virtual else list(rewards)
    mean = sum(group) / len(group)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in group) / (len(group) - 1))
    return [(one - mean) / deviation if deviation else 0.0 for one in rewards]


def squares(band: Row) -> float:
    centre = sum(band) / len(band)
    return sum((one - centre) ** 2 for one in band)


def to_centre(band: Row) -> float:
    """ANT's cost: distances from the element in the middle."""
    return sum(abs(one - band[len(band) // 2]) for one in band)


def best_bands(values: Row, k: int, cost=squares) -> list[list[float]]:
    """All ways to cut a sorted list into k bands, and the cheapest of them."""
    cuts = ([0, *cut, len(values)] for cut in combinations(range(1, len(values)), k - 1))
    bands = ([list(values[a:b]) for a, b in pairwise(cut)] for cut in cuts)
    return min(bands, key=lambda found: sum(map(cost, found)))


def bands_by_programming(values: Row, k: int, cost=squares) -> float:
    """The cost of the best k bands by dynamic programming, O(k n^2) as in ANT, with splits of cost 0 allowed."""
    best = [cost(values[:end]) if end else math.inf for end in range(len(values) + 1)]
    for _ in range(k - 1):
        best = [
            min((best[at] + cost(values[at:end]) for at in range(1, end)), default=math.inf)
            for end in range(len(values) + 1)
        ]
    return best[-1]


def discovery(logits: Sequence[Row], known: set[int]) -> tuple[float, float, list[float], float]:
    """NEV-NCD on unlabelled items: negative learning (a sum), entropy and variances of novel classes, hinge."""
    novel = [c for c in range(len(logits[0])) if c not in known]
    negative = entropy = 0.0
    hard = []
    for row in logits:
        p = softmax(row)
        negative -= sum(math.log(1 - p[c] + 1e-8) for c in known)
        q = softmax([row[c] for c in novel])
        entropy -= sum(one * math.log(one) for one in q)
        top = max(row[c] for c in novel)
        hard.append(softmax([row[c] - top for c in novel], 0.005))
    number = len(logits)
    variances = []
    for column in zip(*hard, strict=True):
        mean = sum(column) / number
        variances.append(sum((one - mean) ** 2 for one in column) / (number - 1))
    wanted = (len(novel) - 1) / len(novel) ** 2
    hinge = sum(max(0.0, wanted - one) for one in variances) / len(novel)
    return negative, entropy / number, variances, hinge
