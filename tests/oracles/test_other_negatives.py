"""Numbers of methods that have no counterpart in the product: what was judged is what is written here."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import other_negatives as oracle

SIMILARITIES = (0.95, 0.93, 0.90, 0.71, 0.70, 0.66, 0.65, 0.30, 0.28, 0.05)
RATIOS = (9, 8.5, 8, 4, 3.9, 3.5, 1, 0.9, 0.5, 0.4)


def test_perpendicular_part() -> None:
    assert oracle.perpendicular((1, 2, 2), (1, 0, 1)) == pytest.approx([-0.5, 2, 0.5], abs=1e-12)


def test_negtome_matches_each_token_and_the_published_code_each_reference() -> None:
    def at(*degrees: float) -> list[tuple[float, float]]:
        return [(math.cos(math.radians(one)), math.sin(math.radians(one))) for one in degrees]

    tokens, reference = at(0, 20, 90), at(85, 5, -30)
    assert oracle.matched(tokens, reference) == [1, 1, 0]
    assert oracle.matched(tokens, reference, published=True) == [2, 0, 0]


@pytest.mark.parametrize(
    ("beta", "losses", "weights"),
    [
        (0.1, (13.862944, 12.887933, 9.481540, 2.538560), (1, 0.950042, 0.755081, 0.238406)),
        (1.0, (1.386294, 0.626523, 0.013431, 0), (1, 0.537883, 0.013386, 0)),
    ],
)
def test_npo_fades_out(beta: float, losses: tuple[float, ...], weights: tuple[float, ...]) -> None:
    found = [oracle.preference(distance, beta) for distance in (0, 1, 5, 20)]
    assert [loss for loss, _ in found] == pytest.approx(losses, abs=5.1e-7)
    assert [weight for _, weight in found] == pytest.approx(weights, abs=5.1e-7)


@pytest.mark.parametrize(("size", "expected"), [(4, -0.447), (8, -0.333), (16, -0.243)])
def test_ngrpo_teaches_groups_that_are_all_wrong(size: int, expected: float) -> None:
    found = oracle.advantages([0.0] * size, virtual=True)
    assert found == pytest.approx([-1 / math.sqrt(size + 1)] * size, abs=1e-12)
    assert found[0] == pytest.approx(expected, abs=5.1e-4)
    assert oracle.advantages([0.0] * size, virtual=False) == [0.0] * size


def test_ngrpo_of_one_right_answer_in_four() -> None:
    assert oracle.advantages([1, 0, 0, 0], virtual=True)[:2] == pytest.approx([1.095, -0.730], abs=5.1e-4)
    assert oracle.advantages([1, 0, 0, 0], virtual=False)[:2] == pytest.approx([1.5, -0.5], abs=1e-12)
    assert oracle.advantages([1, 1, 1, 1], virtual=True) == [0.0] * 4


def test_ant_cuts_where_brute_force_cuts() -> None:
    bands = oracle.best_bands(SIMILARITIES, 3)
    assert [len(band) for band in bands] == [3, 4, 3]
    assert sum(map(oracle.squares, bands)) == pytest.approx(0.042467, abs=5.1e-7)
    best = oracle.best_bands(RATIOS, 3, oracle.to_centre)
    assert [len(band) for band in best] == [3, 3, 4]
    published = [RATIOS[:2], RATIOS[2:5], RATIOS[5:]]  # every boundary one too early
    assert sum(map(oracle.to_centre, published)) > sum(map(oracle.to_centre, best))


@given(st.lists(st.integers(0, 9), min_size=3, max_size=7).map(lambda row: sorted(map(float, row))), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_dynamic_programming_finds_what_brute_force_finds(values: list[float], k: int) -> None:
    for cost in (oracle.squares, oracle.to_centre):
        brute = sum(map(cost, oracle.best_bands(values, k, cost)))
        assert oracle.bands_by_programming(values, k, cost) == pytest.approx(brute, abs=1e-9)


def test_nev_ncd() -> None:
    logits = [[2, 0, 1, 0.5], [0, 0, 3, -1], [0.5, 0, -1, 2]]
    negative, entropy, variances, hinge = oracle.discovery(logits, {0, 1})
    assert (negative, entropy) == pytest.approx((1.312034, 0.314602), abs=5.1e-7)
    assert variances == pytest.approx([0.3333, 0.3333], abs=5.1e-5)
    assert hinge == 0
    *_, variances, hinge = oracle.discovery([[a, b, c + 10, d] for a, b, c, d in logits], {0, 1})
    assert variances == pytest.approx([0, 0], abs=1e-12)
    assert hinge == pytest.approx(0.25, abs=1e-12)
