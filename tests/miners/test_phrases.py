"""Names in texts, against a slow obvious search."""

from __future__ import annotations

import random
import re

import pytest

from miners.phrases import find_names, without_nested


def slowly(names: list[str], texts: list[str]) -> list[tuple[int, int, int, int]]:
    split = [re.findall("[a-z0-9+#]+", text.lower()) for text in texts]
    runs = [re.findall("[a-z0-9+#]+", name.lower()) for name in names]
    return sorted(
        (text, start, len(run), name)
        for text, words in enumerate(split)
        for name, run in enumerate(runs)
        for start in range(len(words) - len(run) + 1)
        if run and words[start : start + len(run)] == run
    )


def listed(found) -> list[tuple[int, int, int, int]]:
    return list(zip(*(part.tolist() for part in (found.text, found.start, found.length, found.name)), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_all_places_and_the_longest_of_them(seed: int) -> None:
    dice = random.Random(seed)
    names = [" ".join(dice.choices("abc", k=dice.randint(0, 4))) for _ in range(12)]
    texts = ["-".join(dice.choices("abcd", k=dice.randint(0, 9))) for _ in range(30)]
    found = find_names(names, texts)
    expected = slowly(names, texts)
    assert listed(found) == expected
    kept = [
        (text, start, length, name)
        for text, start, length, name in expected
        if not any(
            other == text and first <= start and start + length <= first + many and many > length
            for other, first, many, _ in expected
        )
    ]
    assert listed(without_nested(found)) == kept


def test_t3_the_longest_name_wins() -> None:
    labels = ["risk management", "enterprise risk management", "management"]
    found = find_names(labels, ["experience in enterprise risk management"])
    assert sorted(found.name.tolist()) == [0, 1, 2]
    assert without_nested(found).name.tolist() == [1]


def test_words_are_whole_and_punctuation_is_none() -> None:
    found = find_names(["C++", "c", "java", "R&D"], ["C++, Javascript; r-d (C)"])
    assert listed(found) == [(0, 0, 1, 0), (0, 2, 2, 3), (0, 4, 1, 1)]
    assert listed(find_names([], ["a"])) == []
    assert listed(find_names(["", "..."], ["a"])) == []
    assert listed(without_nested(find_names(["a"], []))) == []
