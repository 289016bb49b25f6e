"""Faces, and anything else with an identity: training by classes, evaluation by pairs and against a gallery."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.face_files import FOLDS, Pairs, read_bin, read_pairs
from datamodules.image_files import Pictures, PictureView, read_pictures
from datamodules.readers import expand
from datamodules.rows import RowsData
from miners.base import Row, TrainingTable
from miners.draws import generator_for
from miners.pool import Items
from miners.ragged import Ragged

log = logging.getLogger(__name__)

Where = Mapping[str, Sequence[str | int]]
MOST_PICTURES = 1500  # of a split, whose pairs are drawn from
MOST_PAIRS = 3000  # of a kind that are drawn


@dataclass
class FaceTest:
    """What a model is evaluated on.

    Args:
        folder: pictures, or a ``.bin`` set, which brings its pairs; null = the training folder.
        where: which of them, by columns of the table: {split: [test]}; null = those of the pairs.
        pairs: a list of pairs (csv, or LFW's pairs.txt); null = up to 3,000 genuine and 3,000 impostor pairs of the
            pictures, drawn once and for all.
        gallery: which of the pictures are known by name, by columns; all others are probes. Null = the first picture of
            each identity.
    """

    folder: str | None = None
    where: dict[str, list[str | int]] | None = None
    pairs: str | None = None
    gallery: dict[str, list[str | int]] | None = None


@dataclass(frozen=True)
class FaceSplit:
    """A `FaceTest` that has been read; all numbers are ids of the data module.

    Args:
        ids: (n,) pictures to encode, ascending.
        pairs: (P, 2); same, fold: (P,).
        probes, gallery: (Q,), (M,); empty where identities are not known.
    """

    ids: Tensor
    pairs: Tensor
    same: Tensor
    fold: Tensor
    probes: Tensor
    gallery: Tensor


class FacesData(RowsData):
    """Train on pictures with identities, and evaluate on pairs of others and against a gallery.

    Args:
        folder: a folder of identities, a zip archive of them, or a folder with metadata.csv; see
            `datamodules.image_files`.
        train: which pictures are trained on, by columns of the table: {split: [train]}; null = all with an identity
            that no evaluation takes.
        val: what is evaluated during training; null = nothing.
        test: what ``hardneg test`` evaluates; null = nothing.
        size: sides in pixels that every picture is stretched to.
        channels: 3 = colour, 1 = grey.
        min_pictures: identities with fewer are not trained on. One is enough for class centres.
        loading: batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed; see `RowsData`.

    Raises:
        ValueError: numbers out of range; pictures that are trained on and evaluated; nothing to train on.
    """

    def __init__(
        self,
        folder: str,
        train: dict[str, list[str | int]] | None = None,
        val: FaceTest | None = None,
        test: FaceTest | None = None,
        size: int = 112,
        channels: int = 3,
        min_pictures: int = 1,
        **loading: Any,
    ) -> None:
        self.folder = folder
        super().__init__(**loading)
        if min_pictures < 1 or size < 1:
            raise ValueError(f"FacesData(min_pictures={min_pictures}, size={size}): at least 1.")
        if self.sources:
            raise ValueError(
                "FacesData takes no sources: negatives of a face are other faces of the batch and classes."
            )
        self.train, self.val, self.test = train, val, test
        self.size, self.channels, self.min_pictures = size, channels, min_pictures
        self.val_split: str | None = "val" if val else None
        self.test_split: str | None = "test" if test else None
        self._sets: dict[str, tuple[int, Pictures]] = {}  # folder -> first id and pictures
        self._splits: dict[str, FaceSplit] = {}

    # What Lightning calls

    def setup(self, stage: str) -> None:
        if not self._splits:
            self._read()
        if stage == "fit" and self.batches is None:
            rows = self.training_ids
            if not len(rows):
                raise ValueError(
                    f"{self}: no picture to train on. Set data.init_args.train to conditions that some meet."
                )
            if self.drop_last and len(rows) < self.batch_size:
                raise ValueError(
                    f"{self}: {len(rows)} training pictures are fewer than a batch, and drop_last leaves them out. Set "
                    "data.init_args.batch_size lower."
                )
            known = Ragged(torch.arange(len(rows) + 1), rows)
            self.start(TrainingTable(rows, known, labels=self.labels[rows]), ())
            log.info("%s: %d pictures of %d identities to train on", self, len(rows), len(self.classes))

    def collate_rows(self) -> CollatePictures:
        return CollatePictures(self)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Pictures of the validation set, each once; none without one."""
        return self._pictures_of(self.val_split)

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Pictures of the test set, each once; none without one."""
        return self._pictures_of(self.test_split)

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """All pictures."""
        everything = list(range(len(self.labels)))
        return [self._loader(everything, CollatePictures(self), batch_size=self.eval_batch_size)]

    # What modules, callbacks and reports ask for

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the identities that are trained on; position = class."""
        return self._classes

    def split(self, name: str) -> FaceSplit:
        """What is evaluated.

        Raises:
            ValueError: a split that is not there.
        """
        if name not in self._splits:
            raise ValueError(f"{self} has no split '{name}'. Set data.init_args.{name}.")
        return self._splits[name]

    def picture(self, row: int) -> Tensor:
        """(C, H, W) uint8 of an id."""
        for first, pictures in reversed(self._sets.values()):
            if row >= first:
                return pictures.picture(row - first)
        raise IndexError(f"{self} has no picture {row}.")

    def depict(self, i: int, space: str) -> Tensor:
        """A picture; of a class, the first that is trained on."""
        return self.picture(int((self.labels == i).byte().argmax()) if space == "class" else i)

    def view(self, ids: Tensor) -> PictureView:
        """Pictures as a sequence that is decoded when it is read."""
        return PictureView(self.picture, ids)

    def everything(self, space: str) -> tuple[Tensor, PictureView]:
        """What training meets: ids and pictures."""
        return self.training_ids, self.view(self.training_ids)

    def names(self, space: str) -> Sequence[str]:
        """What a report calls each picture; position = id."""
        return self._names

    def text_of(self, ids: Tensor | Sequence[int], space: str) -> list[str]:
        """Names of pictures, or of classes, for people."""
        of = self.classes if space == "class" else self._names
        return [of[i] for i in torch.as_tensor(ids).tolist()]

    def queries(self, split: str) -> tuple[Tensor, Sequence[str]]:
        """Probes of a split, and their names."""
        probes = self.split(split).probes
        return probes, self.text_of(probes, "image")

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """For each probe by name, the pictures of its identity in the gallery: what a report calls right."""
        found = self.split(split)
        by_identity: dict[int, dict[str, int]] = {}
        for i in found.gallery.tolist():
            by_identity.setdefault(int(self.identity[i]), {})[self._names[i]] = 1
        return {self._names[i]: by_identity[int(self.identity[i])] for i in found.probes.tolist()}

    def __str__(self) -> str:
        return f"FacesData({self.folder})"

    # Inside

    def _read(self) -> None:
        self._add(self.folder)
        wanted = {name: test for name, test in (("val", self.val), ("test", self.test)) if test is not None}
        bins: dict[str, Pairs] = {}
        for test in wanted.values():
            if (found := self._add(test.folder or self.folder)) is not None:
                bins[test.folder or self.folder] = found
        sets = list(self._sets.items())
        several = len(sets) > 1
        self._names = tuple(
            f"{Path(folder).stem}/{name}" if several else name for folder, (_, of) in sets for name in of.names
        )
        identities, first = [], 0
        for _, (_, pictures) in sets:  # nobody is in two sets, as far as anybody knows
            identities.append(torch.where(pictures.labels >= 0, pictures.labels + first, -1))
            first += len(pictures.classes)
        self.identity = torch.cat(identities)  # (N,) over all sets, -1 unknown
        self._splits = {name: self._split(test, bins) for name, test in wanted.items()}
        self._choose_training()

    def _add(self, folder: str) -> Pairs | None:
        """Read a set of pictures, unless it is there; the pairs of a ``.bin``."""
        first = sum(len(pictures) for _, pictures in self._sets.values())
        path = expand(folder)
        if path.suffix == ".bin":
            files, pairs = read_bin(path)
            names = tuple(files.names())
            nobody = torch.full((len(names),), -1)
            self._sets.setdefault(folder, (first, Pictures(files, names, nobody, (), {}, self.channels, self.size)))
            return pairs
        if folder not in self._sets:
            self._sets[folder] = first, read_pictures(path, self.channels, self.size)
        return None

    def _split(self, test: FaceTest, bins: Mapping[str, Pairs]) -> FaceSplit:
        folder = test.folder or self.folder
        first, pictures = self._sets[folder]
        chosen = torch.empty(0, dtype=torch.long) if test.where is None else pictures.where(test.where)
        if folder in bins:
            pairs = bins[folder]
        elif test.pairs is not None:
            pairs = read_pairs(expand(test.pairs), pictures.names)
        else:
            if test.where is None:
                chosen = torch.arange(len(pictures))
            pairs = draw_pairs(chosen, pictures.labels[chosen])
        rows = torch.cat([chosen, pairs.rows.flatten()]).unique()
        known = rows[pictures.labels[rows] >= 0]
        gallery = _first_of_each(known, pictures.labels[known])
        if test.gallery is not None:
            gallery = known[torch.isin(known, pictures.where(test.gallery))]
        others = known[~torch.isin(known, gallery)]
        probes = others[torch.isin(pictures.labels[others], pictures.labels[gallery])]
        if test.gallery is not None and len(probes) < len(others):
            log.info("%s: %d pictures have nobody of theirs in the gallery", self, len(others) - len(probes))
        return FaceSplit(rows + first, pairs.rows + first, pairs.same, pairs.fold, probes + first, gallery + first)

    def _choose_training(self) -> None:
        _, pictures = self._sets[self.folder]  # whose first id is 0
        evaluated = torch.cat([torch.empty(0, dtype=torch.long), *(split.ids for split in self._splits.values())])
        labelled = (pictures.labels >= 0).nonzero()[:, 0]
        if self.train is None:
            rows = labelled[~torch.isin(labelled, evaluated)]
        else:
            rows = pictures.where(self.train)
            rows = rows[torch.isin(rows, labelled)]
            both = torch.isin(rows, evaluated)
            if bool(both.any()):
                name = pictures.names[int(rows[both][0])]
                raise ValueError(f"{self}: '{name}' is trained on and evaluated ({int(both.sum())} such pictures).")
        number = torch.bincount(pictures.labels[rows], minlength=len(pictures.classes))
        few = (number[pictures.labels[rows]] < self.min_pictures) if len(rows) else torch.empty(0, dtype=torch.bool)
        if bool(few.any()):
            rare = int(((number > 0) & (number < self.min_pictures)).sum())
            log.info("%s: %d identities have fewer than min_pictures=%d", self, rare, self.min_pictures)
            rows = rows[~few]
        there, labels = pictures.labels[rows].unique(return_inverse=True)
        seen = torch.isin(self.identity[evaluated], there).sum()
        if bool(seen):
            log.warning("%s: %d evaluated pictures show identities that are trained on: no open set.", self, int(seen))
        self.training_ids = rows
        self._classes = tuple(pictures.classes[i] for i in there.tolist())
        self.labels = torch.full((len(self.identity),), -1).index_copy_(0, rows, labels)  # (N,) class, -1 elsewhere

    def _pictures_of(self, split: str | None) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        if split is None:
            return []
        return self._loader(self.split(split).ids.tolist(), CollatePictures(self), batch_size=self.eval_batch_size)


class CollatePictures:
    """Turn B `Row`, or ids of pictures, into a `Batch` with the side "image"."""

    def __init__(self, data: FacesData) -> None:
        self.data = data

    def __call__(self, rows: Sequence[Row] | Sequence[int]) -> Batch:
        data = self.data
        if isinstance(rows[0], Row):
            index = torch.tensor([row.index for row in rows])  # type: ignore[union-attr]
            ids = data.training_ids[index]
        else:
            index = ids = torch.tensor(rows)
        pictures = torch.stack([data.picture(row) for row in ids.tolist()])
        content = torch.tensor([_hash_of(picture) for picture in pictures])
        items = Items(ids=ids, content=content, labels=data.labels[ids], space="image")
        return Batch({"image": pictures}, {"image": items}, Ragged(torch.arange(len(ids) + 1), ids), index)


def draw_pairs(rows: Tensor, labels: Tensor, seed: int = 0) -> Pairs:
    """Genuine and impostor pairs of pictures, at most 3,000 of each, spread evenly over ten folds.

    Of more than 1,500 pictures, those of some identities are taken.

    Raises:
        ValueError: no two pictures of one identity, or one identity only.
    """
    generator = generator_for(seed, 0)
    rows, labels = rows[labels >= 0], labels[labels >= 0]
    if len(rows) > MOST_PICTURES:
        of = labels.unique(return_inverse=True)[1]
        place = torch.randperm(int(of.max()) + 1, generator=generator)[of].argsort(stable=True)[:MOST_PICTURES]
        rows, labels = rows[place.sort().values], labels[place.sort().values]
    one, two = torch.triu_indices(len(rows), len(rows), 1)
    same = labels[one] == labels[two]
    kinds = [kind.nonzero()[:, 0] for kind in (same, ~same)]
    if not all(map(len, kinds)):
        raise ValueError(
            f"{len(rows)} pictures make {len(kinds[0])} genuine and {len(kinds[1])} impostor pairs; wanted both."
        )
    taken = [of[torch.randperm(len(of), generator=generator)[:MOST_PAIRS]] for of in kinds]
    at = torch.cat(taken)
    folds = min(FOLDS, len(at))
    fold = torch.cat([torch.arange(len(of)) % folds for of in taken])
    return Pairs(torch.stack([rows[one[at]], rows[two[at]]], dim=1), same[at], fold.unique(return_inverse=True)[1])


def _first_of_each(rows: Tensor, labels: Tensor) -> Tensor:
    """Of ascending rows, the first of each label."""
    order = labels.argsort(stable=True)
    first = torch.ones(len(rows), dtype=torch.bool)
    first[1:] = labels[order][1:] != labels[order][:-1]
    return rows[order[first]].sort().values


def _hash_of(picture: Tensor) -> int:
    """Equal for equal pixels; never -1, which means nobody."""
    return int.from_bytes(blake2b(picture.numpy().data, digest_size=8).digest(), "little") >> 1
