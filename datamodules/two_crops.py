"""Self-supervision on pictures: two random crops of each. Labels serve evaluation alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.image_files import Pictures, read_pictures
from datamodules.labelled import SPLITS, LabelledData
from miners.base import Row, TrainingTable
from miners.draws import RowGenerator
from miners.pool import Items
from miners.ragged import Ragged

log = logging.getLogger(__name__)

SPACE, AGAIN = "image", "image again"
"""Sides of a batch: the first crops, and the second ones."""

CROPS = 7  # stream of the numbers that crops are drawn with


class MoCoV2Crop(nn.Module):
    """The augmentation of MoCo v2: crop, colours, grey, blur, mirror.

    Args:
        size: sides of the crop in pixels.
        least_share: of the picture's area in the crop, in (0, 1].
        jitter: largest change of brightness, contrast and saturation, as a share; a quarter of it is that of the hue.
        blur: probability of a blur; its kernel is a tenth of the crop wide.
        flip: mirror half of the crops; not where left and right mean something, as in letters.

    Shapes:
        (C, H, W) uint8 -> (C, size, size) uint8.

    Source:
        MoCo v2, arXiv 2003.04297, and its code; SimCLR, arXiv 2002.05709, appendix A.
    """

    def __init__(
        self, size: int = 224, least_share: float = 0.2, jitter: float = 0.4, blur: float = 0.5, flip: bool = True
    ) -> None:
        super().__init__()
        from torchvision.transforms import v2

        kernel = max(3, size // 20 * 2 + 1)
        self.steps = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(least_share, 1.0), antialias=True),
                v2.RandomApply([v2.ColorJitter(jitter, jitter, jitter, jitter / 4)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=blur),
                v2.RandomHorizontalFlip(p=0.5 if flip else 0.0),
            ]
        )

    def forward(self, picture: Tensor) -> Tensor:
        crop: Tensor = self.steps(picture)
        return crop


class TwoCropsData(LabelledData):
    """Train on two crops of each picture, without labels, and evaluate by classes.

    Crops are a function of (seed, epoch, row), whoever makes them: a run gives the same on any number of workers and
    processes, and a resumed run goes on with the crops of the unbroken one.

    Args:
        folder: pictures, as `datamodules.image_files` reads them: a table with a column "split" or others that
            ``splits`` names, or folders "train/CLASS/...", "val/CLASS/..." and "test/CLASS/..." (as ImageNet's).
        size: sides of a crop, in pixels.
        splits: what belongs to "train", "val" and "test", by columns of the table: {"train": {"drawer": [1, 2]},
            "test": {"drawer": [3]}}; all conditions of a split must hold. Null takes the column "split".
        channels: 3 = colour, 1 = grey.
        augmentation: makes a crop (C, size, size) of a picture (C, H, W), both uint8; one of torchvision.transforms.v2
            or your own, drawing from torch's generator. Null = `MoCoV2Crop` of this size.
        mask_labels: never take a picture of the same class as a negative: an oracle, for analysis.
        label_share: share of the training pictures whose labels evaluation may use, in (0, 1]; each class keeps one.
        label_seed: of their draw. Smaller shares of one seed are parts of larger ones.
        loading: batch_size, batch_miner, drop_last, eval_batch_size, num_workers, seed; see `RowsData`.

    Raises:
        ValueError: numbers out of range; sources, since there is nothing to draw; pictures in two splits, a split
            without pictures, no split at all.
    """

    pictures: Pictures

    def __init__(
        self,
        folder: str,
        size: int = 224,
        splits: Mapping[str, Mapping[str, Sequence[str | int]]] | None = None,
        channels: int = 3,
        augmentation: nn.Module | None = None,
        mask_labels: bool = False,
        label_share: float = 1.0,
        label_seed: int = 0,
        **loading: Any,
    ) -> None:
        self.folder = folder
        super().__init__(**loading)
        if self.sources:
            raise ValueError("TwoCropsData has no drawn negatives: leave data.init_args.sources out.")
        if size < 1:
            raise ValueError(f"TwoCropsData(size={size}): wants at least 1 pixel.")
        if not 0 < label_share <= 1:
            raise ValueError(f"TwoCropsData(label_share={label_share}): a share, so 0 < label_share <= 1.")
        if unknown := sorted(set(splits or ()) - set(SPLITS)):
            raise ValueError(f"TwoCropsData(splits={unknown}): wants {', '.join(SPLITS)}.")
        self.size, self.splits, self.channels = size, splits, channels
        self.augmentation = MoCoV2Crop(size) if augmentation is None else augmentation
        self.mask_labels, self.label_share, self.label_seed = mask_labels, label_share, label_seed
        self.val_split: str | None = "val"
        self.test_split: str | None = "test"
        if splits is not None:
            self.val_split, self.test_split = (name if name in splits else None for name in SPLITS[1:])

    # What Lightning calls

    def setup(self, stage: str) -> None:
        if not hasattr(self, "pictures"):
            self._read()
        if stage == "fit" and self.batches is None:
            rows = self.ids("train")
            table = TrainingTable(
                rows,
                Ragged.from_lists([[row] for row in rows.tolist()]),
                labels=self.labels[rows],
                anchor_names=self.names(SPACE),
                document_names=self.names(SPACE),
            )
            self.start(table, ())
            if not len(self.batches):  # type: ignore[arg-type]  # start() has just made them
                raise ValueError(
                    f"{self}: {len(rows)} training pictures are fewer than a batch, and drop_last leaves them out. Set "
                    f"data.init_args.batch_size to {max(len(rows) // 2, 2)} or less."
                )
            log.info("%s: %d pictures to train on, %d classes", self, len(rows), len(self.classes))

    def collate_rows(self) -> CollateCrops:
        labels = self.labels if self.mask_labels else None
        return CollateCrops(self.pictures, self.augmentation, self.table.anchors, labels, self.seed)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The validation split, as ids alone; none without one."""
        return self._ids_loader(self.val_split)

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The test split, as ids alone; none without one."""
        return self._ids_loader(self.test_split)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """All pictures, cut as in evaluation."""
        return self.pictures_of(torch.arange(len(self.pictures)))

    # What modules, callbacks and reports ask for

    @property
    def spaces(self) -> tuple[str, ...]:
        return (SPACE,)

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.pictures.classes

    @property
    def labels(self) -> Tensor:  # type: ignore[override]
        """(N,) classes by id, -1 unknown."""
        return self.pictures.labels

    def pictures_of(self, ids: Tensor) -> DataLoader[Batch]:
        """Batches of pictures ``ids`` (n,), cut as in evaluation: the middle, seven eighths of the shorter side."""
        return self._loader(ids.tolist(), CollatePictures(self.pictures, self.size), batch_size=self.eval_batch_size)

    def everything(self, space: str) -> tuple[Tensor, Sequence[str]]:
        """What training meets: ids and names of the training split."""
        ids = self.ids("train")
        return ids, [self.pictures.names[i] for i in ids.tolist()]

    def names(self, space: str) -> Sequence[str]:
        """The file of each picture; position = id."""
        return self.pictures.names

    def depict(self, i: int, space: str) -> Tensor:
        """The whole picture, as its file has it."""
        return self.pictures.picture(i)

    def __str__(self) -> str:
        return f"TwoCropsData({self.folder})"

    # Inside

    def _read(self) -> None:
        pictures = read_pictures(self.folder, self.channels)
        if not pictures.fields:
            pictures = _split_by_folder(pictures)
        wanted = self.splits
        if wanted is None:
            there = set(pictures.fields["split"].tolist()) if "split" in pictures.fields else set()
            wanted = {name: {"split": [name]} for name in SPLITS if name in there}
        if "train" not in wanted:
            raise ValueError(
                f"{self}: nobody says what is trained on. Put pictures into train/CLASS/ and val/CLASS/, or set "
                "data.init_args.splits, such as {train: {split: [train]}, val: {split: [dev]}}; the columns are "
                f"{sorted(pictures.fields)}."
            )
        self._ids = {name: pictures.where(conditions) for name, conditions in wanted.items()}
        of = torch.full((len(pictures),), -1)
        for number, (name, ids) in enumerate(self._ids.items()):
            if not len(ids):
                raise ValueError(f"{self}: the split '{name}' has no picture.")
            if bool((of[ids] >= 0).any()):
                twice = int(ids[int((of[ids] >= 0).int().argmax())])
                raise ValueError(
                    f"{self}: '{pictures.names[twice]}' is in the splits '{list(self._ids)[int(of[twice])]}' and "
                    f"'{name}'."
                )
            of[ids] = number
        self.val_split, self.test_split = (
            split if split in self._ids else None for split in (self.val_split, self.test_split)
        )
        self.pictures = pictures

    def _ids_loader(self, split: str | None) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        if split is None:
            return []
        return DataLoader(self.queries(split)[0].tolist(), collate_fn=_named, batch_size=self.eval_batch_size)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CollateCrops:
    """Turn B `Row` into a `Batch` of two crops each; it holds what a worker needs, and no more.

    Args:
        augmentation: makes a crop.
        anchors: (rows,) picture of each training row.
        labels: (N,) classes that mask, or None.
        seed: of crops.
    """

    pictures: Pictures
    augmentation: nn.Module
    anchors: Tensor
    labels: Tensor | None
    seed: int

    def __call__(self, rows: Sequence[Row]) -> Batch:
        index = torch.tensor([row.index for row in rows])
        ids = self.anchors[index]
        dice = RowGenerator(self.seed, rows[0].epoch, stream=CROPS).uniform(index, 1)[:, 0] * 2.0**53
        crops: dict[str, list[Tensor]] = {SPACE: [], AGAIN: []}
        with torch.random.fork_rng(devices=[]):
            for i, seed in zip(ids.tolist(), dice.long().tolist(), strict=True):
                picture = self.pictures.picture(i)
                torch.default_generator.manual_seed(seed)
                for side in crops.values():
                    side.append(self.augmentation(picture))
        items = Items(ids=ids, labels=None if self.labels is None else self.labels[ids], space=SPACE)
        inputs = {side: _stacked(of) for side, of in crops.items()}
        return Batch(inputs, {SPACE: items, AGAIN: items}, Ragged.from_lists([[i] for i in ids.tolist()]), index)


@dataclass(frozen=True)
class CollatePictures:
    """Turn ids into a `Batch` of pictures cut to the middle, (n, C, size, size) uint8."""

    pictures: Pictures
    size: int

    def __call__(self, ids: Sequence[int]) -> Batch:
        from torchvision.transforms.v2 import functional

        shorter = round(self.size * 8 / 7)
        whole = [functional.resize(self.pictures.picture(i), [shorter], antialias=True) for i in ids]
        cut = torch.stack([functional.center_crop(picture, [self.size, self.size]) for picture in whole])
        return replace(_named(ids), inputs={SPACE: cut})


def _named(ids: Sequence[int]) -> Batch:
    """A batch that only says which pictures."""
    numbers = torch.tensor(list(ids))
    return Batch({}, {SPACE: Items(ids=numbers, space=SPACE)}, Ragged.from_lists([[i] for i in ids]), numbers)


def _stacked(crops: list[Tensor]) -> Tensor:
    shapes = {tuple(crop.shape) for crop in crops}
    if len(shapes) > 1:
        raise ValueError(
            f"data.init_args.augmentation leaves crops of different shapes, {sorted(shapes)[:2]}. End it with a crop "
            "to one size, such as torchvision.transforms.v2.RandomResizedCrop."
        )
    return torch.stack(crops)


def _split_by_folder(pictures: Pictures) -> Pictures:
    """Pictures in "train/CLASS/..." with the first folder as the column "split", and the class without it."""
    tops = np.array([name.partition("/")[0] for name in pictures.names])
    if not set(tops.tolist()) <= set(SPLITS):
        return pictures
    folders = np.array([str(PurePosixPath(name.partition("/")[2]).parent) for name in pictures.names])
    classes, labels = np.unique(folders, return_inverse=True)
    found = torch.from_numpy(labels.astype(np.int64))
    if classes[0] == ".":
        classes, found = classes[1:], found - 1
    return replace(pictures, labels=found, classes=tuple(classes.tolist()), fields={"split": tops})
