"""Files of composed image retrieval: a reference picture, a text, and the pictures that answer them.

{"reference": "a.png", "target": "b.png", "text": "make it blue"}      a generic line; see `read_triplets`
captions/cap.dress.val.json, image_splits/split.dress.val.json         FashionIQ
captions/cap.rc2.val.json, image_splits/split.rc2.val.json             CIRR
annotations/val.json                                                   CIRCO
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.readers import Fields, Place, expand, id_field, read_json, read_records, text_field, texts_field


@dataclass(frozen=True)
class Triplet:
    """One composed query.

    Args:
        place: where it stands.
        name: its own.
        reference: name of the picture that is changed.
        target: name of the picture that was meant; "" where the file does not say.
        text: what an evaluation asks with.
        texts: what training asks with, one of them at a time.
        right: names of all answers, the target among them.
        soft: names that may be right too, which no measure counts.
        subset: names of a small gallery, the reference among them; empty where there is none.
        group: what it is measured with, apart from others; "" = nothing.
    """

    place: Place
    name: str
    reference: str
    target: str
    text: str
    texts: tuple[str, ...]
    right: tuple[str, ...] = ()
    soft: tuple[str, ...] = ()
    subset: tuple[str, ...] = ()
    group: str = ""


def read_triplets(path: str | Path, group: str | None = None) -> list[Triplet]:
    """Read lines {"reference", "target", "text"} of a .jsonl (or any table), or a .json that is a list of such.

    ``text`` may be a list of wordings: the first is for evaluation, training draws one. Optional: ``id``, ``targets``
    (all right answers), ``subset``, and the field that ``group`` names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a field that is missing, an empty text, a name that stands there twice; file and line are named.
    """
    found = []
    for place, fields in _records(expand(path)):
        texts = texts_field(place, fields, "text")
        target = id_field(place, fields, "target")
        found.append(
            Triplet(
                place,
                id_field(place, fields, "id") if "id" in fields else f"{place.path.stem}-{place.number}",
                id_field(place, fields, "reference"),
                target,
                _worded(place, texts[:1])[0],
                _worded(place, texts),
                _names(place, fields, "targets") or (target,),
                subset=_names(place, fields, "subset"),
                group=text_field(place, fields, group) if group is not None and group in fields else "",
            )
        )
    return _unique(found)


def read_fashioniq(folder: Path, category: str, split: str) -> tuple[list[Triplet], list[str]]:
    """Queries of one category of FashionIQ, and the names of its pictures in the file's order.

    Both captions are stripped of ".?, " and joined by " and "; training draws one of both orders and of the two alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not two captions, or two empty ones.
    """
    found = []
    for place, fields in _records(folder / "captions" / f"cap.{category}.{split}.json"):
        captions = [caption.strip(".?, ") for caption in _names(place, fields, "captions")]
        if len(captions) != 2:
            raise ValueError(f"{place}: FashionIQ has two captions of each pair, this one has {len(captions)}.")
        if not any(captions):
            _worded(place, captions)
        first, second = captions
        both = f"{first} and {second}"  # also where one is empty, as in a query of val: so it is measured by others
        wordings = (both, f"{second} and {first}", first, second) if first and second else (first or second,)
        target = id_field(place, fields, "target") if "target" in fields else ""
        found.append(
            Triplet(
                place,
                f"{category}-{split}-{place.number - 1}",
                id_field(place, fields, "candidate"),
                target,
                both,
                wordings,
                (target,) if target else (),
                group=category,
            )
        )
    names = read_json(folder / "image_splits" / f"split.{category}.{split}.json")
    if not isinstance(names, list):
        raise ValueError(f"{folder}: image_splits of '{category}' must be a list of names, got {type(names).__name__}.")
    return found, [str(name) for name in names]


def read_cirr(folder: Path, split: str) -> tuple[list[Triplet], dict[str, str]]:
    """Queries of CIRR, and the path of each picture by its name, in the file's order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a field that is missing, an empty caption of training, a set that lacks the reference or the target.
    """
    found = []
    for place, fields in _records(folder / "captions" / f"cap.rc2.{split}.json"):
        if split == "train":
            caption = _worded(place, [text_field(place, fields, "caption")])
        else:  # test1 has a query without a word, and its server wants an answer to all
            caption = (text_field(place, fields, "caption").strip(),)
        reference = id_field(place, fields, "reference")
        target = id_field(place, fields, "target_hard") if "target_hard" in fields else ""
        members = _names(place, dict(fields.get("img_set") or {}), "members")
        if members and not {reference, target or reference} <= set(members):
            raise ValueError(f"{place}: img_set.members lacks the reference or the target: {list(members)}.")
        soft = fields.get("target_soft") or {}
        found.append(
            Triplet(
                place,
                id_field(place, fields, "pairid"),
                reference,
                target,
                caption[0],
                caption,
                (target,) if target else (),
                tuple(name for name, worth in soft.items() if worth > 0 and name != target),
                members,
            )
        )
    paths = read_json(folder / "image_splits" / f"split.rc2.{split}.json")
    if not isinstance(paths, dict):
        raise ValueError(f"{folder}: image_splits must map names to paths, got {type(paths).__name__}.")
    return _unique(found), {str(name): str(path).removeprefix("./") for name, path in paths.items()}


def read_circo(folder: Path, split: str) -> list[Triplet]:
    """Queries of CIRCO; pictures are named as COCO's files, "000000271520".

    Raises:
        FileNotFoundError: no such file.
        ValueError: a field that is missing, an empty caption.
    """
    found = []
    for place, fields in _records(folder / "annotations" / f"{split}.json"):
        caption = _worded(place, [text_field(place, fields, "relative_caption")])
        target = _coco(place, fields["target_img_id"]) if "target_img_id" in fields else ""
        right = tuple(_coco(place, each) for each in fields.get("gt_img_ids", ()))
        reference = _coco(place, fields.get("reference_img_id"))
        found.append(Triplet(place, id_field(place, fields, "id"), reference, target, caption[0], caption, right))
    return _unique(found)


def _coco(place: Place, number: Any) -> str:
    if not isinstance(number, int):
        raise ValueError(f"{place}: pictures are numbers in CIRCO, got {number!r}.")
    return f"{number:012d}"


def _worded(place: Place, texts: Sequence[str]) -> tuple[str, ...]:
    if not texts or not all(text and not text.isspace() for text in texts):
        raise ValueError(f"{place}: an empty caption says nothing of what to change. Fill it, or remove the query.")
    return tuple(texts)


def _names(place: Place, fields: Fields, name: str) -> tuple[str, ...]:
    value = fields.get(name, ())
    if not isinstance(value, list | tuple):
        raise ValueError(f"{place}: field '{name}' must be a list, got {value!r}.")
    return tuple(str(each) for each in value)


def _unique(triplets: list[Triplet]) -> list[Triplet]:
    seen: set[str] = set()
    for triplet in triplets:
        if triplet.name in seen:
            raise ValueError(f"{triplet.place}: a query named '{triplet.name}' was there before; names must be unique.")
        seen.add(triplet.name)
    return triplets


def _records(path: Path) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    if path.suffix != ".json":
        yield from read_records(path)
        return
    records = read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path}: must be a list of records, got {type(records).__name__}.")
    for number, record in enumerate(records, start=1):
        place = Place(path, number, "record")
        if not isinstance(record, dict):
            raise ValueError(f"{place}: must be an object {{...}}, got {record!r}.")
        yield place, record
