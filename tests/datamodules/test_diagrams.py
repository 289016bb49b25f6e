"""Diagrams say what they show: captions, families, changed facts, and that no split sees another's meanings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import CaptionsData, DiagramsData
from datamodules.diagrams import (
    COLOURS,
    KINDS,
    RELATIONS,
    Diagram,
    DiagramReader,
    Group,
    draw,
    parse,
    random_diagram,
)

SMALL = {"families": 6, "members": 3, "val_families": 2, "test_families": 3, "negatives": 5, "size": 32}


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(KINDS))
def test_a_changed_fact_changes_the_meaning(seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    one = random_diagram(random)
    other = one.changed(kind, random)
    assert parse(str(one)) == one
    assert parse(str(other)) == other
    assert one.meaning == one.meaning.meaning
    assert str(one) != str(other)
    assert other.meaning != one.meaning or other.first == other.second


def test_two_captions_of_one_meaning() -> None:
    red, blue = Group(2, "red", "circle"), Group(1, "blue", "cross")
    assert Diagram(red, "left of", blue).meaning == Diagram(blue, "right of", red).meaning
    assert Diagram(red, "left of", blue).meaning != Diagram(blue, "left of", red).meaning


@pytest.mark.parametrize("relation", RELATIONS)
def test_colours_lie_where_the_caption_says(relation: str) -> None:
    """And a group of four covers more than a group of one."""
    diagram = Diagram(Group(4, "red", "square"), relation, Group(1, "blue", "square"))
    picture = draw(diagram, 64, np.random.default_rng(0)).float()
    where = {}
    for colour in ("red", "blue"):
        near = (picture - torch.tensor(COLOURS[colour]).view(3, 1, 1)).abs().sum(0) < 30
        rows, columns = near.nonzero(as_tuple=True)
        where[colour] = (float(rows.float().mean()), float(columns.float().mean()), len(rows))
    (red_y, red_x, red_size), (blue_y, blue_x, blue_size) = where["red"], where["blue"]
    right = {"left of": red_x < blue_x, "right of": red_x > blue_x, "above": red_y < blue_y, "below": red_y > blue_y}
    assert right[relation]
    assert red_size > 2 * blue_size


def test_a_picture_is_a_function_of_its_name() -> None:
    read, name = DiagramReader(32, 0), "2 x red circle above 1 x blue cross #7"
    assert torch.equal(read(name), read(name))
    assert not torch.equal(read(name), read(name.replace("#7", "#8")))
    assert not torch.equal(read(name), DiagramReader(32, 1)(name))
    with pytest.raises(ValueError, match="'a dot' describes no diagram"):
        read("a dot #1")


def test_families_differ_in_one_fact_and_splits_in_meaning() -> None:
    pairs = DiagramsData(**SMALL).read_pairs()
    meanings = [parse(caption).meaning for caption in pairs.captions]
    assert len(meanings) == len(set(meanings)) == 33
    assert Counter(pairs.splits) == {"train": 18, "val": 6, "test": 9}
    assert set(Counter(pairs.families).values()) == {3}
    held_out = {meaning for meaning, split in zip(meanings, pairs.splits, strict=True) if split != "train"}
    for one in pairs.made:
        assert pairs.splits[one.pair] == "train"
        assert one.caption is not None
        assert parse(one.caption).meaning != meanings[one.pair]
        assert parse(one.caption).meaning not in held_out
    assert sum(one.picture is not None for one in pairs.made) == 18 * 5
    assert {one.kind for one in pairs.made} == set(KINDS)
    assert DiagramsData(**SMALL).read_pairs().captions == pairs.captions
    assert DiagramsData(**SMALL, figure_seed=1).read_pairs().captions != pairs.captions


def test_written_files_are_the_same_set(tmp_path: Path) -> None:
    drawn = DiagramsData(**SMALL)
    drawn.write(tmp_path / "set")
    ours, theirs = drawn.read_pairs(), CaptionsData(str(tmp_path / "set"), size=32).read_pairs()
    assert list(theirs.captions) == list(ours.captions)
    assert list(theirs.splits) == list(ours.splits)
    assert list(theirs.families) == list(ours.families)
    assert [(one.pair, one.caption, one.kind) for one in theirs.made] == [
        (one.pair, one.caption, one.kind) for one in ours.made
    ]
    for mine, yours in zip(ours.pictures[:3], theirs.pictures[:3], strict=True):
        assert torch.equal(ours.read(mine), theirs.read(yours))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"families": 0}, "families=0"),
        ({"families": 2000}, "meanings for 4,000 pairs"),
        ({"size": 8}, "16 pixels at least"),
    ],
)
def test_mistakes(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DiagramsData(**options)
