"""Data modules of composed retrieval: files in, triplets and galleries out; and what is wrong with files, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import CIRCOData, CIRRData, FashionIQData, TripletsData
from miners.base import Row
from tests.composed import edits, picture, write_circo, write_cirr, write_fashioniq, write_triplets


def triplets(folder: Path, **options: Any) -> TripletsData:
    options = {"size": 16, "batch_size": 8, **options}
    return TripletsData(str(folder / "pictures"), str(folder), **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_triplets(tmp_path / "set")


def change(file: Path, how: Callable[[list[dict[str, Any]]], None]) -> None:
    records = json.loads(file.read_text())
    how(records)
    file.write_text(json.dumps(records))


def test_a_batch_holds_pictures_texts_and_ids(folder: Path) -> None:
    data = triplets(folder)
    data.setup("fit")
    assert len(data.table) == len(edits()) == 96
    batch = next(iter(data.train_dataloader()))
    query, ids = batch.inputs["query"], batch.items["target"].ids
    assert batch.inputs["target"].shape == query["reference"].shape == (8, 3, 16, 16)
    names = data.names("image")
    wanted = {(f"{a}.png", f"{b}.png", text) for a, b, text in edits()}
    found = zip(query["ids"].tolist(), ids.tolist(), query["text"], strict=True)
    assert {(names[a], names[b], text) for a, b, text in found} <= wanted
    assert torch.equal(batch.inputs["target"][0], data.picture(int(ids[0])))
    assert torch.equal(data.depict(int(ids[0]), "image"), data.picture(int(ids[0])))
    query_ids = batch.items["query"].ids.tolist()
    assert all(torch.equal(data.depict(i, "query"), query["reference"][row]) for row, i in enumerate(query_ids))
    assert batch.known.to_lists() == [[i] for i in ids.tolist()]
    data.with_pictures = False
    assert torch.equal(next(iter(data.train_dataloader())).inputs["target"], ids)


def test_masked_references_and_soft_targets_are_known(tmp_path: Path) -> None:
    data = CIRRData(str(write_cirr(tmp_path / "cirr")), size=16, mask_reference=True, soft_targets=True)
    data.setup("fit")
    batch = data.collate_rows()([Row(1, 0), Row(2, 0)])
    names = data.names("image")
    known = [{names[i] for i in of} for of in batch.known.to_lists()]
    (a, b, _), (c, d, _) = edits()[1:3]
    assert known == [{f"train-{b}", f"train-{a}", "train-red_middle"}, {f"train-{d}", f"train-{c}"}]


def test_t4_equal_pixels_are_one_picture(folder: Path) -> None:
    """Two names of one picture share an id, whatever their bytes; a triplet between them is dropped."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(picture("red", "left"))).save(file, "BMP")
    (folder / "pictures" / "twin.bmp").write_bytes(file.getvalue())
    change(
        folder / "triplets_train.json",
        lambda records: records.extend(
            [
                {"id": "x", "reference": "twin.bmp", "target": "red_left.png", "text": "the same"},
                {"id": "y", "reference": "twin.bmp", "target": "red_top.png", "text": "to the top"},
            ]
        ),
    )
    for twins, rows in (("pixels", 97), ("bytes", 98), ("none", 98)):
        data = triplets(folder, twins=twins)
        data.setup("fit")
        assert len(data.table) == rows
        same = data.references[-1] == data.names("image").position("red_left.png")
        assert bool(same) == (twins == "pixels")


def test_right_answers_by_a_column_and_groups(folder: Path) -> None:
    data = triplets(
        folder,
        picture_table=str(folder / "pictures.csv"),
        same="caption",
        gallery={"train": {"split": ["train"]}},
        group="edit",
        val="train",
        train=None,
    )
    change(
        folder / "triplets_train.json",
        lambda records: records.__setitem__(slice(None), [each for each in records if "top" not in each["target"]]),
    )
    data.setup("validate")
    split = data.split("train")
    assert len(split.galleries[""]) == 12
    assert set(split.groups) == {"make", "to"}
    assert set(split.right.lengths.tolist()) == {3}  # three places of the target's colour
    data = triplets(folder, picture_table=str(folder / "pictures.csv"), group="split", train=None, val="val")
    data.setup("validate")
    assert set(data.split("val").groups) <= {"train", "test"}


def test_fashioniq_reads_both_galleries_and_four_wordings(tmp_path: Path) -> None:
    folder = write_fashioniq(tmp_path / "fiq")
    change(folder / "image_splits" / "split.dress.val.json", lambda names: names.append("blue_left"))
    for gallery, number in (("original", 9), ("val", 8)):
        data = FashionIQData(str(folder), categories=["dress", "shirt"], gallery=gallery, size=16)
        data.setup("fit")
        split = data.split("val")
        assert len(split.galleries["dress"]) == number
        assert len(split.galleries["shirt"]) == 8
    _, b, text = edits()[0]
    assert data.text_of(split.ids[:1], "query") == [f"{text} and is {b.split('_')[0]}"]
    collate, seen = data.collate_rows(), set()
    for epoch in range(40):
        seen |= set(collate([Row(0, 0, (), epoch)]).inputs["query"]["text"])
    assert seen == {"make it green and is green", "is green and make it green", "make it green", "is green"}


