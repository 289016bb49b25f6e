"""Pairs of views of a place as public sets keep them: CVUSA, CVACT, VIGOR, University-1652, and tables of your own.

A layout is a class whose ``read`` gives `GeoPairs`; a set of another layout needs no more than such a class.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.image_files import Files, decode, is_picture, open_files
from datamodules.readers import Place, expand, read_lines, read_records, text_field
from miners.places import Places, Units, what_is_wrong
from miners.ragged import Ragged

log = logging.getLogger(__name__)

Size = tuple[int, int]
MOSAICS = 16  # pictures that tiles are cut from, which a process keeps unpacked
FEWER = "Set skip_missing: true to leave such out and count them."


@dataclass
class Views:
    """N pictures of one kind of view.

    Args:
        files: where their bytes are.
        names: N names in ``files``.
        boxes: (N, 4) left, top, width and height in pixels: each picture is a part of the one that it names. None =
            the whole picture.
    """

    files: Files
    names: tuple[str, ...]
    boxes: Tensor | None = None
    _unpacked: dict[tuple[str, int], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def titles(self) -> tuple[str, ...]:
        """What a report calls each; unique where pictures are."""
        if self.boxes is None:
            return self.names
        return tuple(f"{name}@{left},{top}" for name, (left, top, _, _) in zip(self.names, self.boxes.tolist()))

    def picture(self, row: int, channels: int, size: Size) -> Tensor:
        """(C, H, W) uint8 of ``size`` = (height, width).

        Raises:
            FileNotFoundError, ValueError: it is not there, is no picture, or the box leads out of it; names it.
        """
        name = self.names[row]
        said = f"{self.files}: '{name}'"
        if self.boxes is None:
            return decode(self.files.read(name), said, channels, size)
        if (name, channels) not in self._unpacked:
            while len(self._unpacked) >= MOSAICS:
                del self._unpacked[next(iter(self._unpacked))]
            self._unpacked[name, channels] = decode(self.files.read(name), said, channels)
        whole = self._unpacked[name, channels]
        left, top, width, height = self.boxes[row].tolist()
        if left < 0 or top < 0 or left + width > whole.shape[2] or top + height > whole.shape[1]:
            raise ValueError(
                f"{said} has {whole.shape[2]} x {whole.shape[1]} pixels, and the tile at {left},{top} of {width} x "
                f"{height} leads out of it."
            )
        tile = whole[:, top : top + height, left : left + width]
        if (height, width) == size:
            return tile.clone()
        resized = torch.nn.functional.interpolate(tile[None].float(), size, mode="bicubic", antialias=True)
        return resized[0].round().clamp(0, 255).to(torch.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_unpacked": {}}  # a worker unpacks its own


@dataclass(frozen=True)
class GeoPairs:
    """Q queries, M references, and who belongs to whom.

    Args:
        queries, references: pictures.
        positives: Q lists of the right references, none empty.
        semi_positives: Q lists of references that are neither right nor wrong: they show a part of the place.
        query_places, reference_places: where they are; None = nobody knows.
        skipped: how many were left out since a picture of theirs is missing.
    """

    queries: Views
    references: Views
    positives: Ragged
    semi_positives: Ragged
    query_places: Places | None = None
    reference_places: Places | None = None
    skipped: int = 0

    @property
    def distractors(self) -> int:
        """References that are nobody's positive."""
        return len(self.references) - len(self.positives.values.unique())


class GeoLayout(ABC):
    """Where a split of a set lies, and how it is read."""

    @abstractmethod
    def read(self) -> GeoPairs:
        """Find the pictures of the split; none is unpacked yet.

        Raises:
            FileNotFoundError: a folder, a list or a picture that is not there.
            ValueError: lists that are wrong, coordinates out of range, queries without a reference; names the place.
        """


