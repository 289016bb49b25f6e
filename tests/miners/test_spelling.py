"""Levenshtein distances against the table of the textbook, and each name's nearest."""

from __future__ import annotations

import random

import pytest

from miners import Ragged
from miners.spelling import edit_distances, nearest_names


def slowly(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@pytest.mark.parametrize("seed", range(3))
def test_against_the_textbook(seed: int) -> None:
    dice = random.Random(seed)
    texts = ["".join(dice.choices("abß", k=dice.choice([0, 1, 3, 8, 40, 62, 63]))) for _ in range(12)]
    names = [*texts[:4], "".join(dice.choices("ab", k=63))]
    assert edit_distances(names, texts).tolist() == [[slowly(name, text) for text in texts] for name in names]


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("manage staff", "manage stock", 3),
        ("manage staff", "manage sales", 4),
        ("manage staff", "manage a team", 5),
        ("manage staff", "supervise staff", 8),
        ("teach chemistry", "teach history", 4),
        ("teach chemistry", "chemistry", 6),
        ("PostgreSQL", "MySQL", 7),
    ],
)
def test_t2_distances(one: str, other: str, distance: int) -> None:
    assert edit_distances([one], [other]).item() == edit_distances([other], [one]).item() == distance


def test_t2_the_two_nearest() -> None:
    names = ["manage staff", "manage a team", "Manage stock", "supervise staff", "manage sales", "", "manage staffs"]
    excluded = Ragged.from_lists([[6], [], [], [], [], [], [0]])
    found = nearest_names(names, 2, excluded).to_lists()
    assert found[0] == [2, 4]  # the other staffs is excluded, the empty name nobody's
    assert found[5] == []
    assert all(5 not in near for near in found)
    assert nearest_names(["a", "b", "c"], 2, Ragged.empty(3)).to_lists() == [[1, 2], [0, 2], [0, 1]]  # ties by id
    assert nearest_names(["a"], 2, Ragged.empty(1)).to_lists() == [[]]


def test_what_is_longer_is_cut_and_nothing_is_nothing() -> None:
    assert edit_distances(["a" * 70], ["a" * 63 + "b" * 9]).item() == 0
    assert edit_distances([], ["a"]).shape == (0, 1)
    assert edit_distances(["", "ab"], ["", "abc"]).tolist() == [[0, 3], [2, 1]]
