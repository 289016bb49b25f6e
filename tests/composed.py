"""Tiny sets for composed retrieval in the layouts of real ones: a coloured square at a place; texts change either."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}
PLACES = {"left": (2, 6), "middle": (6, 6), "right": (10, 6), "top": (6, 1)}


def picture(colour: str, place: str, size: int = 16) -> bytes:
    """A PNG."""
    array = np.full((size, size, 3), 255, dtype=np.uint8)
    x, y = PLACES[place]
    array[y : y + 5, x : x + 5] = COLOURS[colour]
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def edits() -> list[tuple[str, str, str]]:
    """Reference, target and text of every edit."""
    found = []
    for colour in COLOURS:
        for place in PLACES:
            found += [(f"{colour}_{place}", f"{new}_{place}", f"make it {new}") for new in COLOURS if new != colour]
            found += [(f"{colour}_{place}", f"{colour}_{new}", f"to the {new}") for new in PLACES if new != place]
    return found


def write_pictures(folder: Path) -> Path:
    """All sixteen, as colour_place.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        for place in PLACES:
            (folder / f"{colour}_{place}.png").write_bytes(picture(colour, place))
    return folder


def write_triplets(folder: Path) -> Path:
    """pictures/, pictures.csv (state: the colour), triplets_{train,val,test}.json in the layout of emoji_cir."""
    write_pictures(folder / "pictures")
    names = [f"{colour}_{place}.png" for colour in COLOURS for place in PLACES]
    rows = [f"{name},{name.split('_')[0]},{'test' if 'top' in name else 'train'}" for name in names]
    (folder / "pictures.csv").write_text("\n".join(["file,caption,split", *rows]) + "\n")
    lines = [
        {"reference": f"{a}.png", "target": f"{b}.png", "text": text, "edit": text.split()[0]} for a, b, text in edits()
    ]
    for number, split in enumerate(("train", "val", "test")):
        own = [line | {"id": f"{split}-{at}"} for at, line in enumerate(lines) if split == "train" or at % 8 == number]
        if split != "train":
            for line in own:
                line["subset"] = list(dict.fromkeys([line["reference"], line["target"], *names[:6]]))[:6]
        (folder / f"triplets_{split}.json").write_text(json.dumps(own))
    return folder


def write_words(folder: Path) -> None:
    """A tokenizer of one token per word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)


def write_fashioniq(folder: Path) -> Path:
    """captions/, image_splits/ and images/ of two categories, in both splits."""
    write_pictures(folder / "images")
    for part in ("captions", "image_splits"):
        (folder / part).mkdir(parents=True)
    for category, colours in (("dress", ("red", "green")), ("shirt", ("blue", "grey"))):
        own = [(a, b, text) for a, b, text in edits() if a.split("_")[0] in colours and b.split("_")[0] in colours]
        for split in ("train", "val"):
            records = [
                {"target": b, "candidate": a, "captions": [f"{text}.", f" is {b.split('_')[0]}, "]}
                for a, b, text in own
            ]
            (folder / "captions" / f"cap.{category}.{split}.json").write_text(json.dumps(records))
            names = [f"{colour}_{place}" for colour in colours for place in PLACES]
            (folder / "image_splits" / f"split.{category}.{split}.json").write_text(json.dumps(names))
    return folder


def write_cirr(folder: Path) -> Path:
    """captions/, image_splits/, train/0/ and dev/."""
    for part in ("captions", "image_splits", "train/0", "dev"):
        (folder / part).mkdir(parents=True)
    for split, place in (("train", "train/0"), ("val", "dev")):
        write_pictures(folder / place)
        names = [f"{colour}_{where}" for colour in COLOURS for where in PLACES]
        records = [
            {
                "pairid": (split == "val") * 1000 + at,
                "reference": f"{split}-{a}",
                "target_hard": f"{split}-{b}",
                "target_soft": {f"{split}-{b}": 1.0, f"{split}-{names[at % 16]}": 1.0 if at % 2 else -1.0},
                "caption": text,
                "img_set": {"id": at, "members": [f"{split}-{n}" for n in list(dict.fromkeys([a, b, *names[:6]]))[:6]]},
            }
            for at, (a, b, text) in enumerate(edits())
        ]
        (folder / "captions" / f"cap.rc2.{split}.json").write_text(json.dumps(records))
        paths = {f"{split}-{name}": f"./{place}/{name}.png" for name in names}
        (folder / "image_splits" / f"split.rc2.{split}.json").write_text(json.dumps(paths))
    return folder


def write_circo(folder: Path) -> Path:
    """annotations/val.json and unlabeled2017/."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "unlabeled2017").mkdir()
    names = [f"{colour}_{where}" for colour in COLOURS for where in PLACES]
    for number, name in enumerate(names):
        (folder / "unlabeled2017" / f"{number:012d}.png").write_bytes(picture(*name.split("_")))
    records = [
        {
            "id": at,
            "reference_img_id": names.index(a),
            "target_img_id": names.index(b),
            "relative_caption": text,
            "shared_concept": "a square",
            "gt_img_ids": [names.index(b), (names.index(b) + 1) % 16],
        }
        for at, (a, b, text) in enumerate(edits()[::4])
    ]
    (folder / "annotations" / "val.json").write_text(json.dumps(records))
    return folder