class CVUSA(GeoLayout):
    """CVUSA: street panoramas and satellite tiles of 44,416 places all over the USA, one of each.

    Reads ``splits/train-19zl.csv`` and ``val-19zl.csv`` (satellite, panorama, annotation), and the panoramas' positions
    from ``split_locations/all.csv`` where that is there (satellite's and panorama's latitude and longitude; the line is
    the number in a tile's name).

    Args:
        folder: of the set.
        split: "train" or "val".
        skip_missing: leave pairs out whose pictures are not there, and count them.

    Source:
        Workman et al., ICCV 2015; the subset of Zhai et al., CVPR 2017.
    """

    def __init__(self, folder: str, split: Literal["train", "val"] = "train", skip_missing: bool = False) -> None:
        self.folder, self.split, self.skip_missing = folder, split, skip_missing

    def read(self) -> GeoPairs:
        folder = _folder(self.folder)
        pairs = _Pairs(open_files(folder), self.skip_missing)
        places = _lines(folder / "split_locations" / "all.csv") if (folder / "split_locations").is_dir() else None
        for place, line in _lines(folder / "splits" / f"{self.split}-19zl.csv"):
            columns = [column.strip() for column in line.split(",")]
            if len(columns) < 2:
                raise ValueError(f"{place}: wants satellite, panorama, annotation; got '{line}'.")
            where = None
            if places is not None:
                number = _number_of(place, columns[0])
                if not 1 <= number <= len(places):
                    raise ValueError(f"{place}: split_locations/all.csv has {len(places)} lines, and no {number}.")
                at, said = places[number - 1]
                where = _coordinates(at, said.split(",")[2:4], "degrees")
            pairs.add(place, columns[1], columns[0], where, where)
        return pairs.done("degrees")


class CVACT(GeoLayout):
    """CVACT: street panoramas and satellite tiles of Canberra, with positions in metres (UTM).

    Reads ``ACT_data.mat`` and the folders ``ANU_data_small`` and ``ANU_data_test``.

    Args:
        folder: of the set.
        split: "train", "val" (8,884 pairs), or "test" (all 92,802 pairs of ANU_data_test).
        skip_missing: leave pairs out whose pictures are not there (the published set lacks some), and count them.

    Source:
        Liu and Li, arXiv 1903.12351.
    """

    def __init__(
        self, folder: str, split: Literal["train", "val", "test"] = "train", skip_missing: bool = False
    ) -> None:
        self.folder, self.split, self.skip_missing = folder, split, skip_missing

    def read(self) -> GeoPairs:
        folder = _folder(self.folder)
        pictures = folder / ("ANU_data_test" if self.split == "test" else "ANU_data_small")
        files, table = open_files(_folder(pictures)), folder / "ACT_data.mat"
        names, positions, chosen = self._matlab(table)
        if self.split == "test":
            ground = [name.split("/")[-1].removesuffix("_grdView.jpg") for name in files.names() if "_grdView" in name]
            at = {name: row for row, name in enumerate(names)}
            chosen = [(name, at.get(name)) for name in ground]
        pairs = _Pairs(files, self.skip_missing)
        for number, (name, row) in enumerate(chosen):
            place = Place(table, number, f"{self.split} pair")
            where = None if row is None else _coordinates(place, positions[row], "metres")
            views = f"streetview/{name}_grdView.jpg", f"satview_polish/{name}_satView_polish.jpg"
            pairs.add(place, *views, where, where)
        return pairs.done("metres")

    def _matlab(self, file: Path) -> tuple[list[str], Any, list[tuple[str, int | None]]]:
        """Names, positions (N, 2) and the (name, row) of the split."""
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError

        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist. Wanted: CVACT's table of names, positions and splits.")
        try:
            table = loadmat(file, variable_names=["panoIds", "utm", f"{self.split}Set"])
            names = [str(np.asarray(name).squeeze()) for name in np.asarray(table["panoIds"]).reshape(-1)]
            positions = np.asarray(table["utm"], dtype=np.float64)[:, :2]
            rows = [] if self.split == "test" else table[f"{self.split}Set"][0][0][1].reshape(-1).astype(np.int64) - 1
        except (KeyError, IndexError, TypeError, ValueError, NotImplementedError, MatReadError) as error:
            raise ValueError(f"{file}: is no table with panoIds, utm, trainSet and valSet ({error}).") from None
        if len(positions) != len(names) or any(not 0 <= row < len(names) for row in rows):
            raise ValueError(f"{file}: {len(names)} names, {len(positions)} positions, and a split of other rows.")
        return names, positions, [(names[row], int(row)) for row in rows]


