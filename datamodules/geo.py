"""Cross-view geo-localisation and place recognition: queries of one view, references of another, places for both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.faces import _hash_of
from datamodules.geo_files import GeoLayout, GeoPairs, Size, Views
from datamodules.image_files import PictureView
from datamodules.rows import RowsData
from miners.base import Row, TrainingTable
from miners.draws import RowGenerator
from miners.places import Places
from miners.pool import Items
from miners.ragged import Ragged

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
QUERY, REFERENCE = "query", "document"
"""Spaces: a reference is a member of the corpus, as in every kind of retrieval."""
JOINT = 11  # stream of the numbers that pairs are mirrored and turned with
TURNED = 0.75  # share of pairs, as published: turned by 90, 180 or 270 degrees alike


@dataclass(frozen=True)
class GeoSplit:
    """What is trained on or evaluated; ids are the data module's.

    Args:
        queries, references: (Q,), (M,) ids, ascending.
        pairs: as read; rows of it are ids less the first of each space.
    """

    queries: Tensor
    references: Tensor
    pairs: GeoPairs

    @property
    def positives(self) -> Ragged:
        """Q lists of ids of right references."""
        return self._as_ids(self.pairs.positives)

    @property
    def semi_positives(self) -> Ragged:
        """Q lists of ids of references that are neither right nor wrong."""
        return self._as_ids(self.pairs.semi_positives)

    def _as_ids(self, lists: Ragged) -> Ragged:
        return Ragged(lists.offsets, self.references[lists.values])


class GeoData(RowsData):
    """Train on pairs of views of places, and evaluate on others.

    A row is a query with its right references, of which one is drawn each epoch. Semi-positives are in ``known``: no
    miner makes a negative of them.

    Args:
        train: what is trained on: a layout of `datamodules.geo_files`, or one of your own; null = nothing.
        val: what is evaluated during training; null = nothing.
        test: what ``hardneg test`` evaluates; null = nothing.
        size: sides in pixels of a query, or [height, width]: [140, 768] for panoramas.
        reference_size: of a reference; null = the query's.
        channels: 3 = colour, 1 = grey; of both views.
        flip: mirror half of the pairs, both views of a pair together.
        turn: turn three quarters of the pairs by quarters of a circle, both views together: "both" turns both pictures
            (seen from above), "panorama" turns references and rolls queries (a panorama's middle looks where a tile's
            top is), "none" turns nothing.
        loading: batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed; see `RowsData`.

    Raises:
        ValueError: sizes below 1, or no square where pictures are turned; nothing to train on; fewer training pairs
            than a batch with drop_last.
    """

    def __init__(
        self,
        train: GeoLayout | None = None,
        val: GeoLayout | None = None,
        test: GeoLayout | None = None,
        size: int | tuple[int, int] = 384,
        reference_size: int | tuple[int, int] | None = None,
        channels: int = 3,
        flip: bool = True,
        turn: Literal["none", "both", "panorama"] = "none",
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.size, self.reference_size = size, reference_size
        sizes = [_both_sides(each) for each in (size, size if reference_size is None else reference_size)]
        if min(map(min, sizes)) < 1 or channels not in (1, 3):
            raise ValueError(
                f"GeoData(size={size}, reference_size={reference_size}, channels={channels}): sides of 1 pixel at "
                "least, and 1 or 3 channels."
            )
        if turn not in ("none", "both", "panorama"):
            raise ValueError(f"GeoData(turn='{turn}'): wants 'none', 'both' or 'panorama'.")
        for name, (height, width) in zip(("size", "reference_size"), sizes, strict=True):
            if height != width and (turn == "both" or (turn == "panorama" and name == "reference_size")):
                raise ValueError(
                    f"GeoData(turn='{turn}', {name}={[height, width]}): what is turned by a quarter is a square. Set a "
                    f"square data.init_args.{name}, or turn: none."
                )
        for source in self.sources:
            if source.space != REFERENCE:
                raise ValueError(
                    f"{type(source).__name__} draws from the space '{source.space}', but the negatives of GeoData are "
                    f"references, whose space is '{REFERENCE}'."
                )
        self.train, self.val, self.test = train, val, test
        self.sizes: dict[str, Size] = dict(zip((QUERY, REFERENCE), sizes, strict=True))
        self.channels, self.flip, self.turn = channels, flip, turn
        self.val_split: str | None = "val" if val else None
        self.test_split: str | None = "test" if test else None
        self._splits: dict[str, GeoSplit] = {}  # those that were asked for, with rising ids
        self._names: dict[str, list[str]] = {QUERY: [], REFERENCE: []}

    # What Lightning calls

    def setup(self, stage: str) -> None:
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, SPLITS)
        for name in wanted:
            if getattr(self, name) is not None:
                self.split(name)
        if stage == "fit" and self.batches is None:
            split = self.split("train")
            if self.drop_last and len(split.queries) < self.batch_size:
                raise ValueError(
                    f"{self}: {len(split.queries)} training pairs are fewer than a batch, and drop_last leaves them "
                    "out. Set data.init_args.batch_size lower."
                )
            positives, semi = split.positives, split.semi_positives
            self._known = positives.joined(semi)
            table = TrainingTable(
                split.queries,
                positives,
                anchor_names=self.names(QUERY),
                document_names=self.names(REFERENCE),
                document_places=_behind(int(split.references[0]), split.pairs.reference_places),
                semi_positives=semi if len(semi.values) else None,
            )
            self.start(table, self.sources)
            log.info("%s: %d pairs to train on", self, len(table))

    def collate_rows(self) -> CollatePairs:
        return CollatePairs(self, self.table, self._known, bool(self._training().sources))

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Queries of the validation split, as batches with the side "query"; none without a split."""
        return [] if self.val_split is None else self.pictures_of(self.split("val").queries, QUERY)

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Queries of the test split, as batches with the side "query"; none without a split."""
        return [] if self.test_split is None else self.pictures_of(self.split("test").queries, QUERY)

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """All queries, then all references."""
        return [self.pictures_of(torch.arange(len(self.names(space))), space) for space in (QUERY, REFERENCE)]

    # What modules, callbacks and reports ask for

    def pictures_of(self, ids: Tensor, space: str) -> DataLoader[Batch]:
        """Pictures of a space as batches with one side, decoded by workers."""
        return self._loader(ids.tolist(), CollateViews(self, space), batch_size=self.eval_batch_size)

    def split(self, name: str) -> GeoSplit:
        """What is trained on ("train") or evaluated ("val", "test"), read once.

        Raises:
            ValueError: a split that is not there.
        """
        if name not in self._splits:
            layout = getattr(self, name) if name in SPLITS else None
            if layout is None:
                raise ValueError(f"{self} has no split '{name}'. Set data.init_args.{name}.")
            self._splits[name] = self._read(name, layout)
        return self._splits[name]

    def picture(self, row: int, space: str) -> Tensor:
        """(C, H, W) uint8 of an id of a space."""
        for split in reversed(self._splits.values()):
            ids, views = _of_space(split, space)
            if len(ids) and row >= int(ids[0]):
                return views.picture(row - int(ids[0]), self.channels, self.sizes[space])
        raise IndexError(f"{self} has no {space} {row}.")

    def depict(self, i: int, space: str) -> Tensor:
        """As `picture`."""
        return self.picture(i, space)

    def view(self, ids: Tensor, space: str) -> PictureView:
        """Pictures as a sequence that is decoded when it is read."""
        return PictureView(partial(self.picture, space=space), ids)

    def everything(self, space: str) -> tuple[Tensor, PictureView]:
        """What training meets: ids and pictures of its queries, or of the references that belong to them."""
        split = self.split("train")
        ids = split.queries if space == QUERY else split.positives.values.unique()
        return ids, self.view(ids, space)

    def names(self, space: str) -> Sequence[str]:
        """What a report calls each picture; position = id."""
        return self._names[space]

    def text_of(self, ids: Tensor | Sequence[int], space: str) -> list[str]:
        """Names of pictures, for people."""
        return [self._names[space][i] for i in torch.as_tensor(ids).tolist()]

    def queries(self, split: str) -> tuple[Tensor, Sequence[str]]:
        """Queries of a split, and their names."""
        ids = self.split(split).queries
        return ids, self.text_of(ids, QUERY)

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """For each query by name, its right references."""
        found = self.split(split)
        names = self._names[REFERENCE]
        return {
            query: {names[i]: 1 for i in right}
            for query, right in zip(self.queries(split)[1], found.positives.to_lists(), strict=True)
        }

    def __str__(self) -> str:
        layout = self.train or self.val or self.test
        where = getattr(layout, "folder", None) or getattr(layout, "table", "")
        return f"GeoData({type(layout).__name__ if layout else ''}{f' {where}' if where else ''})"

    # Inside

    def _read(self, name: str, layout: GeoLayout) -> GeoSplit:
        pairs = layout.read()
        ids = {}
        for space, views in ((QUERY, pairs.queries), (REFERENCE, pairs.references)):
            names = self._names[space]
            ids[space] = torch.arange(len(names), len(names) + len(views))
            # a picture may be in two splits (a gallery): names tell its two ids apart
            names += [f"{name}/{title}" for title in views.titles]
        log.info(
            "%s, split '%s': %d queries, %d references (%d of them nobody's), %d left out",
            self,
            name,
            len(pairs.queries),
            len(pairs.references),
            pairs.distractors,
            pairs.skipped,
        )
        return GeoSplit(ids[QUERY], ids[REFERENCE], pairs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"batches": None}  # a worker decodes; who meets whom is the main process' business


class CollateViews:
    """Turn ids of a space into a `Batch` with that side, for encoding alone."""

    def __init__(self, data: GeoData, space: str) -> None:
        self.data, self.space = data, space

    def __call__(self, rows: Sequence[int]) -> Batch:
        ids = torch.tensor(rows)
        items = Items(ids=ids, space=self.space)
        pictures = self.data.view(ids, self.space)[:]
        return Batch({self.space: pictures}, {self.space: items}, Ragged.empty(len(ids)), ids)


class CollatePairs:
    """Turn B `Row` into a `Batch` with the sides "query", "document" and, where there are sources, "drawn"."""

    def __init__(self, data: GeoData, table: TrainingTable, known: Ragged, drawn: bool) -> None:
        self.data, self.anchors, self.known, self.drawn = data, table.anchors, known, drawn

    def __call__(self, rows: Sequence[Row]) -> Batch:
        index = torch.tensor([row.index for row in rows])
        ids = {QUERY: self.anchors[index], REFERENCE: torch.tensor([row.positive for row in rows])}
        pictures = {space: self.data.view(of, space)[:] for space, of in ids.items()}
        items = {space: Items(ids=of, content=_content(pictures[space]), space=space) for space, of in ids.items()}
        pictures[QUERY], pictures[REFERENCE] = moved_together(
            pictures[QUERY],
            pictures[REFERENCE],
            RowGenerator(self.data.seed, rows[0].epoch, JOINT).uniform(index, 2),
            self.data.flip,
            self.data.turn,
        )
        if self.drawn:
            drawn = torch.tensor([negative for row in rows for negative in row.negatives], dtype=torch.long)
            lengths = torch.tensor([len(row.negatives) for row in rows])
            shape = (0, *pictures[REFERENCE].shape[1:])
            found = self.data.view(drawn, REFERENCE)[:] if len(drawn) else torch.zeros(shape, dtype=torch.uint8)
            owner = torch.arange(len(rows)).repeat_interleave(lengths)
            pictures["drawn"] = found
            items["drawn"] = Items(ids=drawn, content=_content(found), space=REFERENCE, rows=owner)
        return Batch(pictures, items, self.known.select(index), index)


def moved_together(
    queries: Tensor, references: Tensor, numbers: Tensor, flip: bool, turn: Literal["none", "both", "panorama"]
) -> tuple[Tensor, Tensor]:
    """Pairs of pictures, mirrored and turned as ``numbers`` (B, 2) in [0, 1) say; both views of a pair alike.

    Args:
        queries, references: (B, C, H, W); those that are turned are squares.
        flip: mirror those whose first number is below a half.
        turn: those whose second number is below 0.75, by a quarter for each 0.25 of it.

    Raises:
        ValueError: pictures to be turned that are no squares.

    Source:
        Sample4Geo's code: the tile is turned by r quarters against the clock, the panorama rolled by -r / 4 of it.
    """
    if flip:
        mirror = (numbers[:, 0] < 0.5)[:, None, None, None]
        queries, references = (torch.where(mirror, of.flip(-1), of) for of in (queries, references))
    if turn == "none":
        return queries, references
    for name, of in (("query", queries), ("reference", references)):
        if of.shape[2] != of.shape[3] and (turn == "both" or name == "reference"):
            raise ValueError(
                f"a {name} of {of.shape[2]} x {of.shape[3]} pixels cannot be turned by a quarter: set a square size, "
                "or data.init_args.turn: none."
            )
    quarters = torch.where(numbers[:, 1] < TURNED, 1 + (4 * numbers[:, 1]).long(), 0)
    queries, references = queries.clone(), references.clone()
    for r in (1, 2, 3):
        chosen = quarters == r
        references[chosen] = references[chosen].rot90(r, (2, 3))
        if turn == "both":
            queries[chosen] = queries[chosen].rot90(r, (2, 3))
        else:
            queries[chosen] = queries[chosen].roll(-(queries.shape[3] // 4) * r, 3)
    return queries, references


def _of_space(split: GeoSplit, space: str) -> tuple[Tensor, Views]:
    if space == QUERY:
        return split.queries, split.pairs.queries
    return split.references, split.pairs.references


def places_of(split: GeoSplit) -> tuple[Places, Places] | None:
    """Where the queries and the references of a split are; None where nobody knows of both."""
    pairs = split.pairs
    if pairs.query_places is None or pairs.reference_places is None:
        return None
    return pairs.query_places, pairs.reference_places


def _behind(first: int, places: Places | None) -> Places | None:
    """Places by id, where the first id is not 0: what is before it is asked for by nobody."""
    if places is None or first == 0:
        return places
    areas = None if places.areas is None else torch.nn.functional.pad(places.areas, (first, 0))
    return Places(torch.nn.functional.pad(places.coordinates, (0, 0, first, 0)), places.units, areas)


def _content(pictures: Tensor) -> Tensor:
    return torch.tensor([_hash_of(picture) for picture in pictures], dtype=torch.long)


def _both_sides(size: int | Sequence[int]) -> Size:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