def test_cirr_and_circo(tmp_path: Path) -> None:
    data = CIRRData(str(write_cirr(tmp_path / "cirr")), size=16)
    data.setup("fit")
    split = data.split("val")
    assert len(split.galleries[""]) == 16
    assert split.subsets.lengths.unique().tolist() == [6]
    assert data.names("image")[int(split.galleries[""][0])].startswith("val-")
    circo = CIRCOData(str(write_circo(tmp_path / "circo")), size=16)
    circo.setup("validate")
    assert circo.split("val").right.lengths.unique().tolist() == [2]
    assert len(circo.split("val").galleries[""]) == 16


def test_the_same_row_and_epoch_draw_the_same_text(tmp_path: Path) -> None:
    data = FashionIQData(str(write_fashioniq(tmp_path / "fiq")), categories=["dress"], size=16)
    data.setup("fit")
    rows = [Row(row, 0, (), 3) for row in range(20)]
    whole = data.collate_rows()(rows).inputs["query"]["text"]
    assert data.collate_rows()(rows[7:9]).inputs["query"]["text"] == whole[7:9]


def test_padding_is_clip4cirs() -> None:
    data = triplets(Path("nowhere"), fit="pad")
    wide = torch.full((3, 16, 40), 255, dtype=torch.uint8)
    out = data._resized(wide)  # 40 / 1.25 = 32 high: 8 black rows above and below, then the middle 32 columns
    assert out.shape == (3, 16, 16)
    assert out[0, 0].max() == 0
    assert out[0, 8].min() == 255
    square = torch.randint(0, 255, (3, 16, 18), dtype=torch.uint8)
    assert torch.equal(data._resized(square), square[:, :, 1:17])


# ---- what is wrong, by name ----------------------------------------------------------------------------------------


def test_an_unknown_target_is_named(folder: Path) -> None:
    change(folder / "triplets_train.json", lambda records: records[4].update(target="pink_left.png"))
    with pytest.raises(ValueError, match=r"triplets_train.json, record 5: target 'pink_left.png' is none of the 16"):
        triplets(folder).setup("fit")


def test_an_unknown_reference_and_a_missing_picture_of_a_split(tmp_path: Path) -> None:
    folder = write_cirr(tmp_path / "cirr")
    (folder / "train" / "0" / "red_left.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"red_left.png: cannot be read"):
        CIRRData(str(folder), size=16).setup("fit")
    fiq = write_fashioniq(tmp_path / "fiq")
    (fiq / "images" / "red_top.png").unlink()
    with pytest.raises(ValueError, match=r"cap.dress.train.json, record \d+: (reference|target) 'red_top' is none of"):
        FashionIQData(str(fiq), categories=["dress"], size=16).setup("fit")


def test_a_corrupt_picture_is_named_before_training(folder: Path) -> None:
    file = folder / "pictures" / "red_left.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"pictures: 'red_left.png': is no picture that can be read"):
        triplets(folder).setup("fit")


@pytest.mark.parametrize("text", ["", "  ", None])
def test_an_empty_caption_is_named(folder: Path, text: str | None) -> None:
    change(folder / "triplets_train.json", lambda records: records[2].update(text=text))
    with pytest.raises(ValueError, match=r"triplets_train.json, record 3: an empty caption"):
        triplets(folder).setup("fit")


def test_one_of_fashioniqs_captions_may_be_empty(tmp_path: Path) -> None:
    """A query of val has one; it stays, and training asks with the other."""
    folder = write_fashioniq(tmp_path / "fiq")
    for split in ("train", "val"):
        file = folder / "captions" / f"cap.dress.{split}.json"
        change(file, lambda records: records[0].update(captions=["is red", "."]))
    data = FashionIQData(str(folder), categories=["dress"], size=16)
    data.setup("fit")
    assert data.wordings[0] == ("is red",)
    assert data.text_of(data.split("val").ids[:1], "query") == ["is red and "]


def test_empty_captions_of_fashioniq_are_named(tmp_path: Path) -> None:
    folder = write_fashioniq(tmp_path / "fiq")
    file = folder / "captions" / "cap.dress.train.json"
    change(file, lambda records: records[1].update(captions=[" ", "., "]))
    with pytest.raises(ValueError, match=r"cap.dress.train.json, record 2: an empty caption"):
        FashionIQData(str(folder), categories=["dress"], size=16).setup("fit")


def test_answers_outside_the_gallery_names_twice_and_splits_without_answers(folder: Path) -> None:
    gallery = {"val": {"split": ["train"]}}
    data = triplets(folder, picture_table=str(folder / "pictures.csv"), gallery=gallery, train=None)
    with pytest.raises(ValueError, match=r"the answer '\w+_top.png' is not in the gallery"):
        data.setup("validate")
    change(folder / "triplets_val.json", lambda records: records[1].update(id=records[0]["id"]))
    with pytest.raises(ValueError, match=r"record 2: a query named 'val-\d+' was there before"):
        triplets(folder, train=None).setup("validate")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 0}, "at least 1 pixel"), ({"fit": "crop"}, "stretch or pad"), ({"same": "state"}, "set picture_table")],
)
def test_arguments(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        triplets(tmp_path, **options)