class VIGOR(GeoLayout):
    """VIGOR: panoramas of four cities that lie anywhere in a satellite tile; three more tiles overlap with each.

    Those three are semi-positives: no negatives in training, wrong in R@k, and left out of the hit rate. In a test,
    all tiles of the cities are references, those that are nobody's too.

    Reads ``splits/CITY/satellite_list.txt``, ``same_area_balanced_{train,test}.txt`` and ``pano_label_balanced.txt``;
    pictures in ``ground/CITY`` and ``satellite/CITY``, or in ``CITY/panorama`` and ``CITY/satellite``. Positions are in
    the names of the files.

    Args:
        folder: of the set.
        split: "train" or "test".
        area: "same": all four cities on both sides; "cross": New York and Seattle against San Francisco and Chicago.
        splits: folder of the lists: "splits", or that of the corrected ones.
        skip_missing: leave queries out whose pictures are not there, and count them.

    Source:
        Zhu et al., arXiv 2011.12172.
    """

    CITIES: Mapping[tuple[str, str], Sequence[str]] = {
        ("same", "train"): ("Chicago", "NewYork", "SanFrancisco", "Seattle"),
        ("same", "test"): ("Chicago", "NewYork", "SanFrancisco", "Seattle"),
        ("cross", "train"): ("NewYork", "Seattle"),
        ("cross", "test"): ("Chicago", "SanFrancisco"),
    }

    def __init__(
        self,
        folder: str,
        split: Literal["train", "test"] = "train",
        area: Literal["same", "cross"] = "same",
        splits: str = "splits",
        skip_missing: bool = False,
    ) -> None:
        self.folder, self.split, self.area, self.splits = folder, split, area, splits
        self.skip_missing = skip_missing

    def read(self) -> GeoPairs:
        folder = _folder(self.folder)
        pairs = _Pairs(open_files(folder), self.skip_missing)
        cities = self.CITIES[self.area, self.split]
        by_view = (folder / "ground").is_dir()
        ground, sky = ("ground/{}/", "satellite/{}/") if by_view else ("{}/panorama/", "{}/satellite/")
        list_name = "pano_label_balanced.txt" if self.area == "cross" else f"same_area_balanced_{self.split}.txt"
        for city in cities:
            lists = folder / self.splits / city
            tiles = {line.split()[0] for _, line in _lines(lists / "satellite_list.txt")}
            for place, line in _lines(lists / list_name):
                words = line.split()
                if len(words) < 11:
                    raise ValueError(f"{place}: wants a panorama and four tiles with two offsets each, got '{line}'.")
                right, *near = words[1:11:3]
                if right not in tiles:
                    raise ValueError(f"{place}: satellite_list.txt of {city} has no tile '{right}'.")
                pairs.add(
                    place,
                    ground.format(city) + words[0],
                    sky.format(city) + right,
                    _named_place(place, words[0].split(",")[1:3]),
                    self._tile_place(place, right),
                    [sky.format(city) + name for name in near],
                )
            if self.split == "test":
                for tile in sorted(tiles):
                    place = Place(lists / "satellite_list.txt", 0)
                    pairs.reference(place, sky.format(city) + tile, self._tile_place(place, tile))
        return pairs.done("degrees")

    @staticmethod
    def _tile_place(place: Place, name: str) -> list[float] | None:
        return _named_place(place, name.rsplit(".", 1)[0].split("_")[1:3])


