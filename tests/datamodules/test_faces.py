"""Faces: who is trained on, what is evaluated, and the layouts of public sets."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from datamodules import FacesData
from datamodules.faces import FaceTest, draw_pairs
from miners import BalancedClasses
from tests.faces import face, write_bin, write_lfw, write_table

SPLIT = {"train": {"split": ["train"]}, "val": FaceTest(where={"split": ["val"]})}


def read(folder: Path, **options: object) -> FacesData:
    data = FacesData(str(folder), size=16, channels=1, batch_size=8, **options)
    data.setup("fit")
    return data


def test_splits_of_a_table(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "orl")
    test = FaceTest(where={"split": ["test"]}, pairs=str(folder / "pairs_test.csv"))
    data = read(folder, **SPLIT, test=test)
    assert len(data.training_ids) == 24
    assert data.classes == tuple(f"s{i:02d}" for i in range(6))
    assert data.labels[data.training_ids].unique().tolist() == list(range(6))
    found = data.split("test")
    assert (len(found.ids), len(found.pairs)) == (8, 28)
    assert data.text_of(found.gallery, "image") == ["s08/00.png", "s09/00.png"]
    assert len(found.probes) == 6
    assert data.qrels("test")["s09/03.png"] == {"s09/00.png": 1}
    assert data.text_of([1], "class") == ["s01"]
    assert torch.equal(data.depict(1, "class"), data.picture(4))  # the first of four
    assert torch.equal(data.depict(1, "image"), data.picture(1))
    val = data.split("val")  # its pairs are drawn: two identities of four pictures
    assert (int(val.same.sum()), int((~val.same).sum())) == (12, 16)
    assert len(data.batches) == 3


def test_a_batch(tmp_path: Path) -> None:
    data = read(write_table(tmp_path), **SPLIT, batch_miner=BalancedClasses(2))
    batch = next(iter(data.train_dataloader()))
    items = batch.items["image"]
    assert batch.inputs["image"].shape == (8, 1, 16, 16)
    assert batch.inputs["image"].dtype == torch.uint8
    assert items.labels.bincount().unique().tolist() in ([0, 2], [2])
    assert len(items.content.unique()) == 8
    assert items.space == "image"
    (ids,) = (loaded.items["image"].ids for loaded in data.val_dataloader())
    assert ids.tolist() == data.split("val").ids.tolist()
    assert sum(len(loaded) for loaded in data.predict_dataloader()[0]) == 40


def test_training_is_what_no_evaluation_takes(tmp_path: Path) -> None:
    data = read(write_table(tmp_path), test=FaceTest(where={"split": ["test", "val"]}))
    assert len(data.classes) == 6


def test_identities_with_few_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/1", "a/2", "b/1"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(face(0, 0))
    assert read(tmp_path).classes == ("a", "b")  # one picture is enough for a centre
    with caplog.at_level(logging.INFO):
        assert read(tmp_path, min_pictures=2).classes == ("a",)
    assert "1 identities have fewer than min_pictures=2" in caplog.text
    with pytest.raises(ValueError, match="no picture to train on"):
        read(tmp_path, min_pictures=3)


def test_lfw_beside_the_training_set(tmp_path: Path) -> None:
    write_lfw(tmp_path)
    test = FaceTest(str(tmp_path / "lfw"), pairs=str(tmp_path / "pairs.txt"))
    data = read(write_table(tmp_path / "ms1m"), test=test)
    found = data.split("test")
    assert len(data.classes) == 10  # nobody of the training folder is held out
    assert found.fold.bincount().tolist() == [4, 4]
    assert data.text_of(found.pairs[0], "image") == ["lfw/PA/PA_0001.png", "lfw/PA/PA_0002.png"]
    assert len(found.probes) == 4
    assert int(found.ids.min()) == 40
    assert data.picture(40).shape == (1, 16, 16)


def test_a_bin_set(tmp_path: Path) -> None:
    data = read(write_table(tmp_path / "ms1m"), val=FaceTest(str(write_bin(tmp_path / "lfw.bin"))))
    found = data.split("val")
    assert (len(found.ids), len(found.pairs), len(found.probes)) == (20, 10, 0)
    assert found.fold.tolist() == list(range(10))
    assert data.picture(int(found.pairs[0, 1])).shape == (1, 16, 16)
    assert data.queries("val")[1] == []


def test_a_gallery_by_a_column(tmp_path: Path) -> None:
    folder = write_table(tmp_path, identities=2, each=2, train=0, val=0)
    lines = (folder / "metadata.csv").read_text().splitlines()
    kinds = ["kind", "smiling", "neutral", "smiling", "neutral"]
    (folder / "metadata.csv").write_text("\n".join(f"{line},{kind}" for line, kind in zip(lines, kinds, strict=True)))
    data = FacesData(str(folder), test=FaceTest(where={"split": ["test"]}, gallery={"kind": ["neutral"]}), size=16)
    data.setup("test")
    assert data.text_of(data.split("test").gallery, "image") == ["s00/01.png", "s01/01.png"]
    assert data.text_of(data.split("test").probes, "image") == ["s00/00.png", "s01/00.png"]


def test_open_and_closed_sets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_table(tmp_path)
    with pytest.raises(ValueError, match=r"'s00/00.png' is trained on and evaluated \(24 such pictures\)"):
        read(folder, train={"split": ["train"]}, val=FaceTest(where={"split": ["train"]}))
    lines = (folder / "metadata.csv").read_text().replace("s00/00.png,s00,train", "s00/00.png,s00,val")
    (folder / "metadata.csv").write_text(lines)
    with caplog.at_level(logging.WARNING):
        read(folder, **SPLIT)
    assert "1 evaluated pictures show identities that are trained on: no open set" in caplog.text


def test_drawn_pairs() -> None:
    labels = torch.arange(2000) // 4
    pairs = draw_pairs(torch.arange(2000) + 7, labels)
    assert int(pairs.same.sum()) == 1500 // 4 * 6  # of 1,500 pictures, whole identities
    assert int((~pairs.same).sum()) == 3000
    assert torch.equal(labels[pairs.rows[:, 0] - 7] == labels[pairs.rows[:, 1] - 7], pairs.same)
    assert (pairs.fold.bincount().max() - pairs.fold.bincount().min()) <= 2
    assert torch.equal(pairs.rows, draw_pairs(torch.arange(2000) + 7, labels).rows)
    with pytest.raises(ValueError, match="2 pictures make 0 genuine and 1 impostor pairs"):
        draw_pairs(torch.arange(2), torch.arange(2))


def test_mistakes(tmp_path: Path) -> None:
    folder = write_table(tmp_path)
    with pytest.raises(ValueError, match=r"has no split 'test'. Set data.init_args.test"):
        read(folder, **SPLIT).split("test")
    with pytest.raises(ValueError, match="size=0"):
        FacesData(str(folder), size=0)
    with pytest.raises(ValueError, match="24 training pictures are fewer than a batch"):
        read(folder, **SPLIT, drop_last=True).__class__(str(folder), **SPLIT, batch_size=32, drop_last=True).setup(
            "fit"
        )
