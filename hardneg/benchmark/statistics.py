"""Is one chain better than another? Over seeds and over queries, for many chains at once, with four answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]
RESAMPLES = 2000
POWER = 0.8
_BATCH = 2_000_000  # numbers resampled at a time: memory


@dataclass(frozen=True)
class Estimate:
    """A mean difference and the parts of its error: (standard error, degrees of freedom) of each independent source.

    Few seeds say little of how far seeds differ, and may by chance say "not at all". So no common number of degrees of
    freedom is made up: each part's error is stretched by its own t-quantile, and the squares are added. Such intervals
    cover at least as often as they promise, whatever the true ratio of the parts (Banerjee 1960).
    """

    mean: float
    parts: tuple[tuple[float, int], ...]
    seeds: int

    def half_width(self, level: float) -> float:
        """Half of the interval that leaves ``level`` outside."""
        return math.hypot(*(float(special.stdtrit(freedom, level / 2)) * error for error, freedom in self.parts))

    def p_beyond(self, distance: float) -> float:
        """The two-sided level at which the interval is ``distance`` (at least 0) wide on either side."""
        if self.half_width(0.5) == 0:
            return 1.0 if distance == 0 else 0.0
        least = -300.0  # log10; t-quantiles end there
        if distance >= self.half_width(10**least):
            return 10**least
        found = optimize.brentq(lambda power: self.half_width(10**power) - distance, least, 0.0, xtol=1e-9)
        return float(10**found)


@dataclass(frozen=True)
class Judgement:
    """What can be said of a difference.

    Args:
        estimate: the difference.
        low, high: interval of it alone, for reading; verdicts are corrected for the number of comparisons.
        p_difference, p_equivalence: after Holm, of "there is none" and of "it is outside the margin".
        detectable: the smallest difference that would be found with a chance of 0.8.
        verdict: one of four.
    """

    estimate: Estimate
    low: float
    high: float
    p_difference: float
    p_equivalence: float
    detectable: float
    verdict: Verdict


def estimate(differences: NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean of paired differences, and how far other seeds or other queries would have moved it, by bootstrap.

    All seeds are asked the same queries, so the two are crossed: seeds are resampled with all their queries, queries
    with all their seeds. A mean resampled from n things varies by n - 1 of n parts too little, which is put right.

    Args:
        differences: (S, Q), one chain minus the other, by seed and query.
        seed: of the resamples.
        resamples: how many.

    Example:
        >>> round(estimate(np.random.default_rng(0).normal(0.1, 0.2, (5, 400))).mean, 2)
        0.1
    """
    mean = float(differences.mean())
    parts = []
    for axis, count in ((1, differences.shape[0]), (0, differences.shape[1])):
        effects = differences.mean(axis=axis)
        if count > 1:
            error = 0.0
            if np.ptp(effects) > 0:
                drawn = stats.bootstrap(
                    (effects,), np.mean, n_resamples=resamples, method="percentile", rng=seed, batch=_BATCH // count + 1
                )
                error = float(drawn.standard_error) * math.sqrt(count / (count - 1))
            parts.append((error, count - 1))
    return Estimate(mean, tuple(parts), len(differences))


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over data sets, which are these and no sample of others: only their own errors count."""
    number = len(estimates)
    parts = tuple((error / number, freedom) for each in estimates for error, freedom in each.parts)
    return Estimate(float(np.mean([each.mean for each in estimates])), parts, min(each.seeds for each in estimates))


def judge(estimates: Sequence[Estimate], margin: float = 0.01, level: float = 0.05) -> list[Judgement]:
    """Verdicts for many differences at once: ``level`` at most is the chance that any "better" or "worse" is false.

    "equivalent" comes first: two one-sided tests against the margin, corrected by Holm. A difference that is there and
    smaller than the margin is equivalent. One seed alone is always inconclusive, since nothing says how far another
    would have landed.
    """
    from statsmodels.stats.multitest import multipletests

    if not estimates:
        return []
    differ = multipletests([each.p_beyond(abs(each.mean)) for each in estimates], level, "holm")
    equal = multipletests([_p_equivalence(each, margin) for each in estimates], level, "holm")
    found = []
    for at, each in enumerate(estimates):
        verdict: Verdict = "inconclusive"
        if each.seeds > 1 and equal[0][at]:
            verdict = "equivalent"
        elif each.seeds > 1 and differ[0][at]:
            verdict = "better" if each.mean > 0 else "worse"
        half = each.half_width(level)
        found.append(
            Judgement(
                each,
                low=each.mean - half,
                high=each.mean + half,
                p_difference=float(differ[1][at]),
                p_equivalence=float(equal[1][at]),
                detectable=each.half_width(level / len(estimates)) + each.half_width(2 - 2 * POWER),
                verdict=verdict,
            )
        )
    return found


def _p_equivalence(each: Estimate, margin: float) -> float:
    """The larger p of the two one-sided tests."""
    inside = margin - abs(each.mean)
    return each.p_beyond(inside) / 2 if inside > 0 else 1 - each.p_beyond(-inside) / 2
