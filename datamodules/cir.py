"""Composed image retrieval: a reference picture and a text ask for another picture."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.cir_files import Triplet, read_circo, read_cirr, read_fashioniq, read_triplets
from datamodules.generated_triplets import Generated
from datamodules.image_files import Files, PictureView, decode, open_files
from datamodules.readers import expand, read_records, text_field
from datamodules.rows import RowsData
from datamodules.texts import Vocabulary
from miners.base import Row, TrainingTable
from miners.draws import RowGenerator
from miners.pool import Items
from miners.ragged import Ragged

log = logging.getLogger(__name__)

WORDING = 1000  # stream of the draws that choose a text
PAD_RATIO = 1.25


@dataclass(frozen=True)
class CIRProtocol:
    """How a data set is measured.

    Args:
        drop_reference: take the reference out of each ranking.
        recalls, subset_recalls, average_precisions: ranks K of R@K, of Rsubset@K, and of mAP@K.
        summary: "fashioniq" adds averages over groups and their mean (Rmean), "cirr" the mean of R@5 and Rsubset@1.
    """

    drop_reference: bool
    recalls: tuple[int, ...]
    subset_recalls: tuple[int, ...] = ()
    average_precisions: tuple[int, ...] = ()
    summary: Literal["", "fashioniq", "cirr"] = ""


@dataclass(frozen=True)
class CIRSplit:
    """Queries of one split as ids of pictures.

    Args:
        ids: (Q,) ids of the queries.
        references: (Q,).
        right: Q lists of the answers that count.
        subsets: Q lists, empty where there are none.
        groups: Q names; "" = none.
        galleries: group -> (M,) ids of the pictures that are ranked, in the file's order; "" for all groups that have
            none of their own.
    """

    ids: Tensor
    references: Tensor
    right: Ragged
    subsets: Ragged
    groups: tuple[str, ...]
    galleries: Mapping[str, Tensor]

    def gallery(self, group: str) -> Tensor:
        """What queries of a group are ranked among."""
        return self.galleries[group] if group in self.galleries else self.galleries[""]

    @property
    def pictures(self) -> Tensor:
        """Ids of all pictures that an evaluation needs, ascending."""
        return torch.cat([self.references, *self.galleries.values()]).unique()


@dataclass
class Raw:
    """A split as its files give it."""

    triplets: list[Triplet]
    galleries: dict[str, list[str]] = field(default_factory=dict)


class CIRData(RowsData):
    """Train on triplets of reference, text and target, and rank galleries. Subclasses read files.

    Pictures of equal pixels are one picture for training: they share an id, so that a twin of the target is never its
    negative, and triplets whose reference is their target are left out. Evaluations rank files as they are.

    Args:
        train, val, test: splits; null for none.
        size: sides of a picture in pixels.
        fit: how it gets there: "stretch", or "pad", CLIP4Cir's: black borders until the longer side is at most 1.25
            times the shorter one, the shorter side resized, the centre cut out.
        channels: 3 = colour, 1 = grey.
        twins: which pictures are one: "pixels" compares decoded pictures (all are read before training), "bytes" their
            files, "none" nothing.
        in_memory: keep decoded pictures, size x size x channels bytes each; false decodes them when they are needed.
        mask_reference: a row's reference is never its negative; the published code leaves it in, as a strong one.
        soft_targets: pictures that may be right too are no negatives (CIRR's ``target_soft``).
        extra: further training triplets, in the generic form, whose pictures are among those of the data set, as
            ``hardneg data make-triplets`` writes them.
        captions: a table with a column "file" and one with a caption of each picture, for ``generated``.
        caption: that column.
        generated: makes further training triplets here, from the captions.
        loading: batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed; see `RowsData`.

    Raises:
        ValueError: sizes out of range, sources, a target or reference that no picture has, nothing to train on.
    """

    def __init__(
        self,
        train: str | None = "train",
        val: str | None = "val",
        test: str | None = "test",
        size: int = 224,
        fit: Literal["stretch", "pad"] = "stretch",
        channels: int = 3,
        twins: Literal["pixels", "bytes", "none"] = "pixels",
        in_memory: bool = False,
        mask_reference: bool = False,
        soft_targets: bool = False,
        extra: str | None = None,
        captions: str | None = None,
        caption: str = "caption",
        generated: Generated | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        name = type(self).__name__
        if size < 1 or channels not in (1, 3):
            raise ValueError(f"{name}(size={size}, channels={channels}): at least 1 pixel, and 1 or 3 channels.")
        if fit not in ("stretch", "pad") or twins not in ("pixels", "bytes", "none"):
            raise ValueError(f"{name}(fit='{fit}', twins='{twins}'): wants stretch or pad; pixels, bytes or none.")
        if self.sources:
            raise ValueError(
                f"{name} takes no sources: negatives are the pictures of the batch, or those of a bank (StaticBank)."
            )
        self.train_split, self.val_split, self.test_split = train, val, test
        self.size, self.fit, self.channels, self.twins = size, fit, channels, twins
        self.in_memory, self.mask_reference, self.soft_targets = in_memory, mask_reference, soft_targets
        if generated is not None and captions is None:
            raise ValueError(
                f"{name}(generated=...) makes texts of captions: set data.init_args.captions to their table."
            )
        self.extra, self.captions, self.caption, self.generated = extra, captions, caption, generated
        self.with_pictures = True  # false: training batches carry ids of pictures alone, for modules with frozen ones
        self._files: Files | None = None
        self._cache: dict[int, Tensor] = {}
        self._splits: dict[str, CIRSplit] = {}
        self._queries = Vocabulary()
        self._texts: list[str] = []
        self._reference_of: list[int] = []  # by query

    # What subclasses say

    protocol: CIRProtocol

    @abstractmethod
    def read_files(self) -> tuple[Files, Mapping[str, str] | None]:
        """Where pictures are, and the path in it of each name; None: names are paths."""

    @abstractmethod
    def read_split(self, split: str) -> Raw:
        """Queries of a split, and what they are ranked among."""

    # What Lightning calls

    def setup(self, stage: str) -> None:
        if self._files is None:
            self._files, paths = self.read_files()
            self._paths = list(self._files.names()) if paths is None else list(paths.values())
            self._pictures = Vocabulary(self._paths if paths is None else paths)
        if stage in ("fit", "predict") and self.batches is None and self.train_split is not None:
            self._start(self.train_split)
        wanted = {"fit": self.val_split, "validate": self.val_split, "test": self.test_split}.get(stage)
        if wanted is not None:
            self.split(wanted)

    def collate_rows(self) -> CollateTriplets:
        return CollateTriplets(self)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Queries of the validation split; none without one."""
        return self._queries_of(self.val_split)

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Queries of the test split; none without one."""
        return self._queries_of(self.test_split)

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """All pictures that training meets, each once: what a bank is made of."""
        ids = self.training_pictures.tolist()
        return [self._loader(ids, CollatePictures(self), batch_size=self.eval_batch_size)]

    # What modules, callbacks and reports ask for

    def split(self, name: str) -> CIRSplit:
        """The queries of a split as ids, read once.

        Raises:
            ValueError: a picture that is not there, or a split without answers.
        """
        if name not in self._splits:
            raw = self.read_split(name)
            if not raw.triplets or any(not each.right for each in raw.triplets):
                raise ValueError(
                    f"{self}: the split '{name}' has queries without an answer; it cannot be measured here."
                )
            self._splits[name] = self._as_ids(raw)
        return self._splits[name]

    def triplet_of(self, rows: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        """Ids of reference and target, and evaluation texts, of training rows (n,)."""
        return self.references[rows], self.targets[rows], [self._texts[i] for i in self.table.anchors[rows].tolist()]

    def picture(self, i: int) -> Tensor:
        """(C, size, size) uint8 of a picture.

        Raises:
            FileNotFoundError, ValueError: it is not there, or is no picture; names it.
        """
        if i in self._cache:
            return self._cache[i]
        assert self._files is not None, "setup opens the files"
        path = self._paths[i]
        picture = self._fitted(self._files.read(path), f"{self._files}: '{path}'")
        if self.in_memory:
            self._cache[i] = picture
        return picture

    def depict(self, i: int, space: str) -> Tensor:
        """A picture; of a query, its reference."""
        return self.picture(self._reference_of[i] if space == "query" else i)

    def view(self, ids: Tensor) -> PictureView:
        """Pictures as a sequence that is decoded when it is read."""
        return PictureView(self.picture, ids)

    def everything(self, space: str) -> tuple[Tensor, Sequence[Any]]:
        """What training meets: ids and pictures ("image"), or ids and texts of the training queries ("query")."""
        if space == "query":
            return self.table.anchors, self.text_of(self.table.anchors, "query")
        return self.training_pictures, self.view(self.training_pictures)

    def names(self, space: str) -> Sequence[str]:
        """Names of queries, or of pictures (any other space); position = id."""
        return self._queries if space == "query" else self._pictures

    def text_of(self, ids: Tensor | Sequence[int], space: str) -> list[str]:
        """Texts of queries, names of pictures, for people."""
        of: Sequence[str] = self._texts if space == "query" else self._pictures
        return [of[i] for i in torch.as_tensor(ids).tolist()]

    def queries(self, split: str) -> tuple[Tensor, Sequence[str]]:
        """Ids of a split's queries, and what they say: the reference's name and the text."""
        found = self.split(split)
        texts = self.text_of(found.ids, "query")
        return found.ids, [
            f"{self._pictures[reference]}: {text}"
            for reference, text in zip(found.references.tolist(), texts, strict=True)
        ]

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """For each query by name, the pictures that are right."""
        found = self.split(split)
        return {
            self._queries[query]: {self._pictures[i]: 1 for i in right}
            for query, right in zip(found.ids.tolist(), found.right.to_lists(), strict=True)
        }

    # Inside

    def _start(self, split: str) -> None:
        triplets = list(self.read_split(split).triplets)
        if self.extra is not None:
            triplets += read_triplets(self.extra)
        if self.generated is not None and self.captions is not None:
            references = [each.reference for each in triplets]
            triplets += self.generated.make(self.captions, self.caption, references)
        triplets = [each for each in triplets if each.target]
        sources = self._ids_of(((each, each.reference) for each in triplets), "reference")
        targets = self._ids_of(((each, each.target) for each in triplets), "target")
        of_twin = self._of_twins(torch.cat([sources, targets]).unique()) if len(triplets) else sources
        sources, targets = of_twin[sources], of_twin[targets]
        kept = sources != targets
        if not bool(kept.any()):
            raise ValueError(f"{self}: the split '{split}' has no triplet whose target is another picture.")
        if not bool(kept.all()):
            log.info("%s: %d triplets whose reference is their target are left out", self, int((~kept).sum()))
        triplets = [each for each, keep in zip(triplets, kept.tolist(), strict=True) if keep]
        self.references, self.targets = sources[kept], targets[kept]  # (N,) each
        self.wordings = [each.texts for each in triplets]
        rows = torch.arange(len(triplets))
        known = [(rows, self.targets)]
        if self.mask_reference:
            known.append((rows, self.references))
        if self.soft_targets:
            soft = [(row, each, name) for row, each in enumerate(triplets) for name in each.soft]
            ids = self._ids_of(((each, name) for _, each, name in soft), "soft target")
            known.append((torch.tensor([row for row, _, _ in soft], dtype=torch.long), of_twin[ids]))
        self.known = Ragged.from_pairs(torch.cat([r for r, _ in known]), torch.cat([i for _, i in known]), len(rows))
        self.training_pictures = torch.cat([self.references, self.targets]).unique()
        anchors = self._add_queries(triplets, self.references)
        positives = Ragged(torch.arange(len(rows) + 1), self.targets)
        self.start(TrainingTable(anchors, positives, anchor_names=self._queries, document_names=self._pictures), ())
        log.info("%s: %d triplets over %d pictures", self, len(triplets), len(self.training_pictures))

    def _as_ids(self, raw: Raw) -> CIRSplit:
        triplets = raw.triplets
        right = [(row, each, name) for row, each in enumerate(triplets) for name in dict.fromkeys(each.right)]
        members = [(row, each, name) for row, each in enumerate(triplets) for name in dict.fromkeys(each.subset)]

        def listed(found: list[tuple[int, Triplet, str]], what: str) -> Ragged:
            rows = torch.tensor([row for row, _, _ in found], dtype=torch.long)
            return Ragged.from_pairs(rows, self._ids_of(((t, name) for _, t, name in found), what), len(triplets))

        galleries = {name: self._pictures_named(list(dict.fromkeys(of))) for name, of in raw.galleries.items()}
        references = self._ids_of(((each, each.reference) for each in triplets), "reference")
        found = CIRSplit(
            self._add_queries(triplets, references),
            references,
            listed(right, "answer"),
            listed(members, "member of the subset"),
            tuple(each.group for each in triplets),
            galleries or {"": torch.arange(len(self._pictures))},
        )
        for row, each, name in right:
            position = self._pictures.position(name)
            assert position is not None  # or `listed` had complained
            if not (found.gallery(triplets[row].group) == position).any():
                raise ValueError(f"{each.place}: the answer '{name}' is not in the gallery, so nobody could find it.")
        return found

    def _add_queries(self, triplets: Sequence[Triplet], references: Tensor) -> Tensor:
        first = len(self._queries)
        self._reference_of += references.tolist()
        for each in triplets:
            if not self._queries.add(each.name):
                raise ValueError(
                    f"{each.place}: a query named '{each.name}' was there before; names must be unique over all "
                    "splits, and over those of extra and generated triplets."
                )
            self._texts.append(each.text)
        return torch.arange(first, len(self._queries))

    def _ids_of(self, named: Iterable[tuple[Triplet, str]], what: str) -> Tensor:
        found = []
        for triplet, name in named:
            i = self._pictures.position(name)
            if i is None:
                raise ValueError(
                    f"{triplet.place}: {what} '{name}' is none of the {len(self._pictures)} pictures of {self}."
                )
            found.append(i)
        return torch.tensor(found, dtype=torch.long)

    def _pictures_named(self, names: Sequence[str]) -> Tensor:
        missing = next((name for name in names if name not in self._pictures), None)
        if missing is not None:
            raise ValueError(
                f"{self}: '{missing}' of the gallery is none of the {len(self._pictures)} pictures there are."
            )
        return self._pictures.ids(names)

    def _of_twins(self, ids: Tensor) -> Tensor:
        """(all pictures,) the first picture of equal content; pictures outside ``ids`` stand for themselves."""
        out = torch.arange(len(self._pictures))
        if self.twins == "none":
            return out
        assert self._files is not None
        first: dict[bytes, int] = {}
        for i in ids.tolist():
            data = self._files.read(self._paths[i])
            if self.twins == "pixels":
                where = f"{self._files}: '{self._paths[i]}'"
                pixels = decode(data, where, self.channels)
                data = str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()
                if self.in_memory:
                    self._cache[i] = self._resized(pixels)
            out[i] = first.setdefault(blake2b(data, digest_size=16).digest(), i)
        if len(first) < len(ids):
            log.info("%s: %d pictures are twins of another", self, len(ids) - len(first))
        return out

    def _fitted(self, data: bytes, where: str) -> Tensor:
        if self.fit == "stretch":
            return decode(data, where, self.channels, self.size)
        return self._resized(decode(data, where, self.channels))

    def _resized(self, pixels: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        side = [self.size, self.size]
        bicubic = functional.InterpolationMode.BICUBIC
        if self.fit == "stretch":
            return pixels if list(pixels.shape[1:]) == side else functional.resize(pixels, side, bicubic)
        height, width = pixels.shape[1:]
        if max(height, width) / min(height, width) > PAD_RATIO:
            wanted = max(height, width) / PAD_RATIO
            across, along = (max(int((wanted - length) / 2), 0) for length in (width, height))
            pixels = functional.pad(pixels, [across, along])
        return functional.center_crop(functional.resize(pixels, [self.size], bicubic), side)

    def _queries_of(self, split: str | None) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        if split is None:
            return []
        found = self.split(split)
        collate = CollateQueries(self, found)
        return self._loader(list(range(len(found.ids))), collate, batch_size=self.eval_batch_size)


class CollateTriplets:
    """Turn B `Row` into a `Batch` with the sides "query" (ids or pictures of references, and texts) and "target"."""

    def __init__(self, data: CIRData) -> None:
        self.data = data

    def __call__(self, rows: Sequence[Row]) -> Batch:
        data = self.data
        index = torch.tensor([row.index for row in rows])
        references, targets = data.references[index], data.targets[index]
        drawn = RowGenerator(data.seed, rows[0].epoch, WORDING).uniform(index, 1)[:, 0].tolist()
        wordings = (data.wordings[row] for row in index.tolist())
        texts = [of[int(lot * len(of))] for of, lot in zip(wordings, drawn, strict=True)]
        inputs: dict[str, Any] = {"query": {"ids": references, "text": texts}, "target": targets}
        if data.with_pictures:
            inputs["query"]["reference"] = data.view(references)[:]
            inputs["target"] = data.view(targets)[:]
        items = {
            "query": Items(ids=data.table.anchors[index], space="query"),
            "target": Items(ids=targets, space="image"),
        }
        return Batch(inputs, items, data.known.select(index), index)


class CollateQueries:
    """Turn places in a split into a `Batch` with the side "query": ids of references, and texts."""

    def __init__(self, data: CIRData, split: CIRSplit) -> None:
        self.data, self.of = data, split

    def __call__(self, places: Sequence[int]) -> Batch:
        at = torch.tensor(places)
        ids = self.of.ids[at]
        inputs = {"query": {"ids": self.of.references[at], "text": self.data.text_of(ids, "query")}}
        return Batch(inputs, {"query": Items(ids=ids, space="query")}, Ragged.empty(len(at)), at)


class CollatePictures:
    """Turn ids into a `Batch` with the side "image", for encoding alone."""

    def __init__(self, data: CIRData) -> None:
        self.data = data

    def __call__(self, ids: Sequence[int]) -> Batch:
        at = torch.tensor(ids)
        items = {"image": Items(ids=at, space="image")}
        return Batch({"image": self.data.view(at)[:]}, items, Ragged.empty(len(at)), at)


class TripletsData(CIRData):
    """Triplets in files of the generic form; see `read_triplets`.

    Args:
        pictures: a folder of pictures, or a zip archive.
        folder: where ``<prefix><split>.jsonl`` (or .json) are.
        prefix: of the files' names.
        picture_table: a table of pictures with a column "file", for ``same``, ``gallery`` and ``group``; null for none.
        same: a column of the table: pictures with the target's value there are right too, if they are in the gallery.
        gallery: which pictures are ranked, by split and column: {test: {split: [test]}}; splits that are not named rank
            all.
        group: what queries are measured apart by: a field of the triplets, or a column of the table, of the target.
        drop_reference: take the reference out of each ranking.
        recalls, subset_recalls, average_precisions: ranks K of R@K (any right answer), Rsubset@K, and mAP@K.
        options: as in `CIRData`.
    """

    def __init__(
        self,
        pictures: str,
        folder: str,
        prefix: str = "triplets_",
        picture_table: str | None = None,
        same: str | None = None,
        gallery: dict[str, dict[str, list[str | int]]] | None = None,
        group: str | None = None,
        drop_reference: bool = True,
        recalls: Sequence[int] = (1, 5, 10, 50),
        subset_recalls: Sequence[int] = (),
        average_precisions: Sequence[int] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if (same is not None or gallery) and picture_table is None:
            raise ValueError(
                "TripletsData(same=..., gallery=...) are columns of a table of pictures; set picture_table too."
            )
        self.pictures, self.folder, self.prefix, self.picture_table = pictures, folder, prefix, picture_table
        self.same, self.gallery, self.group = same, gallery or {}, group
        self.protocol = CIRProtocol(drop_reference, tuple(recalls), tuple(subset_recalls), tuple(average_precisions))
        self._fields: dict[str, dict[str, str]] | None = None

    def read_files(self) -> tuple[Files, None]:
        path = expand(self.pictures)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist. Wanted: a folder of pictures, or a .zip of them.")
        return open_files(path), None

    def read_split(self, split: str) -> Raw:
        stem = expand(self.folder) / f"{self.prefix}{split}"
        suffix = next((suffix for suffix in (".jsonl", ".json") if Path(f"{stem}{suffix}").exists()), None)
        if suffix is None:
            raise FileNotFoundError(f"{stem}.jsonl does not exist, and no .json of that name.")
        triplets = read_triplets(f"{stem}{suffix}", self.group)
        fields = self._columns()
        names = [
            name
            for name, of in fields.items()
            if all(of.get(column) in [str(v) for v in values] for column, values in self.gallery.get(split, {}).items())
        ]
        if self.gallery.get(split) and not names:
            raise ValueError(f"{self.picture_table}: no picture has {self.gallery[split]}: the gallery would be empty.")
        alike: dict[str, list[str]] = {}
        if self.same is not None:
            for name in names:
                alike.setdefault(self._field(name, self.same), []).append(name)
        for row, each in enumerate(triplets):
            right = (
                tuple(alike[self._field(each.target, self.same)]) if self.same and each.target in fields else each.right
            )
            in_table = self.group is not None and not each.group and each.target in fields
            group = self._field(each.target, self.group) if in_table and self.group is not None else each.group
            triplets[row] = replace(each, right=right, group=group)
        return Raw(triplets, {"": names} if self.gallery.get(split) else {})

    def _columns(self) -> dict[str, dict[str, str]]:
        """The table by file name; empty without one."""
        if self._fields is None:
            self._fields = {}
            for place, record in read_records(self.picture_table) if self.picture_table is not None else ():
                self._fields[text_field(place, record, "file")] = {name: str(value) for name, value in record.items()}
        return self._fields

    def _field(self, name: str, column: str) -> str:
        of = self._columns()[name]
        if column not in of:
            raise ValueError(f"{self.picture_table}: has no column '{column}'; it has {', '.join(of)}.")
        return of[column]

    def __str__(self) -> str:
        return f"TripletsData({self.folder})"


class FashionIQData(CIRData):
    """FashionIQ: captions/, image_splits/ and pictures by name.

    Args:
        folder: with captions/cap.<category>.<split>.json and image_splits/split.<category>.<split>.json.
        pictures: folder or zip of NAME.png or NAME.jpg; null = images/ in the folder.
        categories: which of dress, shirt, toptee; each is ranked among its own pictures.
        gallery: "original" ranks all pictures of the category's split (3,817, 6,346 and 5,373 of val), "val" only the
            union of its references and targets (2,628, 3,089 and 2,902), which gives clearly higher numbers.
        drop_reference: take the reference out of each ranking; CLIP4Cir does not, SPN4CIR's clip4cir does.
        test: null, since the answers of the test split are not public.
        options: as in `CIRData`.

    Source:
        Wu et al., arXiv 1905.12794; the two galleries: the method's specification, section 9.
    """

    def __init__(
        self,
        folder: str,
        pictures: str | None = None,
        categories: Sequence[str] = ("dress", "shirt", "toptee"),
        gallery: Literal["original", "val"] = "original",
        drop_reference: bool = False,
        test: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(test=test, **options)
        if gallery not in ("original", "val"):
            raise ValueError(f"FashionIQData(gallery='{gallery}'): wants original or val.")
        self.folder, self.pictures = folder, pictures
        self.categories, self.gallery = tuple(categories), gallery
        self.protocol = CIRProtocol(drop_reference, (10, 50), summary="fashioniq")

    def read_files(self) -> tuple[Files, Mapping[str, str]]:
        files = _opened(self.pictures, expand(self.folder) / "images")
        return files, {Path(path).stem: path for path in files.names()}

    def read_split(self, split: str) -> Raw:
        raw = Raw([])
        for category in self.categories:
            triplets, names = read_fashioniq(expand(self.folder), category, split)
            if self.gallery == "val":
                used = {name for each in triplets for name in (each.reference, each.target)}
                names = [name for name in names if name in used]
            raw.triplets += triplets
            raw.galleries[category] = names
        return raw

    def __str__(self) -> str:
        return f"FashionIQData({self.folder}, gallery={self.gallery}, drop_reference={self.protocol.drop_reference})"


class CIRRData(CIRData):
    """CIRR: captions/, image_splits/ and NLVR2's pictures. Its test split has no public answers.

    Args:
        folder: with captions/cap.rc2.<split>.json and image_splits/split.rc2.<split>.json.
        pictures: folder or zip that the paths of image_splits are relative to; null = the folder.
        test: null, since its answers are not public.
        options: as in `CIRData`.

    Source:
        Liu et al., arXiv 2108.04024.
    """

    def __init__(self, folder: str, pictures: str | None = None, test: str | None = None, **options: Any) -> None:
        super().__init__(test=test, **options)
        self.folder, self.pictures = folder, pictures
        self.protocol = CIRProtocol(True, (1, 5, 10, 50), (1, 2, 3), summary="cirr")

    def read_files(self) -> tuple[Files, Mapping[str, str]]:
        paths: dict[str, str] = {}
        for split in dict.fromkeys((self.train_split, self.val_split, self.test_split)):
            if split is not None:
                paths |= read_cirr(expand(self.folder), split)[1]
        return _opened(self.pictures, expand(self.folder)), paths

    def read_split(self, split: str) -> Raw:
        triplets, paths = read_cirr(expand(self.folder), split)
        return Raw(triplets, {"": list(paths)})

    def __str__(self) -> str:
        return f"CIRRData({self.folder})"


class CIRCOData(CIRData):
    """CIRCO: several right answers among COCO's unlabelled pictures. Made for models that are trained elsewhere.

    Args:
        folder: with annotations/val.json.
        pictures: folder or zip of 000000000001.jpg and so on, all of them the gallery; null = unlabeled2017/ in it.
        train, test: null: it has no training split, and the answers of test are not public.
        options: as in `CIRData`.

    Source:
        Baldrati et al., arXiv 2303.15247, section 4; mAP@K divides by min(K, number of right answers).
    """

    def __init__(
        self,
        folder: str,
        pictures: str | None = None,
        train: str | None = None,
        test: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train=train, test=test, **options)
        self.folder, self.pictures = folder, pictures
        self.protocol = CIRProtocol(False, (1, 5, 10, 50), average_precisions=(5, 10, 25, 50))

    def read_files(self) -> tuple[Files, Mapping[str, str]]:
        files = _opened(self.pictures, expand(self.folder) / "unlabeled2017")
        return files, {Path(path).stem: path for path in files.names()}

    def read_split(self, split: str) -> Raw:
        return Raw(read_circo(expand(self.folder), split))

    def __str__(self) -> str:
        return f"CIRCOData({self.folder})"


def _opened(pictures: str | None, usual: Path) -> Files:
    path = usual if pictures is None else expand(pictures)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Wanted: a folder of pictures, or a .zip of them.")
    return open_files(path)
