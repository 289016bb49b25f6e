"""The page of nearest neighbours, against brute force; tests/hardneg/modules/test_moco.py runs it in a fit."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import TwoCropsData
from hardneg.callbacks import DrawNeighbours
from hardneg.callbacks.neighbours import spread
from hardneg.metrics.classification import ClassMeasures, evaluate_classes
from tests.pictures import COLOURS, write_classes

ITEM = re.compile(
    r'<li class="(\w+)( last)?" title="(.*?)"><img src="data:image/jpeg;base64,(.*?)".*?<b>(.*?)</b>.*?>([-\d.]+)<'
)


@pytest.fixture
def data(tmp_path: Path) -> TwoCropsData:
    made = TwoCropsData(str(write_classes(tmp_path / "set", each=5)), size=16, batch_size=5)
    made.setup("fit")
    return made


def measured(data: Any, vectors: torch.Tensor, k: int = 3) -> ClassMeasures:
    train, queries = data.ids("train"), data.ids("val")
    found = {"image": vectors[train]}, {"image": vectors[queries]}
    return evaluate_classes(found[0], train, data.labels, found[1], queries, data.names("image"), k)


def vectors_of(data: TwoCropsData, noise: float) -> torch.Tensor:
    """The class, and noise that hides some of them."""
    one_hot = torch.nn.functional.one_hot(data.labels, len(data.classes)).float()
    return one_hot + noise * torch.randn(one_hot.shape, generator=torch.Generator().manual_seed(0))


def colour(packed: str) -> str:
    """Which of the classes a picture shows."""
    mean = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed)))).mean((0, 1))
    return min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))


def articles(page: str) -> dict[str, tuple[str, str, str, list[tuple[str, ...]]]]:
    """Of each query by name: its class, what it is taken for, its picture, and its neighbours."""
    found = {}
    for part in page.split("<article")[1:]:
        label, *voted = re.findall(r"<b>(.*?)</b>", part.split("<ol>")[0])
        (name,), (picture,) = (
            re.findall(r"<small>(.*?)</small>", part),
            re.findall('base64,(.*?)"', part.split("<ol>")[0]),
        )
        found[name] = label, *(voted or [label]), picture, ITEM.findall(part)
    return found


def test_neighbours_are_those_of_brute_force(data: TwoCropsData, tmp_path: Path) -> None:
    vectors = vectors_of(data, 0.8)
    (file,) = DrawNeighbours(wrong=100, right=100, found=6).draw(measured(data, vectors), data, "val", tmp_path / "run")
    page = file.read_text()
    shown, names, wrong = articles(page), list(data.names("image")), 0
    assert set(shown) == {names[i] for i in data.ids("val").tolist()}
    unit, train = torch.nn.functional.normalize(vectors.double(), dim=1), data.ids("train")
    for name, (label, voted, picture, neighbours) in shown.items():
        row = names.index(name)
        assert label == colour(picture) == data.classes[int(data.labels[row])]
        cosines = unit[train] @ unit[row]
        order = cosines.argsort(descending=True)[:6].tolist()
        votes: dict[str, float] = {}
        for i in order[:3]:
            votes[data.classes[int(data.labels[train[i]])]] = (
                votes.get(data.classes[int(data.labels[train[i]])], 0) + 1 + float(cosines[i])
            )
        assert voted == max(votes, key=lambda kind: votes[kind])
        wrong += voted != label
        assert [each[2] for each in neighbours] == [names[int(train[i])] for i in order]
        assert [float(each[5]) for each in neighbours] == pytest.approx([float(cosines[i]) for i in order], abs=6e-4)
        for mark, _, neighbour, packed, kind, _ in neighbours:
            assert kind == colour(packed) == neighbour.split("/")[1]
            assert mark == ("right" if kind == label else "wrong")
        assert [bool(each[1]) for each in neighbours] == [False, False, True, False, False, False]  # three voted
    assert 2 < wrong < 13
    assert f"{wrong} of {wrong} pictures." in page
    assert f"{15 - wrong} of {15 - wrong} pictures." in page
    first_right = page.index("Taken for what they are")
    assert all((page.index(name) < first_right) == (of[0] != of[1]) for name, of in shown.items())
    assert "The first 3, up to the line, vote" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "<script" not in page


def test_some_of_each_class_are_shown(data: TwoCropsData, tmp_path: Path) -> None:
    (file,) = DrawNeighbours(wrong=2, right=6, found=50).draw(
        measured(data, vectors_of(data, 0.01)), data, "val", tmp_path
    )
    page = file.read_text()
    shown = articles(page)
    assert sorted(of[0] for of in shown.values()) == sorted([*COLOURS] * 2)
    assert all(len(of[3]) == 15 for of in shown.values())  # no more than there are
    assert "Of these pictures none is taken for another class." in page
    assert "6 of 15 pictures." in page
    assert "right for 15 of 15 pictures (1.000)" in page
    (file,) = DrawNeighbours(wrong=2, right=0).draw(measured(data, vectors_of(data, 0.8)), data, "val", tmp_path)
    assert "Taken for what they are" not in file.read_text()
    (file,) = DrawNeighbours(found=1).draw(measured(data, vectors_of(data, 0.8), k=1), data, "val", tmp_path)
    assert "The nearest votes." in file.read_text()


def test_names_are_escaped(data: TwoCropsData, tmp_path: Path) -> None:
    measures, hostile = measured(data, vectors_of(data, 0.8)), "<script>alert('1')</script>"
    data.pictures.classes = (hostile, *data.classes[1:])
    (file,) = DrawNeighbours().draw(measures, data, hostile, tmp_path)
    assert hostile not in file.read_text()
    assert "&lt;script&gt;" in file.read_text()


def test_nothing_is_drawn_without_classes_or_pictures(data: TwoCropsData, tmp_path: Path) -> None:
    measures = measured(data, vectors_of(data, 0.8))
    assert DrawNeighbours().draw(object(), data, "val", tmp_path / "run") == []
    windows = SimpleNamespace(spaces=("inertial",), depict=lambda i, space: None)
    assert DrawNeighbours().draw(measures, windows, "val", tmp_path / "run") == []
    assert DrawNeighbours().draw(measures, SimpleNamespace(spaces=("own",)), "val", tmp_path / "run") == []
    assert not (tmp_path / "run").exists()


def test_spread() -> None:
    labels = torch.tensor([5, 0, 0, 0, 0, 0, 0, 2, 2, 7])
    assert labels[spread(labels, 4)].tolist() == [0, 2, 5, 7]
    assert labels[spread(labels, 5)].tolist() == [0, 0, 2, 5, 7]
    assert labels[spread(labels, 7)].tolist() == [0, 0, 0, 2, 2, 5, 7]
    assert spread(labels, 100).sort()[0].tolist() == list(range(10))
    assert labels[spread(labels, 2)].tolist() == [0, 7]
    assert spread(labels, 0).tolist() == spread(labels[:0], 3).tolist() == []


@pytest.mark.parametrize("options", [{"wrong": 0, "right": 0}, {"wrong": -1}, {"right": -1}, {"found": 0}])
def test_arguments(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 picture and 1 neighbour"):
        DrawNeighbours(**options)
