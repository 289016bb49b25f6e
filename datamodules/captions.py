"""Pictures with captions, families of minimal pairs, and negatives of both that were made."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.image_files import ARCHIVE, FOLDER, TABLE, decode, open_files
from datamodules.readers import expand, read_records, text_field
from datamodules.rows import RowsData
from datamodules.texts import content_hash, normalise
from miners.base import Edit, Row, TrainingTable
from miners.pool import Items
from miners.ragged import Ragged

log = logging.getLogger(__name__)

NEGATIVES = "negatives.jsonl"
SPLITS = ("train", "val", "test")
UNKNOWN = -1


class Made(NamedTuple):
    """A negative of the pair that stands at ``pair``: a caption, or a picture by name with what it shows, if known."""

    pair: int
    caption: str | None = None
    picture: str | None = None
    kind: str = "given"


@dataclass(frozen=True)
class Captioned:
    """N pairs of a picture and a caption, each true.

    Args:
        pictures: names, one per pair; a picture may have several captions.
        captions: one per pair.
        splits: "train", "val" or "test", one per pair.
        families: one per pair; "" = ordinary. Pairs of a family differ from each other in little.
        read: a picture by name -> (C, H, W) uint8, all of one size.
        made: negatives that come along.
    """

    pictures: Sequence[str]
    captions: Sequence[str]
    splits: Sequence[str]
    families: Sequence[str]
    read: Callable[[str], Tensor]
    made: Sequence[Made] = field(default=())


class CaptionsDataBase(RowsData):
    """Pairs of a picture and a caption. Subclasses read them; everything after that is here.

    One training row per pair. Things are numbered together: captions of all pairs first, then pictures, then what was
    made. Pictures whose one caption is the same are one thing, so that none is the other's negative; the captions of
    one picture are all its positives, and so is what says the same as one of them. Made negatives that equal (texts
    normalised, pictures pixel by pixel) what is true of their pair are left out, and counted; one that equals a true
    caption of another pair keeps that caption's id.

    Args:
        loading: batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed; see `RowsData`.
            Sources draw "caption" or "image"; a `GeneratedNegatives` without a list of its own is given one
            (`NegativeSource.take_made`).
    """

    val_split: str | None = "val"
    test_split: str | None = "test"
    train_split = "train"

    def __init__(self, **loading: Any) -> None:
        super().__init__(**loading)
        for source in self.sources:
            if source.space not in ("caption", "image"):
                raise ValueError(
                    f"{type(source).__name__} draws from the space '{source.space}'; here are 'caption' and 'image'."
                )

    @abstractmethod
    def read_pairs(self) -> Captioned:
        """Read all splits."""

    # What Lightning calls

    def setup(self, stage: str) -> None:
        if not hasattr(self, "pairs"):
            self._number(self.read_pairs())
        if stage == "fit" and self.batches is None:
            rows = self.ids("train")
            if not len(rows):
                raise ValueError(f"{self} has no pair in the split 'train'; nothing to train on.")
            for source in self.sources:
                source.take_made(self._make)
            table = TrainingTable(
                anchors=self.picture_of[rows],
                positives=true_captions(self.content[: self.num_pairs], self.picture_of).select(rows),
                anchor_content=self.content[self.picture_of[rows]],
                document_content=self.content,
                labels=self.families[rows],
                anchor_names=self.things,
                document_names=self.things,
            )
            self.start(table, self.sources)
            log.info("%s: %d training pairs, %d things made", self, len(rows), len(self.things) - self._true_things)

    def collate_rows(self) -> CollatePairs:
        spaces = {"image" if source.space == "image" else "caption" for source in self._training().sources}
        return CollatePairs(self, self.table.anchors, self.ids("train"), sorted(spaces))

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return self._pairs_loader(self.val_split)

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return self._pairs_loader(self.test_split)

    # What modules, callbacks and reports ask for

    def ids(self, split: str) -> Tensor:
        """Pairs of a split, ascending (n,)."""
        return torch.tensor([at for at, of in enumerate(self.pairs.splits) if of == split], dtype=torch.long)

    def everything(self, space: str) -> tuple[Tensor, Sequence[Any]]:
        """What training meets of a space: ids, and captions or pictures that are read when they are asked for."""
        rows = self.ids("train")
        ids = rows if space == "caption" else self.picture_of[rows].unique()
        return ids, self.take(ids, space)

    def take(self, ids: Tensor, space: str) -> Sequence[Any]:
        """Captions as a list of texts, pictures as a sequence of (C, H, W) uint8."""
        names = [self.things[i] for i in ids.tolist()]
        return PictureView(self.pairs.read, names) if space == "image" else names

    def depict(self, i: int, space: str) -> Tensor | None:
        """A picture; of "query", a pair: its own. Captions have none."""
        if space == "query":
            return self.pairs.read(self.pairs.pictures[i])
        return self.pairs.read(self.things[i]) if self.is_picture[i] else None

    def text_of(self, ids: Tensor | Sequence[int], space: str) -> list[str]:
        """Captions, or pictures' names; of "query", pairs: both."""
        names = self.names(space)
        return [names[i] for i in torch.as_tensor(ids, dtype=torch.long).tolist()]

    def names(self, space: str) -> Sequence[str]:
        """Captions and pictures' names; position = id. Of "query", pairs: both."""
        if space != "query":
            return self.things
        return [f"{name} | {text}" for name, text in zip(self.pairs.pictures, self.pairs.captions, strict=True)]

    def queries(self, split: str) -> tuple[Tensor, Sequence[str]]:
        """What is evaluated: pairs of a split (n,), and both their parts as text.

        Raises:
            ValueError: the split has no pair.
        """
        ids = self.ids(split)
        if not len(ids):
            raise ValueError(f"{self} has no pair in the split '{split}'; there is nothing to evaluate.")
        return ids, self.text_of(ids, "query")

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """For each pair of a split by name, the captions that are true of its picture: what a report calls right."""
        ids, names = self.queries(split)
        true = true_captions(self.content[: self.num_pairs], self.picture_of).select(ids).to_lists()
        return {
            name: {self.things[caption]: 1 for caption in captions} for name, captions in zip(names, true, strict=True)
        }

    def __str__(self) -> str:
        return type(self).__name__

    def _pairs_loader(self, split: str | None) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        if split is None or not len(ids := self.ids(split)):
            return []
        collate = CollatePairs(self, self.picture_of, torch.arange(self.num_pairs), ())
        return self._loader(ids.tolist(), collate, batch_size=self.eval_batch_size)

    def _number(self, pairs: Captioned) -> None:
        """Give everything true an id."""
        self.pairs = pairs
        self.num_pairs = len(pairs.captions)
        if unknown := sorted(set(pairs.splits) - set(SPLITS)):
            raise ValueError(f"{self}: split '{unknown[0]}'; wanted {', '.join(SPLITS)}.")
        pictures: dict[str, int] = {}
        for name in pairs.pictures:
            pictures.setdefault(name, self.num_pairs + len(pictures))
        self.picture_of = torch.tensor([pictures[name] for name in pairs.pictures], dtype=torch.long)
        self.things: list[str] = [*pairs.captions, *pictures]
        self._true_things = len(self.things)
        self.is_picture = torch.arange(len(self.things)) >= self.num_pairs
        captions = torch.tensor([content_hash(text) for text in pairs.captions], dtype=torch.long)
        self.content = torch.full((len(self.things),), UNKNOWN)
        self.content[: self.num_pairs] = captions
        single = torch.bincount(self.picture_of, minlength=len(self.things))[self.picture_of] == 1
        self.content[self.picture_of[single]] = captions[single]  # pictures of equal captions are one thing
        code = {name: number for number, name in enumerate(dict.fromkeys(f for f in pairs.families if f))}
        self.families = torch.tensor([code.get(name, -1) for name in pairs.families], dtype=torch.long)

    def _make(self, space: str, table: str | Path | None, edit: Edit | None) -> tuple[Ragged, Tensor, Sequence[str]]:
        """Number what a source asks for: its lists by training row, the kind of each id, and the kinds' names."""
        rows = self.ids("train")
        if edit is not None:
            captions = [self.pairs.captions[row] for row in rows.tolist()]
            made = [Made(int(rows[at]), text, None, kind) for at, text, kind in edit(captions)]
        else:
            made = list(self.pairs.made) if table is None else read_made(table, self.pairs)
        pictures = space == "image"
        made = [one for one in made if (one.picture is None) != pictures]
        if not made:
            raise ValueError(
                f"a source wants negatives of the space '{space}' that were made, and {self} brings no such negatives "
                "along. Give it a table (negatives) or, for captions, edits."
            )
        kept = self._without_equals(made)
        place = torch.full((self.num_pairs,), -1)
        place[rows] = torch.arange(len(rows))
        kept = [one for one in kept if place[one.pair] >= 0]
        if not kept:
            raise ValueError(
                f"{self}: of {len(made)} negatives of the space '{space}' none is left; all are true of their pair, or "
                "of pairs that are not trained on. Give others."
            )
        # a made caption may be true of others, whose known ones are told by their ids
        true = {} if pictures else {normalise(text): at for at, text in enumerate(self.pairs.captions)}
        things: dict[str, int] = {}
        new: dict[str, int] = {}
        for one in kept:
            name = one.picture if pictures else one.caption
            assert name is not None
            if (at := true.get(normalise(name))) is None:
                at = new.setdefault(name, len(self.things) + len(new))
            things[name] = at
        ids = torch.tensor([things[one.picture if pictures else one.caption] for one in kept], dtype=torch.long)  # type: ignore[index]
        # what a made picture shows is known where its own caption came along; else it is nobody's equal
        shown = {things[one.picture]: one.caption for one in kept} if pictures else {}  # type: ignore[index]
        texts = [shown.get(i) if pictures else text for text, i in new.items()]
        content = [UNKNOWN if text is None else content_hash(text) for text in texts]
        self.things += new
        self.is_picture = torch.cat([self.is_picture, torch.full((len(new),), pictures)])
        self.content = torch.cat([self.content, torch.tensor(content, dtype=torch.long)])
        kinds = list(dict.fromkeys(one.kind for one in kept))
        number = torch.tensor([kinds.index(one.kind) for one in kept])
        row = place[torch.tensor([one.pair for one in kept])]
        return Ragged.from_pairs(row, ids, len(rows)), Ragged.from_pairs(row, number, len(rows)).values, kinds

    def _without_equals(self, made: Sequence[Made]) -> list[Made]:
        """What is no true caption of its pair, shows none, and is none of its true pictures; each once per pair."""
        true = true_captions(self.content[: self.num_pairs], self.picture_of).to_lists()
        kept: dict[tuple[int, Any], Made] = {}
        equal = 0
        pixels: dict[str, bytes] = {}
        for one in made:
            said = None if one.caption is None else normalise(one.caption)
            is_true = said in {normalise(self.pairs.captions[at]) for at in true[one.pair]}
            mine: Any = said
            if one.picture is not None:
                mine = self._pixels(one.picture, pixels)
                is_true |= mine in {self._pixels(self.pairs.pictures[at], pixels) for at in true[one.pair]}
            if is_true:
                equal += 1
            else:
                kept.setdefault((one.pair, mine), one)
        self.dropped = {"equal": equal, "repeated": len(made) - equal - len(kept)}
        if equal or self.dropped["repeated"]:
            log.info("%s: of %d made negatives, left out %s", self, len(made), self.dropped)
        return list(kept.values())

    def _pixels(self, name: str, known: dict[str, bytes]) -> bytes:
        if name not in known:
            known[name] = blake2b(self.pairs.read(name).numpy().tobytes(), digest_size=16).digest()
        return known[name]