class University1652(GeoLayout):
    """University-1652: 54 views of a drone and one of a satellite, of each of 1,652 buildings.

    In training, each view of the drone makes a row with its building's tile. In a test, buildings of the gallery that
    nobody asks for are distractors, and count.

    Args:
        folder: of the set, with ``train`` and ``test``.
        split: "train" or "test".
        query: "drone": which tile does a drone see (drone -> satellite); "satellite": which views show it.
        skip_missing: leave buildings out that have one kind of view only, and count them.

    Source:
        Zheng et al., arXiv 2002.12186.
    """

    def __init__(
        self,
        folder: str,
        split: Literal["train", "test"] = "train",
        query: Literal["drone", "satellite"] = "drone",
        skip_missing: bool = False,
    ) -> None:
        self.folder, self.split, self.query, self.skip_missing = folder, split, query, skip_missing

    def read(self) -> GeoPairs:
        other = "satellite" if self.query == "drone" else "drone"
        training = self.split == "train"
        folder = _folder(self.folder) / self.split
        sides = [self.query, other] if training else [f"query_{self.query}", f"gallery_{other}"]
        files = open_files(_folder(folder))
        asked: dict[str, list[str]] = {}  # building -> pictures
        gallery: dict[str, list[str]] = {}
        for name in files.names():
            side, building, *_ = (*name.split("/"), "")
            if side in sides:
                (asked if side == sides[0] else gallery).setdefault(building, []).append(name)
        for side, found in zip(sides, (asked, gallery), strict=True):
            if not found:
                raise FileNotFoundError(f"{folder / side}: holds no pictures in folders of buildings.")
        lonely = sorted(set(asked) ^ set(gallery)) if training else sorted(set(asked) - set(gallery))
        if lonely and not self.skip_missing:
            there = sides[0] if lonely[0] in asked else sides[1]
            raise ValueError(
                f"{folder}: building '{lonely[0]}' has pictures in {there} alone ({len(lonely)} such): a place with "
                f"one kind of view belongs to nothing. {FEWER}"
            )
        kept = {building: views for building, views in gallery.items() if not training or building in asked}
        references = [name for building in sorted(kept) for name in kept[building]]
        of_building: dict[str, list[int]] = {}
        for row, name in enumerate(references):
            of_building.setdefault(name.split("/")[1], []).append(row)
        queries = [name for building in sorted(asked) if building in gallery for name in asked[building]]
        return GeoPairs(
            Views(files, tuple(queries)),
            Views(files, tuple(references)),
            Ragged.from_lists(of_building[name.split("/")[1]] for name in queries),
            Ragged.empty(len(queries)),
            skipped=len(lonely),
        )


