"""A page of what lies nearest to evaluated pictures: their classes, and how alike they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hardneg.report.page import make_environment
from miners.transaction import write_text


@dataclass(frozen=True)
class Neighbour:
    """A training picture.

    Args:
        picture: as `thumbnail` makes it.
        name: of its file.
        label: its class.
        cosine: to the query.
        right: it is of the query's class.
    """

    picture: str
    name: str
    label: str
    cosine: float
    right: bool


@dataclass(frozen=True)
class ShownNeighbours:
    """An evaluated picture of class ``label`` that is taken for ``voted``, and training pictures, nearest first."""

    picture: str
    name: str
    label: str
    voted: str
    found: Sequence[Neighbour]


def write_neighbours(
    wrong: Sequence[ShownNeighbours],
    right: Sequence[ShownNeighbours],
    counts: tuple[int, int],
    voters: int,
    file: str | Path,
    title: str = "",
) -> Path:
    """Write a self-contained page: pictures that are taken for another class, then those that are not.

    Args:
        wrong, right: what is shown of them.
        counts: how many pictures are wrong, and right, shown or not.
        voters: how many neighbours vote; a line divides them from the rest.
        file: folders that are missing are made.
        title: one line of measures.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    groups = [
        ("Taken for another class", wrong, counts[0], "none is taken for another class"),
        ("Taken for what they are", right, counts[1], "none is taken for what it is"),
    ]
    divided = any(len(each.found) > voters for each in (*wrong, *right))
    template = make_environment().get_template("neighbours.html")
    write_text(file, template.render(groups=groups, voters=voters, divided=divided, title=title))
    return file