def _with_pictures(captions: Ragged, picture_of: Tensor) -> Ragged:
    """The lists of captions, and the pictures of these captions: what is no negative in either direction."""
    return captions.joined(Ragged(captions.offsets, picture_of[captions.values]))


def true_captions(content: Tensor, picture: Tensor) -> Ragged:
    """For each of N pairs, which of their captions say what one of its picture's captions says; sorted.

    Args:
        content: (N,) of each pair's caption; equal = the same text.
        picture: (N,) of each pair.

    Example:
        >>> true_captions(torch.tensor([5, 6, 5, 7]), torch.tensor([0, 0, 1, 2])).to_lists()
        [[0, 1, 2], [0, 1, 2], [0, 2], [3]]
    """
    number = len(content)
    texts, text = content.unique(return_inverse=True)
    pictures, picture = picture.unique(return_inverse=True)
    said = (picture * len(texts) + text).unique()  # each text of a picture once
    of_picture = Ragged.from_pairs(said // max(len(texts), 1), said % max(len(texts), 1), len(pictures)).select(picture)
    alike = Ragged.from_pairs(text, torch.arange(number), len(texts)).select(of_picture.values)
    true = (of_picture.row_of_value[alike.row_of_value] * number + alike.values).sort().values
    return Ragged.from_pairs(true // max(number, 1), true % max(number, 1), number)


class CaptionsData(CaptionsDataBase):
    """Pictures and captions from a folder.

    ``metadata.csv`` has the columns `file` and `caption`, and if you like `split` ("train", "val", "test"; all is train
    without) and `family`; pictures lie in ``images.zip``, in ``images/`` or beside the table. ``negatives.jsonl``, if
    there, has `pair` (the pair's file), `caption`, `file` or both (a picture and what it shows), and `kind`.

    Args:
        folder: path; "~" and variables such as $HARDNEG_DATA are filled in.
        size: sides that every picture is stretched to.
        channels: 3 = colour, 1 = grey.
        loading: as in `CaptionsDataBase`.

    Raises:
        FileNotFoundError: no such folder or picture; the line of the table is named.
        ValueError: a caption without text, a negative of a pair that is not there.
    """

    def __init__(self, folder: str, size: int = 224, channels: int = 3, **loading: Any) -> None:
        self.folder = folder
        super().__init__(**loading)
        if size < 1:
            raise ValueError(f"CaptionsData(size={size}): wants at least 1 pixel.")
        self.size, self.channels = size, channels

    def read_pairs(self) -> Captioned:
        folder = expand(self.folder)
        if not (folder / TABLE).exists():
            raise FileNotFoundError(f"{folder} holds no {TABLE}. Wanted: its columns file and caption.")
        files = open_files(next((folder / name for name in (ARCHIVE, FOLDER) if (folder / name).exists()), folder))
        there = set(files.names())
        columns: dict[str, list[str]] = {name: [] for name in ("file", "caption", "split", "family")}
        for place, fields in read_records(folder / TABLE):
            name, caption = text_field(place, fields, "file"), text_field(place, fields, "caption")
            if name not in there:
                raise FileNotFoundError(f"{place}: {files} holds no '{name}'.")
            if not caption.strip():
                raise ValueError(f"{place}: '{name}' has an empty caption. Remove or fill it.")
            given = (name, caption, str(fields.get("split") or "train"), str(fields.get("family") or ""))
            for column, value in zip(columns.values(), given, strict=True):
                column.append(value)
        read = PictureReader(files, self.size, self.channels)
        pairs = Captioned(columns["file"], columns["caption"], columns["split"], columns["family"], read)
        if (folder / NEGATIVES).exists():
            pairs = replace(pairs, made=read_made(folder / NEGATIVES, pairs, there))
        return pairs

    def __str__(self) -> str:
        return f"CaptionsData({self.folder})"


def read_made(path: str | Path, pairs: Captioned, there: set[str] | None = None) -> list[Made]:
    """Negatives from a table with `pair`, and `caption`, `file` or both, and `kind`; of every caption of the picture.

    Args:
        there: names of pictures that exist; None checks none.

    Raises:
        FileNotFoundError: no such table, or a picture that is not there.
        ValueError: an unknown pair, or a line with neither caption nor file; file and line are named.
    """
    places: dict[str, list[int]] = {}
    for at, name in enumerate(pairs.pictures):
        places.setdefault(name, []).append(at)
    found = []
    for place, fields in read_records(path):
        pair = text_field(place, fields, "pair")
        caption, picture = fields.get("caption") or None, fields.get("file") or None
        if pair not in places:
            raise ValueError(f"{place}: there is no pair with the picture '{pair}'.")
        if caption is None and picture is None:
            raise ValueError(f"{place}: the negative of '{pair}' has neither caption nor file.")
        if picture is not None and there is not None and picture not in there:
            raise FileNotFoundError(f"{place}: there is no picture '{picture}', a negative of '{pair}'.")
        found += [Made(at, caption, picture, str(fields.get("kind") or "given")) for at in places[pair]]
    return found


@dataclass(frozen=True)
class PictureReader:
    """Pictures by name from a folder or an archive, of one size."""

    files: Any
    size: int
    channels: int

    def __call__(self, name: str) -> Tensor:
        return decode(self.files.read(name), f"{self.files}: '{name}'", self.channels, self.size)


class PictureView(Sequence[Tensor]):
    """Pictures that are read when they are asked for."""

    def __init__(self, read: Callable[[str], Tensor], names: Sequence[str]) -> None:
        self.read, self.names = read, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, at: Any) -> Any:
        return [self.read(name) for name in self.names[at]] if isinstance(at, slice) else self.read(self.names[at])


class CollatePairs:
    """Turn B `Row`, or pairs, into a `Batch` with the sides "image" and "caption", and "drawn ..." where asked for."""

    def __init__(self, data: CaptionsDataBase, pictures: Tensor, pairs: Tensor, drawn: Sequence[str]) -> None:
        self.read, self.things, self.content = data.pairs.read, data.things, data.content
        self.pictures, self.pairs, self.drawn = pictures, pairs, tuple(drawn)
        self.known = None if data.batches is None else _with_pictures(data.table.positives, data.picture_of)
        self.is_picture = data.is_picture

    def __call__(self, rows: Sequence[Row] | Sequence[int]) -> Batch:
        training = isinstance(rows[0], Row)
        index = torch.tensor([row.index if isinstance(row, Row) else row for row in rows])
        captions = torch.tensor([row.positive for row in rows]) if training else self.pairs[index]  # type: ignore[union-attr]
        ids: Mapping[str, Tensor] = {"image": self.pictures[index], "caption": captions}
        inputs = {side: self._inputs(of, side) for side, of in ids.items()}
        items = {side: self._items(of, side) for side, of in ids.items()}
        if training and self.drawn:
            drawn = torch.tensor([one for row in rows for one in row.negatives], dtype=torch.long)  # type: ignore[union-attr]
            lengths = torch.tensor([len(row.negatives) for row in rows])  # type: ignore[union-attr]
            brought = torch.arange(len(rows)).repeat_interleave(lengths)
            for space in self.drawn:
                mine = self.is_picture[drawn] == (space == "image")
                inputs[f"drawn {space}"] = self._inputs(drawn[mine], space, inputs["image"])
                items[f"drawn {space}"] = self._items(drawn[mine], space, brought[mine])
        known = self.known.select(index) if training and self.known is not None else Ragged.empty(len(index))
        return Batch(inputs, items, known, index)

    def _inputs(self, ids: Tensor, space: str, like: Any = None) -> Any:
        names = [self.things[i] for i in ids.tolist()]
        if space == "caption":
            return names
        return torch.stack([self.read(name) for name in names]) if names else like[:0]

    def _items(self, ids: Tensor, space: str, rows: Tensor | None = None) -> Items:
        return Items(ids=ids, content=self.content[ids], space=space, rows=rows)
