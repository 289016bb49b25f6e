"""Diagrams of a few figures, drawn with their captions: each fact of a caption can be seen, and changed."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.captions import FOLDER, NEGATIVES, TABLE, Captioned, CaptionsDataBase, Made

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 119, 180), "orange": (255, 160, 30)}
RELATIONS = ("left of", "right of", "above", "below")
MOST = 4  # figures of a group
KINDS = ("number", "colour", "shape", "relation", "order")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Group:
    """So many figures of one colour and shape."""

    number: int
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.number} x {self.colour} {self.shape}"  # without a plural, which would give a changed number away


@dataclass(frozen=True)
class Diagram:
    """Two groups and how the first stands to the second; the caption says exactly that.

    Example:
        >>> str(Diagram(Group(2, "red", "circle"), "above", Group(1, "blue", "cross")))
        '2 x red circle above 1 x blue cross'
    """

    first: Group
    relation: str
    second: Group

    def __str__(self) -> str:
        return f"{self.first} {self.relation} {self.second}"

    @property
    def meaning(self) -> Diagram:
        """The same for captions that say the same: A left of B, B right of A."""
        if self.relation in ("left of", "above"):
            return self
        return Diagram(self.second, OPPOSITE[self.relation], self.first)

    def changed(self, kind: str, random: np.random.Generator) -> Diagram:
        """A diagram that differs in one fact of this kind; its caption is false of this one."""
        if kind == "relation":
            return replace(self, relation=str(random.choice([r for r in RELATIONS if r != self.relation])))
        if kind == "order":
            return replace(self, first=self.second, second=self.first)
        side = str(random.choice(["first", "second"]))
        old: Group = getattr(self, side)
        if kind == "number":
            new = replace(old, number=int(random.choice([n for n in range(1, MOST + 1) if n != old.number])))
        else:
            words = list(COLOURS if kind == "colour" else SHAPES)
            word = str(random.choice([word for word in words if word != getattr(old, kind)]))
            new = replace(old, colour=word) if kind == "colour" else replace(old, shape=word)
        return replace(self, first=new) if side == "first" else replace(self, second=new)


def random_diagram(random: np.random.Generator) -> Diagram:
    """Two groups that differ, so that every change of one fact makes another meaning."""
    while True:
        groups = [
            Group(int(random.integers(1, MOST + 1)), str(random.choice(list(COLOURS))), str(random.choice(SHAPES)))
            for _ in range(2)
        ]
        if groups[0] != groups[1]:
            return Diagram(groups[0], str(random.choice(RELATIONS)), groups[1])


def draw(diagram: Diagram, size: int, random: np.random.Generator) -> Tensor:
    """(3, size, size) uint8: each group in its half, in cells drawn at random, with places and sizes that vary."""
    from PIL import Image, ImageDraw

    sharp = 2  # drawn at twice the size, so that edges are smooth
    side = size * sharp
    picture = Image.new("RGB", (side, side), (250, 250, 250))
    pen = ImageDraw.Draw(picture)
    flat = diagram.meaning
    across = flat.relation == "left of"
    for half, group in enumerate((flat.first, flat.second)):
        for cell in random.permutation(MOST)[: group.number]:
            row, column = divmod(int(cell), 2)
            wide, high = (side / 4, side / 2) if across else (side / 2, side / 4)
            x = column * wide + (half * side / 2 if across else 0) + wide * random.uniform(0.42, 0.58)
            y = row * high + (0 if across else half * side / 2) + high * random.uniform(0.42, 0.58)
            _figure(pen, group, x, y, side / 4 * random.uniform(0.26, 0.36))
    array = np.array(picture.resize((size, size), Image.Resampling.BOX))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _figure(pen: Any, group: Group, x: float, y: float, radius: float) -> None:
    colour = COLOURS[group.colour]
    box = (x - radius, y - radius, x + radius, y + radius)
    if group.shape == "circle":
        pen.ellipse(box, fill=colour)
    elif group.shape == "square":
        pen.rectangle(tuple(c * 0.88 + m * 0.12 for c, m in zip(box, (x, y, x, y), strict=True)), fill=colour)
    elif group.shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    else:
        thin = radius * 0.34
        pen.rectangle((x - radius, y - thin, x + radius, y + thin), fill=colour)
        pen.rectangle((x - thin, y - radius, x + thin, y + radius), fill=colour)


class DiagramsData(CaptionsDataBase):
    """Diagrams, drawn when they are needed; no file is read or written.

    A family is a diagram and others that differ from it in one fact each. No two families share a meaning, within a
    split or across splits. Each training pair brings negatives along: diagrams with one fact changed, as captions and
    as pictures; none of them means what a pair of the other splits means.

    Args:
        families: of the training split.
        members: pairs of a family.
        val_families, test_families: of the other splits.
        negatives: of each pair and modality.
        size: sides of a picture in pixels.
        figure_seed: of all that is drawn; another one is another data set.
        loading: as in `CaptionsDataBase`.

    Raises:
        ValueError: numbers out of range, or more families than there are meanings for.
    """

    def __init__(
        self,
        families: int = 400,
        members: int = 4,
        val_families: int = 50,
        test_families: int = 150,
        negatives: int = 5,
        size: int = 64,
        figure_seed: int = 0,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if min(families, members, val_families, test_families) < 1 or negatives < 0:
            raise ValueError(
                f"DiagramsData(families={families}, members={members}, val_families={val_families}, "
                f"test_families={test_families}, negatives={negatives}): wants at least 1 each, and 0 negatives."
            )
        if members * (families + val_families + test_families) > 4000:
            raise ValueError("DiagramsData: there are meanings for 4,000 pairs in all. Set families or members lower.")
        if size < 16:
            raise ValueError(f"DiagramsData(size={size}): wants 16 pixels at least, to tell a circle from a square.")
        self.num_families, self.members, self.size = families, members, size
        self.val_families, self.test_families = val_families, test_families
        self.negatives, self.figure_seed = negatives, figure_seed

    def read_pairs(self) -> Captioned:
        random = np.random.default_rng(self.figure_seed)
        taken: set[Diagram] = set()
        diagrams, splits, families = [], [], []
        number = {"val": self.val_families, "test": self.test_families, "train": self.num_families}
        held_out: set[Diagram] = set()
        for split, wanted in number.items():
            if split == "train":
                held_out = set(taken)
            for family in range(wanted):
                members = self._family(random, taken)
                taken |= {one.meaning for one in members}
                diagrams += members
                splits += [split] * len(members)
                families += [f"{split} {family}"] * len(members)
        made = []
        for at, (diagram, split) in enumerate(zip(diagrams, splits, strict=True)):
            if split == "train":
                for number_, (kind, other) in enumerate(self._changes(diagram, held_out, random)):
                    made.append(Made(at, caption=str(other), kind=kind))
                    made.append(Made(at, str(other), name_of(other, 1_000_000 + at * 100 + number_), kind))
        pictures = [name_of(diagram, at) for at, diagram in enumerate(diagrams)]
        read = DiagramReader(self.size, self.figure_seed)
        return Captioned(pictures, [str(one) for one in diagrams], splits, families, read, made)

    def write(self, folder: str | Path) -> None:
        """Write all pictures and tables, as `CaptionsData` reads them."""
        from PIL import Image

        folder = Path(folder)
        (folder / FOLDER).mkdir(parents=True)
        pairs = self.read_pairs()
        names = list(dict.fromkeys([*pairs.pictures, *(one.picture for one in pairs.made if one.picture)]))
        file_of = {name: f"{at:06d}.png" for at, name in enumerate(names)}
        for name, file in file_of.items():
            Image.fromarray(pairs.read(name).permute(1, 2, 0).numpy()).save(folder / FOLDER / file)
        with (folder / TABLE).open("w", newline="") as out:
            table = csv.writer(out)
            table.writerow(("file", "caption", "split", "family"))
            for name, *rest in zip(pairs.pictures, pairs.captions, pairs.splits, pairs.families, strict=True):
                table.writerow((file_of[name], *rest))
        with (folder / NEGATIVES).open("w") as lines:
            for one in pairs.made:
                record: dict[str, Any] = {"pair": file_of[pairs.pictures[one.pair]], "kind": one.kind}
                record |= {"caption": one.caption}
                if one.picture:
                    record["file"] = file_of[one.picture]
                lines.write(json.dumps(record) + "\n")

    def _family(self, random: np.random.Generator, taken: set[Diagram]) -> list[Diagram]:
        """A diagram and changed ones, none of which has been taken."""
        for _ in range(10_000):
            members = [random_diagram(random)]
            for _ in range(20 * self.members):
                other = members[0].changed(str(random.choice(KINDS)), random)
                if other.first != other.second and other.meaning not in {one.meaning for one in members}:
                    members.append(other)
                if len(members) == self.members:
                    break
            if len(members) == self.members and not taken & {one.meaning for one in members}:
                return members
        raise ValueError("DiagramsData: no family is left whose meanings are new. Set families or members lower.")

    def _changes(
        self, diagram: Diagram, held_out: set[Diagram], random: np.random.Generator
    ) -> list[tuple[str, Diagram]]:
        """(kind, diagram) of changes to one fact: all kinds in turn, each meaning once."""
        found: dict[Diagram, str] = {}
        for attempt in range(20 * self.negatives):
            kind = KINDS[attempt % len(KINDS)]
            other = diagram.changed(kind, random)
            if other.meaning != diagram.meaning and other.meaning not in held_out | {one.meaning for one in found}:
                found[other] = kind
            if len(found) == self.negatives:
                break
        return [(kind, other) for other, kind in found.items()]


def name_of(diagram: Diagram, number: int) -> str:
    """What `DiagramReader` draws: the caption, and a number that seeds places and sizes."""
    return f"{diagram} #{number}"


@dataclass(frozen=True)
class DiagramReader:
    """Draws a picture from its name."""

    size: int
    seed: int

    def __call__(self, name: str) -> Tensor:
        caption, _, number = name.rpartition(" #")
        return draw(parse(caption), self.size, np.random.default_rng((self.seed, int(number))))


def parse(caption: str) -> Diagram:
    """The diagram that a caption describes.

    Raises:
        ValueError: a caption of another form.
    """
    for relation in RELATIONS:
        first, found, second = caption.partition(f" {relation} ")
        if found:
            groups = []
            for text in (first, second):
                number, _, words = text.partition(" x ")
                colour, _, shape = words.partition(" ")
                if not number.isdigit() or colour not in COLOURS or shape not in SHAPES:
                    break
                groups.append(Group(int(number), colour, shape))
            if len(groups) == 2:
                return Diagram(groups[0], relation, groups[1])
    raise ValueError(f"'{caption}' describes no diagram, such as '2 x red circle above 1 x blue cross'.")