class PairsTable(GeoLayout):
    """A table of pairs: a row for each query and a reference that shows its place.

    A query that stands in several rows has several right references; a reference may serve several queries.

    Args:
        table: .csv, .tsv, .jsonl or .parquet.
        query, reference: name of the picture, made of columns in braces: "{query}", "ground/{id}.jpg".
        images: folder or .zip of the pictures, relative to the table; null = the table's own folder.
        where: which rows, by columns: {split: [train]}; null = all.
        position: columns of the place: [latitude, longitude], or metres such as [east, north]; null = no positions.
        reference_position: columns of the reference's place, where that is not the query's; null = ``position``.
        units: "degrees" or "metres".
        area: column with the name of the area, where positions of two areas have nothing to do with each other.
        tile: pictures are parts of larger ones: so many pixels wide and high, with their upper left corner in
            ``corner``; null = whole pictures.
        corner: columns of the corner.
        semi_positive_metres: references nearer than this to the right one are neither right nor wrong (overlapping
            tiles); null = none are.
        skip_missing: leave rows out whose pictures are not there, and count them.

    Raises:
        ValueError: in ``read``, a picture with other coordinates than in a row before.
    """

    def __init__(
        self,
        table: str,
        query: str = "{query}",
        reference: str = "{reference}",
        images: str | None = None,
        where: dict[str, list[str | int]] | None = None,
        position: Sequence[str] | None = ("latitude", "longitude"),
        units: Units = "degrees",
        area: str | None = None,
        tile: int | None = None,
        corner: tuple[str, str] = ("px", "py"),
        semi_positive_metres: float | None = None,
        skip_missing: bool = False,
        reference_position: Sequence[str] | None = None,
    ) -> None:
        self.table, self.query, self.reference, self.images, self.where = table, query, reference, images, where
        self.position, self.units, self.area = position, units, area
        self.reference_position = position if reference_position is None else reference_position
        self.tile, self.corner, self.semi_positive_metres = tile, corner, semi_positive_metres
        self.skip_missing = skip_missing
        if semi_positive_metres is not None and (position is None or semi_positive_metres <= 0):
            raise ValueError(
                f"PairsTable(semi_positive_metres={semi_positive_metres}): a distance above 0, between positions."
            )

    def read(self) -> GeoPairs:
        table = expand(self.table)
        pairs = _Pairs(_images(table, self.images), self.skip_missing)
        for place, record in _chosen(table, self.where):
            sides = (self.position, self.reference_position)
            here, there = (_where(place, record, columns, self.units) for columns in sides)
            box = None
            if self.tile is not None:
                left, top = (int(_number(place, record, column)) for column in self.corner)
                box = (left, top, self.tile, self.tile)
            area = None if self.area is None else text_field(place, record, self.area)
            query, reference = (_filled(place, record, pattern) for pattern in (self.query, self.reference))
            pairs.add(place, query, reference, here, there, (), box, area)
        found = pairs.done(self.units)
        return found if self.semi_positive_metres is None else _with_near(found, self.semi_positive_metres)


