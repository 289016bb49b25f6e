"""Edits that make a caption false: what each changes, what it leaves alone, and polygons that have many names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miners.caption_edits import AttributeEdit, LettersEdit, NumberEdit, OrderEdit, polygon

COLOURS = ["red", "green", "blue"]


def test_numbers_step_and_keep_their_digits() -> None:
    assert NumberEdit()("a side of 3.50 cm, 0 holes") == [
        "a side of 2.50 cm, 0 holes",
        "a side of 4.50 cm, 0 holes",
        "a side of 3.50 cm, 1 holes",
    ]
    assert NumberEdit(lowest=1, highest=4)("4 red dots") == ["3 red dots"]
    assert NumberEdit()("version 1.2.3 of p2") == []
    assert NumberEdit()("1,000 dots of 1,5 mm, agent 007") == []
    assert NumberEdit()("0.5 cm, 10.") == ["1.5 cm, 10.", "0.5 cm, 9.", "0.5 cm, 11."]
    assert NumberEdit([1])("2, 3 and 4.") == ["3, 3 and 4.", "2, 4 and 4.", "2, 3 and 5."]


def test_attributes_are_whole_words() -> None:
    edit = AttributeEdit([COLOURS, ["left of", "left"]])
    assert edit("a reddish red dot left of a wall") == [
        "a reddish green dot left of a wall",
        "a reddish blue dot left of a wall",
        "a reddish red dot left a wall",
    ]


def test_order_exchanges_different_words_of_a_list() -> None:
    assert OrderEdit([COLOURS])("a red dot on a blue bar") == ["a blue dot on a red bar"]
    assert OrderEdit([COLOURS])("a red dot on a red bar") == []


@pytest.mark.parametrize("name", ["ABCD", "BCDA", "CDAB", "DABC", "DCBA", "CBAD", "BADC", "ADCB"])
def test_rotations_and_mirror_images_name_one_polygon(name: str) -> None:
    assert polygon(name) == polygon("ABCD")
    assert f"square {name}" not in LettersEdit()("square ABCD")


def test_other_orders_of_the_letters_are_other_polygons() -> None:
    found = [polygon(text.split()[1]) for text in LettersEdit()("square ABCD")]
    assert polygon("ACBD") in found
    assert len(found) == len(set(found)) == 2  # three quadrilaterals have these vertices
    assert LettersEdit()("triangle ABC with the segment AC") == []  # a segment or a triangle has one name


words = st.lists(st.sampled_from([*COLOURS, "2", "dot", "left of", "ABCD", "ACDE"]), min_size=1, max_size=8)


@given(words=words)
def test_laws_of_all_edits(words: list[str]) -> None:
    caption = " ".join(words)
    for edit in (NumberEdit(), AttributeEdit([COLOURS]), OrderEdit([COLOURS]), LettersEdit()):
        found = edit(caption)
        assert caption not in found
        assert len(found) == len(set(found))
        assert found == edit(caption)


@given(letters=st.permutations("ABCDE"))
def test_an_edited_polygon_is_another_one_with_the_same_letters(letters: list[str]) -> None:
    name = "".join(letters)
    for text in LettersEdit()(name):
        assert polygon(text) != polygon(name)
        assert sorted(text) == sorted(name)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="0 would leave it true"):
        NumberEdit(steps=[0])
    with pytest.raises(ValueError, match="two words or more"):
        AttributeEdit([["red"]])
