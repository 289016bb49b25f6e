"""Two crops of each picture: who draws them, where they come from, and what is said when it cannot be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from datamodules.batch import Batch
from datamodules.two_crops import AGAIN, SPACE, MoCoV2Crop, TwoCropsData
from miners import Ragged, Row, StaticNegatives
from tests.pictures import write_classes


def ready(folder: Path, **options: Any) -> TwoCropsData:
    data = TwoCropsData(str(folder), **{"size": 16, "batch_size": 5, **options})
    data.setup("fit")
    return data


def epoch(data: TwoCropsData, number: int = 0) -> list[Batch]:
    data.batches.set_epoch(number)
    return list(data.train_dataloader())


def crops(batches: list[Batch]) -> dict[int, torch.Tensor]:
    """(2, C, H, W) both crops of each picture, by id."""
    return {
        int(i): torch.stack([batch.inputs[SPACE][at], batch.inputs[AGAIN][at]])
        for batch in batches
        for at, i in enumerate(batch.items[SPACE].ids)
    }


def test_folders_of_splits_and_classes(tmp_path: Path) -> None:
    data = ready(write_classes(tmp_path))
    assert data.classes == ("blue", "green", "red")
    assert {split: len(data.ids(split)) for split in ("train", "val")} == {"train": 18, "val": 18}
    assert (data.val_split, data.test_split) == ("val", None)
    assert data.text_of(data.ids("val")[:1], SPACE) == ["blue · val/blue/0.JPEG"]
    assert len(data.labelled(0.5)) == 9
    qrels = data.qrels("val")
    assert sorted(qrels["val/red/0.JPEG"]) == [f"train/red/{i}.JPEG" for i in range(6)]
    (batch, *_) = data.pictures_of(data.ids("val"))
    assert batch.inputs[SPACE].shape == (18, 3, 16, 16)
    assert torch.equal(data.depict(1, SPACE), data.pictures.picture(1))
    assert data.depict(1, SPACE).shape == (3, 24, 28)  # not cut
    assert len(data.val_dataloader()) == 1
    assert data.test_dataloader() == []


def test_a_batch_holds_two_different_crops(tmp_path: Path) -> None:
    data = ready(write_classes(tmp_path))
    batch = epoch(data)[0]
    assert batch.inputs[SPACE].shape == batch.inputs[AGAIN].shape == (5, 3, 16, 16)
    assert batch.inputs[SPACE].dtype == torch.uint8
    assert not torch.equal(batch.inputs[SPACE], batch.inputs[AGAIN])
    assert batch.items[AGAIN].ids.tolist() == batch.items[SPACE].ids.tolist() == batch.known.values.tolist()
    assert batch.items[SPACE].labels is None
    assert ready(tmp_path, mask_labels=True).train_dataloader().__iter__().__next__().items[SPACE].labels is not None


def test_crops_depend_on_seed_epoch_and_row_alone(tmp_path: Path) -> None:
    folder = write_classes(tmp_path)
    first = crops(epoch(ready(folder)))
    assert len(first) == 18
    random = torch.get_rng_state()
    ready(folder).collate_rows()([Row(0, 0)])
    assert torch.equal(torch.get_rng_state(), random)
    for other in (ready(folder, batch_size=7), ready(folder, num_workers=2)):
        found = crops(epoch(other))
        assert all(torch.equal(found[i], crop) for i, crop in first.items())
    for other, number in ((ready(folder, seed=1), 0), (ready(folder), 1)):
        found = crops(epoch(other, number))
        assert not any(torch.equal(found[i], crop) for i, crop in first.items())


def test_workers_that_live_on_draw_new_crops(tmp_path: Path) -> None:
    data = ready(write_classes(tmp_path), num_workers=1)
    loader, found = data.train_dataloader(), []
    for number in range(2):
        data.batches.set_epoch(number)
        found.append(crops(list(loader)))
    assert not torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[1][0], crops(epoch(data, 1))[0])


def test_splits_by_columns(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    lines = [f"train/{name}/{i}.JPEG,{name},{i}" for name in ("red", "green") for i in range(6)]
    (root / "metadata.csv").write_text("\n".join(["file,label,drawer", *lines]))
    splits = {"train": {"drawer": [0, 1, 2]}, "test": {"drawer": [5]}}
    data = ready(root, splits=splits)
    assert data.names(SPACE)[int(data.ids("test")[0])] == "train/red/5.JPEG"
    assert (len(data.ids("train")), data.val_split, data.test_split) == (6, None, "test")
    with pytest.raises(ValueError, match="in the splits 'train' and 'test'"):
        ready(root, splits={"train": {"drawer": [0, 1]}, "test": {"drawer": [1]}})
    with pytest.raises(ValueError, match="nobody says what is trained on"):
        ready(root)


def test_augmentations_of_torchvision_or_your_own(tmp_path: Path) -> None:
    folder = write_classes(tmp_path)
    data = ready(folder, augmentation=v2.CenterCrop(8))
    batch = epoch(data)[0]
    assert torch.equal(batch.inputs[SPACE], batch.inputs[AGAIN])
    assert batch.inputs[SPACE].shape[2:] == (8, 8)
    with pytest.raises(ValueError, match="different shapes"):
        epoch(ready(folder, augmentation=v2.Identity()))


@pytest.mark.parametrize("channels", [1, 3])
def test_mocos_own_crop(channels: int) -> None:
    picture = torch.randint(256, (channels, 40, 30), dtype=torch.uint8)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        made = [MoCoV2Crop(20)(picture) for _ in range(5)]
    assert all(crop.shape == (channels, 20, 20) and crop.dtype == torch.uint8 for crop in made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"label_share": 0.0}, "label_share=0.0"),
        ({"splits": {"training": {}}}, r"splits=\['training'\]"),
        ({"sources": [StaticNegatives(Ragged.from_lists([[1]]))]}, "no drawn negatives"),
        ({"batch_size": 100, "drop_last": True}, "18 training pictures are fewer than a batch"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ready(write_classes(tmp_path), **options)


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no split 'test'"):
        ready(write_classes(tmp_path)).ids("test")