class PlacesTable(GeoLayout):
    """A table of pictures with positions; a query's right references are those within a radius (place recognition).

    A picture that is a query and a reference (the same rows on both sides) is neither right nor wrong for itself: then
    "hit_rate" is the measure to look at, which leaves it out of the gallery.

    Args:
        table: .csv, .tsv, .jsonl or .parquet.
        queries, references: which rows are which, by columns: {split: [query]}, {split: [gallery]}.
        radius: metres within which a reference is right.
        name: name of the picture, made of columns in braces.
        images, where, position, units, area: as in `PairsTable`.
        semi_positive_metres: references beyond ``radius`` and nearer than this are neither right nor wrong.
        skip_missing: leave queries out that have no reference within the radius, and pictures that are not there; and
            count them.
    """

    def __init__(
        self,
        table: str,
        queries: dict[str, list[str | int]],
        references: dict[str, list[str | int]],
        radius: float = 25.0,
        name: str = "{file}",
        images: str | None = None,
        where: dict[str, list[str | int]] | None = None,
        position: Sequence[str] = ("latitude", "longitude"),
        units: Units = "degrees",
        area: str | None = None,
        semi_positive_metres: float | None = None,
        skip_missing: bool = False,
    ) -> None:
        self.table, self.queries, self.references, self.radius, self.name = table, queries, references, radius, name
        self.images, self.where, self.position, self.units, self.area = images, where, position, units, area
        self.semi_positive_metres, self.skip_missing = semi_positive_metres, skip_missing
        if radius <= 0 or (semi_positive_metres is not None and semi_positive_metres <= radius):
            raise ValueError(
                f"PlacesTable(radius={radius}, semi_positive_metres={semi_positive_metres}): above 0, and the second "
                "wider than the first."
            )

    def read(self) -> GeoPairs:
        table = expand(self.table)
        files = _images(table, self.images)
        there, skipped = set(files.names()), 0
        sides: dict[str, list[tuple[Place, str, list[float], str]]] = {"queries": [], "references": []}
        for place, record in _chosen(table, self.where):
            for side, conditions in (("queries", self.queries), ("references", self.references)):
                if _meets(place, record, conditions):
                    name = _filled(place, record, self.name)
                    if name not in there:
                        if not self.skip_missing:
                            raise FileNotFoundError(f"{place}: {files} holds no '{name}'. {FEWER}")
                        skipped += 1
                        continue
                    area = "" if self.area is None else text_field(place, record, self.area)
                    at = _where(place, record, self.position, self.units)
                    assert at is not None
                    sides[side].append((place, name, at, area))
        for side, found in sides.items():
            if not found:
                raise ValueError(f"{table}: no row is among the {side}. Set its conditions to some that rows meet.")
        areas = {area: code for code, area in enumerate(sorted({row[3] for found in sides.values() for row in found}))}
        query_places, reference_places = (
            Places(
                torch.tensor([row[2] for row in sides[side]], dtype=torch.float64),
                self.units,
                None if self.area is None else torch.tensor([areas[row[3]] for row in sides[side]]),
            )
            for side in ("queries", "references")
        )
        own = _of_one_name(*([row[1] for row in sides[side]] for side in ("queries", "references")))
        positives = _without(_within(query_places, reference_places, self.radius), own)
        lonely = (positives.lengths == 0).nonzero()[:, 0].tolist()
        if lonely and not self.skip_missing:
            place, name, *_ = sides["queries"][lonely[0]]
            raise ValueError(
                f"{place}: no reference lies within {self.radius:g} m of '{name}' ({len(lonely)} such queries): a "
                f"place with one picture belongs to nothing. Set a wider radius. {FEWER}"
            )
        kept = (positives.lengths > 0).nonzero()[:, 0]
        near = own
        if self.semi_positive_metres is not None:
            wider = _within(query_places, reference_places, self.semi_positive_metres)
            near = own.joined(_without(wider, own.joined(positives)))
        return GeoPairs(
            Views(files, tuple(sides["queries"][row][1] for row in kept.tolist())),
            Views(files, tuple(row[1] for row in sides["references"])),
            positives.select(kept),
            near.select(kept),
            query_places.take(kept),
            reference_places,
            skipped + len(lonely),
        )


# ---- parts -----------------------------------------------------------------------------------------------------------


