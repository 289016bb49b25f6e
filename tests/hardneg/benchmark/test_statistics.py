from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from hardneg.benchmark.statistics import Estimate, estimate, judge, pooled


@pytest.fixture(autouse=True)
def _quick_collections() -> Iterator[None]:
    """statsmodels collects garbage at every correction, which among all that a test session has loaded takes 0.1 s."""
    gc.freeze()
    yield
    gc.unfreeze()


def scores(generator, seeds, queries, of_seed, of_query, rest):
    """A chain's scores in which seeds, queries and both together have their say, and the chain itself has none."""
    parts = (generator.normal(0, of_seed, (seeds, 1)), generator.normal(0, of_query, (1, queries)))
    return sum(parts) + generator.normal(0, rest, (seeds, queries))


@pytest.mark.parametrize(("seeds", "of_seed", "of_query", "rest"), [(2, 0.02, 0.1, 0.1), (5, 0.02, 0.01, 0.01)])
def test_null_suites_are_rarely_better_or_worse(seeds, of_seed, of_query, rest):
    """Chains that differ by chance alone, three against one baseline in each suite: the level is that of a suite."""
    generator, wrong, suites = np.random.default_rng(0), 0, 150
    for _ in range(suites):
        base = scores(generator, seeds, 40, of_seed, of_query, rest)
        others = [scores(generator, seeds, 40, of_seed, of_query, rest) - base for _ in range(3)]
        found = judge([estimate(other, resamples=100) for other in others], level=0.05)
        wrong += any(each.verdict in ("better", "worse") for each in found)
    assert stats.binomtest(wrong, suites, 0.05, "greater").pvalue > 0.05, f"{wrong} of {suites} suites"


def test_the_level_is_that_of_all_comparisons():
    """The same difference alone and among many: Holm asks more of it there."""
    found = Estimate(0.05, ((0.01, 4), (0.008, 99)), 5)
    nothing = Estimate(0.0, ((0.01, 4), (0.008, 99)), 5)
    assert judge([found])[0].verdict == "better"
    assert judge([found, *[nothing] * 20])[0].verdict == "inconclusive"
    assert judge([found, *[nothing] * 20])[0].detectable > judge([found])[0].detectable


@pytest.mark.parametrize(
    ("mean", "error", "seeds", "verdict"),
    [
        (0.1, 0.005, 5, "better"),
        (-0.1, 0.005, 5, "worse"),
        (0.0, 0.001, 5, "equivalent"),
        (0.004, 0.001, 5, "equivalent"),  # a difference that is there and does not matter
        (0.0, 0.05, 5, "inconclusive"),
        (0.5, 0.005, 1, "inconclusive"),  # one seed says nothing of others
        (0.0, 0.0, 5, "equivalent"),
        (0.02, 0.0, 5, "better"),
    ],
)
def test_four_verdicts(mean, error, seeds, verdict):
    assert judge([Estimate(mean, ((error, 4), (error, 99)), seeds)], margin=0.01)[0].verdict == verdict


def test_a_detectable_difference_is_detected_four_times_in_five():
    generator = np.random.default_rng(1)
    noise = [scores(generator, 5, 60, 0.01, 0.05, 0.05) for _ in range(150)]
    typical = float(np.median([judge([estimate(each, resamples=100)])[0].detectable for each in noise]))
    hits = [judge([estimate(each + typical, resamples=100)])[0].verdict == "better" for each in noise]
    assert np.mean(hits) > 0.7  # intervals that hold for every ratio of errors are a little wide: more, not fewer


def test_with_one_source_of_error_it_is_the_t_test():
    differences = np.repeat(np.random.default_rng(2).normal(0.02, 0.03, (6, 1)), 10, axis=1)
    found = judge([estimate(differences, resamples=20_000)])[0]
    theirs = stats.ttest_1samp(differences[:, 0], 0)
    assert found.p_difference == pytest.approx(theirs.pvalue, rel=0.05)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-3)


def test_the_interval_and_its_level_belong_together():
    each = Estimate(0.1, ((0.02, 2), (0.03, 50)), 3)
    for level in (0.5, 0.05, 1e-3, 1e-9):
        assert each.p_beyond(each.half_width(level)) == pytest.approx(level, rel=1e-6)
    assert each.p_beyond(0.0) == pytest.approx(1.0, abs=1e-6)


def test_data_sets_are_pooled_as_they_are():
    one, other = Estimate(0.1, ((0.02, 4),), 5), Estimate(0.3, ((0.02, 4),), 3)
    both = pooled([one, other])
    assert both.mean == pytest.approx(0.2)
    assert both.half_width(0.05) == pytest.approx(one.half_width(0.05) / np.sqrt(2))
    assert both.seeds == 3


def test_nothing_to_judge():
    assert judge([]) == []
