"""Pictures and captions: who is whose positive, what made negatives become, and what a wrong file is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules import CaptionsData, DiagramsData
from datamodules.batch import Batch
from miners import ClusterNegatives, Draw, GeneratedNegatives, NegativeSource
from miners.base import Make
from miners.caption_edits import NumberEdit, OrderEdit
from miners.draws import RowGenerator

LINES = [
    ("a.png", "2 red dots", "train", "f"),
    ("b.png", "3 red dots", "train", "f"),
    ("c.png", "2  Red dots", "train", ""),
    ("d.png", "a blue dot", "train", ""),
    ("d.png", "1 dot, blue", "train", ""),
    ("e.png", "a green dot", "test", ""),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number, name in enumerate("abcdeghi"):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / "images" / f"{name}.png")
    Image.new("RGB", (8, 8), (0, 0, 0)).save(tmp_path / "images" / "same.png")  # as a.png
    write(tmp_path, LINES)
    return tmp_path


def write(folder: Path, lines: list[tuple[str, ...]]) -> None:
    text = "".join(",".join(f'"{field}"' for field in line) + "\n" for line in lines)
    (folder / "metadata.csv").write_text("file,caption,split,family\n" + text)


def give(folder: Path, *records: dict[str, str]) -> None:
    (folder / "negatives.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def ready(folder: Path, *sources: NegativeSource, batch_size: int = 5) -> CaptionsData:
    data = CaptionsData(str(folder), size=8, sources=sources, batch_size=batch_size)
    data.setup("fit")
    return data


def whole(data: CaptionsData) -> Batch:
    (batch,) = data.train_dataloader()
    return batch


def test_positives_are_captions_of_one_picture_or_of_equal_text(folder: Path) -> None:
    data = ready(folder)
    assert data.table.positives.to_lists() == [[0, 2], [1], [0, 2], [3, 4], [3, 4]]
    assert data.table.labels is not None
    assert data.table.labels.tolist() == [0, 0, -1, -1, -1]
    pictures = data.content[data.picture_of[:5]]
    assert pictures[0] == pictures[2]  # one caption, one thing
    assert pictures[3] == -1  # two captions: nothing to compare


def test_a_batch_without_sources(folder: Path) -> None:
    batch = whole(ready(folder))
    assert set(batch.inputs) == {"image", "caption"}
    assert batch.inputs["image"].shape == (5, 3, 8, 8)
    order = batch.rows.argsort()
    assert [batch.inputs["caption"][i] for i in order][1] == "3 red dots"


def test_made_captions_travel_with_their_row(folder: Path) -> None:
    give(folder, {"pair": "a.png", "caption": "4 red dots", "kind": "n"}, {"pair": "b.png", "caption": "3 RED dots"})
    data = ready(folder, GeneratedNegatives())
    assert data.dropped == {"equal": 1, "repeated": 0}
    batch = whole(data)
    assert batch.inputs["drawn caption"] == ["4 red dots"]
    rows = batch.items["drawn caption"].rows
    assert rows is not None
    assert batch.rows[rows].tolist() == [0]
    assert int(batch.items["drawn caption"].ids[0]) >= data._true_things  # type: ignore[index]
    assert "drawn image" not in batch.inputs


def test_made_pictures_and_captions_together(folder: Path) -> None:
    give(
        folder,
        {"pair": "a.png", "caption": "9 dots"},
        {"pair": "a.png", "file": "g.png", "caption": "3 red dots"},
        {"pair": "a.png", "file": "same.png"},
        {"pair": "b.png", "file": "h.png"},
    )
    data = ready(folder, GeneratedNegatives(), GeneratedNegatives(space="image"))
    assert data.dropped == {"equal": 1, "repeated": 0}  # same.png looks like a.png
    batch = whole(data)
    assert batch.inputs["drawn caption"] == ["9 dots"]
    assert sorted(data.text_of(batch.items["drawn image"].ids, "image")) == ["g.png", "h.png"]  # type: ignore[arg-type]
    content = dict(
        zip(data.text_of(batch.items["drawn image"].ids, "image"), batch.items["drawn image"].content, strict=True)  # type: ignore[arg-type]
    )
    assert content["g.png"] == data.content[1]  # it shows what b.png's caption says
    assert content["h.png"] == -1


def test_a_table_of_the_users_own(folder: Path) -> None:
    table = folder / "mine.csv"
    table.write_text("pair,file,kind\nb.png,g.png,shape\n")
    source = GeneratedNegatives(table, space="image")
    assert len(whole(ready(folder, source)).inputs["drawn image"]) == 1
    assert source.counts == {"shape": 1}
    table.write_text("pair,file,kind\nb.png,nowhere.png,shape\n")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png: cannot be read"):
        ready(folder, GeneratedNegatives(table, space="image"))


def test_edits_make_captions(folder: Path) -> None:
    data = ready(folder, GeneratedNegatives(edits=[NumberEdit(lowest=1)], num_negatives=9))
    batch = whole(data)
    of_row = {}
    for text, at in zip(batch.inputs["drawn caption"], batch.items["drawn caption"].rows, strict=True):  # type: ignore[arg-type]
        of_row.setdefault(int(batch.rows[at]), []).append(text)
    assert sorted(of_row[0]) == ["1 red dots", "3 red dots"]
    assert 3 not in of_row


def test_what_is_true_of_a_picture_is_never_made_its_negative(folder: Path) -> None:
    """d.png has two captions: one is an edit of the other, another picture shows it."""
    write(
        folder,
        [
            ("a.png", "a red dot", "train", ""),
            ("d.png", "a red dot and a blue bar", "train", ""),
            ("d.png", "a blue dot and a red bar", "train", ""),
            ("e.png", "a red dot and a blue bar", "train", ""),
        ],
    )
    orders = GeneratedNegatives(edits=[OrderEdit([["red", "blue"]])], num_negatives=9)
    batch = whole(ready(folder, orders))
    assert batch.rows[batch.items["drawn caption"].rows].tolist() == [3]  # type: ignore[index]
    give(folder, {"pair": "d.png", "caption": "a blue dot and a red bar"})
    with pytest.raises(ValueError, match="of 2 negatives of the space 'caption' none is left; all are true of their"):
        ready(folder, GeneratedNegatives())
    give(
        folder,
        {"pair": "d.png", "file": "g.png", "caption": "a blue dot and a red  bar"},
        {"pair": "d.png", "file": "h.png", "caption": "a green dot"},
        {"pair": "d.png", "caption": "A red dot"},
    )
    data = ready(folder, GeneratedNegatives(), GeneratedNegatives(space="image"))
    batch = whole(data)
    assert data.text_of(batch.items["drawn image"].ids, "image") == ["h.png"] * 2  # type: ignore[arg-type]
    # of both captions of d.png, and under the id by which a.png knows it for a true one
    assert batch.items["drawn caption"].ids.tolist() == [0, 0]  # type: ignore[union-attr]
    assert sorted(batch.rows[batch.items["drawn caption"].rows].tolist()) == [1, 2]  # type: ignore[index]


def test_texts_of_one_picture_are_all_its_positives(folder: Path) -> None:
    write(
        folder,
        [("a.png", "one", "train", ""), ("a.png", "two", "train", ""), ("b.png", "One", "train", "")],
    )
    data = ready(folder)
    assert data.table.positives.to_lists() == [[0, 1, 2], [0, 1, 2], [0, 2]]
    assert whole(data).known.lengths.max() == 6  # three captions, and their pictures


def test_evaluation_reads_each_pair_of_a_split(folder: Path) -> None:
    data = CaptionsData(str(folder), size=8)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch.inputs["caption"] == ["a green dot"]
    (pair,) = data.queries("test")[0].tolist()
    shown = data.depict(pair, "query")
    assert shown is not None
    assert torch.equal(shown, batch.inputs["image"][0])
    assert torch.equal(shown, data.depict(data.things.index("e.png"), "image"))
    assert data.depict(pair, "caption") is None
    assert data.val_dataloader() == []


def test_files_that_are_wrong_are_told_where(folder: Path, tmp_path: Path) -> None:
    give(folder, {"pair": "z.png", "caption": "x"})
    with pytest.raises(ValueError, match=r"negatives\.jsonl, line 1: there is no pair with the picture 'z\.png'"):
        ready(folder)
    give(folder, {"pair": "a.png"})
    with pytest.raises(ValueError, match=r"line 1: the negative of 'a\.png' has neither caption nor file"):
        ready(folder)
    give(folder, {"pair": "a.png", "file": "z.png"})
    with pytest.raises(FileNotFoundError, match=r"line 1: there is no picture 'z\.png', a negative of 'a\.png'"):
        ready(folder)
    (folder / "negatives.jsonl").unlink()
    write(folder, [("a.png", "x", "train", ""), ("z.png", "y", "train", "")])
    with pytest.raises(FileNotFoundError, match=r"metadata\.csv, line 3: .*images holds no 'z\.png'"):
        ready(folder)
    write(folder, [("a.png", " ", "train", "")])
    with pytest.raises(ValueError, match=r"line 2: 'a\.png' has an empty caption"):
        ready(folder)
    write(folder, [("a.png", "x", "training", "")])
    with pytest.raises(ValueError, match="split 'training'; wanted train, val, test"):
        ready(folder)
    write(folder, [("a.png", "x", "test", "")])
    with pytest.raises(ValueError, match="no pair in the split 'train'"):
        ready(folder)
    with pytest.raises(FileNotFoundError, match=r"holds no metadata\.csv"):
        ready(tmp_path / "nowhere")


def test_sources_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(ValueError, match="draws from the space 'document'; here are 'caption' and 'image'"):
        CaptionsData(str(folder), sources=[ClusterNegatives()])
    with pytest.raises(ValueError, match="brings no such negatives along"):
        ready(folder, GeneratedNegatives())


def test_diagrams_bring_both_along() -> None:
    sources = (GeneratedNegatives(num_negatives=2), GeneratedNegatives(space="image", num_negatives=3))
    data = DiagramsData(3, 2, 1, 1, size=16, sources=sources, batch_size=6)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert len(batch.inputs["drawn caption"]) == 12
    assert batch.inputs["drawn image"].shape == (18, 3, 16, 16)
    for side, each in (("drawn caption", 2), ("drawn image", 3)):
        assert torch.bincount(batch.items[side].rows).tolist() == [each] * 6  # type: ignore[arg-type]


def test_a_source_of_the_users_own_is_handed_what_was_made(folder: Path) -> None:
    class Mine(NegativeSource):
        space = "caption"

        def take_made(self, make: Make) -> None:
            self.lists, _, self.kinds = make("caption", None, None)

        def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
            ids = self.lists.select(rows).padded()
            return Draw(ids, ids >= 0, "mine")

    give(folder, {"pair": "a.png", "caption": "9 dots", "kind": "n"})
    source = Mine()
    assert whole(ready(folder, source)).inputs["drawn caption"] == ["9 dots"]
    assert source.kinds == ["n"]