class _Pairs:
    """Pairs as they are read, each picture once."""

    def __init__(self, files: Files, skip_missing: bool) -> None:
        self.files, self.skip_missing, self.skipped = files, skip_missing, 0
        self.there = set(files.names())
        self.names: tuple[dict[Any, int], dict[Any, int]] = ({}, {})  # (name, box) -> row, of queries and references
        self.places: tuple[list[Any], list[Any]] = ([], [])
        self.areas: tuple[list[str], list[str]] = ([], [])
        self.links: list[tuple[int, int]] = []
        self.near: list[tuple[int, str]] = []

    def add(
        self,
        place: Place,
        query: str,
        reference: str,
        query_place: list[float] | None,
        reference_place: list[float] | None,
        near: Iterable[str] = (),
        box: tuple[int, int, int, int] | None = None,
        area: str | None = None,
    ) -> None:
        for name in (query, reference):
            if name not in self.there or not is_picture(name):
                if not self.skip_missing:
                    raise FileNotFoundError(f"{place}: {self.files} holds no '{name}'. {FEWER}")
                self.skipped += 1
                return
        row = self._row(place, 0, (query, box), query_place, area)
        self.links.append((row, self._row(place, 1, (reference, box), reference_place, area)))
        self.near += [(row, name) for name in near]

    def reference(self, place: Place, name: str, at: list[float] | None) -> None:
        """A reference that is perhaps nobody's."""
        if name in self.there:
            self._row(place, 1, (name, None), at, None)
        elif not self.skip_missing:
            raise FileNotFoundError(f"{place.path}: {self.files} holds no '{name}'. {FEWER}")
        else:
            self.skipped += 1

    def done(self, units: Units) -> GeoPairs:
        if not self.links:
            raise ValueError(f"{self.files}: no pair of pictures is left ({self.skipped} are missing).")
        if self.skipped:
            log.warning("%s: %d pairs or pictures are missing and left out", self.files, self.skipped)
        links = torch.tensor(sorted(set(self.links)))
        known = [(row, at) for row, name in self.near if (at := self.names[1].get((name, None))) is not None]
        near = torch.tensor(sorted(set(known)), dtype=torch.long).view(-1, 2)
        queries, references = (self._views(side) for side in (0, 1))
        return GeoPairs(
            queries,
            references,
            positives := Ragged.from_pairs(links[:, 0], links[:, 1], len(queries)),
            _without(Ragged.from_pairs(near[:, 0], near[:, 1], len(queries)), positives),
            self._places(0, units),
            self._places(1, units),
            self.skipped,
        )

    def _row(self, place: Place, side: int, key: tuple[str, Any], at: list[float] | None, area: str | None) -> int:
        row = self.names[side].setdefault(key, len(self.names[side]))
        if row == len(self.places[side]):
            self.places[side].append(at)
            self.areas[side].append(area or "")
        if self.places[side][row] != at:
            raise ValueError(
                f"{place}: '{key[0]}' is at {at} here and at {self.places[side][row]} in a line before. A reference of "
                "several queries wants columns of its own: set reference_position (or position: null)."
            )
        return row

    def _views(self, side: int) -> Views:
        keys = list(self.names[side])
        boxes = None if keys[0][1] is None else torch.tensor([box for _, box in keys])
        return Views(self.files, tuple(name for name, _ in keys), boxes)

    def _places(self, side: int, units: Units) -> Places | None:
        """None where one of them is not known."""
        if any(at is None for at in self.places[side]):
            return None
        names = sorted(set(self.areas[0]) | set(self.areas[1]))
        code = torch.tensor([names.index(area) for area in self.areas[side]]) if len(names) > 1 else None
        return Places(torch.tensor(self.places[side], dtype=torch.float64), units, code)


def _with_near(pairs: GeoPairs, metres: float) -> GeoPairs:
    """References nearer than ``metres`` to a query's right one, as its semi-positives."""
    assert pairs.reference_places is not None
    of_reference = _within(pairs.reference_places, pairs.reference_places, metres, below=True)
    grown = of_reference.select(pairs.positives.values)
    rows = pairs.positives.row_of_value[grown.row_of_value]
    once = torch.stack([rows, grown.values], dim=1).unique(dim=0)
    near = _without(Ragged.from_pairs(once[:, 0], once[:, 1], len(pairs.positives)), pairs.positives)
    return GeoPairs(**{**vars(pairs), "semi_positives": near})


def _within(one: Places, other: Places, metres: float, below: bool = False) -> Ragged:
    """For each of ``one``, which of ``other`` lie within so many metres; ``below`` leaves the distance itself out."""
    from scipy.spatial import cKDTree

    both = Places(
        torch.cat([one.coordinates, other.coordinates]),
        one.units,
        None if one.areas is None or other.areas is None else torch.cat([one.areas, other.areas]),
    )
    points, limit = both.separated()
    reach = min(metres, limit) * (1 - 1e-9 if below else 1 + 1e-9)
    left, right = cKDTree(points[: len(one)].numpy()), cKDTree(points[len(one) :].numpy())
    found = left.sparse_distance_matrix(right, reach, output_type="ndarray")
    order = np.lexsort((found["j"], found["i"]))
    rows, values = (torch.from_numpy(found[side][order].astype(np.int64)) for side in ("i", "j"))
    return Ragged.from_pairs(rows, values, len(one))


def _without(lists: Ragged, others: Ragged) -> Ragged:
    """Lists without what stands in the other list of the same row."""
    if not len(lists.values):
        return lists
    most = 1 + int(torch.cat([lists.values, others.values]).max())
    rows = lists.row_of_value
    keep = ~torch.isin(rows * most + lists.values, others.row_of_value * most + others.values)
    return Ragged.from_pairs(rows[keep], lists.values[keep], len(lists))


def _of_one_name(names: Sequence[str], others: Sequence[str]) -> Ragged:
    """For each name, where it stands among the others."""
    at: dict[str, list[int]] = {}
    for row, name in enumerate(others):
        at.setdefault(name, []).append(row)
    return Ragged.from_lists(at.get(name, []) for name in names)


def _folder(path: str | Path) -> Path:
    folder = expand(path)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist. Wanted: the folder of the set.")
    return folder


def _images(table: Path, images: str | None) -> Files:
    return open_files(_folder(table.parent if images is None else table.parent / expand(images)))


def _lines(file: Path) -> list[tuple[Place, str]]:
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist. Wanted: a list of the set.")
    return [(place, line) for place, line in read_lines(file) if line.strip()]


def _chosen(table: Path, where: Mapping[str, Sequence[str | int]] | None) -> list[tuple[Place, Mapping[str, Any]]]:
    found = [(place, record) for place, record in read_records(table) if where is None or _meets(place, record, where)]
    if not found:
        raise ValueError(f"{table}: no row meets {where}.")
    return found


def _meets(place: Place, record: Mapping[str, Any], wanted: Mapping[str, Sequence[str | int]]) -> bool:
    for column, values in wanted.items():
        if column not in record:
            raise ValueError(f"{place}: no column '{column}' to choose by; there are {', '.join(map(str, record))}.")
        if str(record[column]) not in {str(value) for value in values}:
            return False
    return True


def _filled(place: Place, record: Mapping[str, Any], pattern: str) -> str:
    """A pattern with columns in braces, filled in."""

    def column(match: re.Match[str]) -> str:
        if match[1] not in record:
            raise ValueError(f"{place}: '{pattern}' wants the column '{match[1]}'; there are {', '.join(record)}.")
        return str(record[match[1]])

    return re.sub(r"\{(.+?)\}", column, pattern)


def _where(place: Place, record: Mapping[str, Any], columns: Sequence[str] | None, units: Units) -> list[float] | None:
    if columns is None:
        return None
    found = [_number(place, record, column) for column in columns]
    if (wrong := what_is_wrong(found, units)) is not None:
        raise ValueError(f"{place}: {wrong}")
    return found


def _number(place: Place, record: Mapping[str, Any], column: str) -> float:
    if column not in record:
        raise ValueError(f"{place}: has no column '{column}'; there are {', '.join(map(str, record))}.")
    try:
        return float(record[column])
    except (TypeError, ValueError):
        raise ValueError(f"{place}: column '{column}' must be a number, got '{record[column]}'.") from None


def _coordinates(place: Place, values: Sequence[Any], units: Units) -> list[float]:
    """Two numbers in range.

    Raises:
        ValueError: they are not; names the place.
    """
    try:
        found = [float(value) for value in values]
    except ValueError:
        found = []
    if len(found) != 2:
        raise ValueError(f"{place}: wants two coordinates, got '{','.join(map(str, values))}'.")
    if (wrong := what_is_wrong(found, units)) is not None:
        raise ValueError(f"{place}: {wrong}")
    return found


def _named_place(place: Place, words: Sequence[str]) -> list[float] | None:
    """Coordinates from the name of a file; None where it has none."""
    if len(words) != 2 or not all(re.fullmatch(r"-?\d+(\.\d+)?", word) for word in words):
        return None
    return _coordinates(place, words, "degrees")


def _number_of(place: Place, name: str) -> int:
    digits = Path(name).stem
    if not digits.isdigit():
        raise ValueError(f"{place}: the tile '{name}' is not named by a number.")
    return int(digits)
