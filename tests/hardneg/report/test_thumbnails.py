"""Small pictures on the page of a run, beside the right texts."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from datamodules import TwoCropsData
from hardneg.metrics.classification import evaluate_classes
from hardneg.report import save_evaluation, save_thumbnails, write_report
from hardneg.report.thumbnails import Thumbnails, read_thumbnails, thumbnail
from tests.pictures import write_classes


def opened(packed: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(packed)))


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 500, 400), (90, 112)), ((1, 20, 30), (30, 20)), ((3, 128, 1024), (336, 42)), ((3, 1, 4000), (336, 1))],
)
def test_a_thumbnail_is_small_and_never_enlarged(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    picture = torch.full(shape, 255, dtype=torch.uint8)
    small = opened(thumbnail(picture))
    assert (small.size, small.format) == (size, "JPEG")
    assert small.mode == ("RGB" if shape[0] == 3 else "L")
    assert small.getextrema() in (((255, 255),) * 3, (255, 255))


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, TwoCropsData]:
    """A run of pictures with two records and two evaluations: at the start every class is taken for another."""
    data = TwoCropsData(str(write_classes(tmp_path / "set", each=4)), size=16, batch_size=4)
    data.setup("fit")
    train, queries = data.ids("train"), data.ids("val")

    def scored(i: int, score: float, **more: str) -> Mapping[str, Any]:
        return {"text": data.text_of([i], "image")[0], "score": score, "thing": f"image/{i}", **more}

    folder = tmp_path / "run"
    folder.mkdir()
    records = [
        {
            "step": step,
            "direction": "crop_to_key",
            "anchor": data.text_of([anchor], "image")[0],
            "thing": f"image/{anchor}",
            "positive": scored(anchor, 0.5),
            "negatives": [scored(i, 0.4, origin="queue") for i in negatives],
        }
        for step, anchor, negatives in ((1, int(train[0]), train[4:10].tolist()), (9, int(train[11]), []))
    ]
    (folder / "negatives.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    one_hot = torch.nn.functional.one_hot(data.labels, 3).float()
    noise = 0.01 * torch.randn(one_hot.shape, generator=torch.Generator().manual_seed(0))
    for name, vectors in (("start", one_hot.roll(1, 1)), ("final", one_hot)):
        found = {"image": one_hot[train] + noise[train]}, {"image": vectors[queries]}
        measures = evaluate_classes(found[0], train, data.labels, found[1], queries, data.names("image"))
        save_evaluation(folder, name, measures, data, "val")
    return folder, data


def test_the_page_shows_each_thing_beside_its_text(run: tuple[Path, TwoCropsData]) -> None:
    folder, data = run
    assert save_thumbnails(folder, data) == folder / "thumbnails.json"
    kept, page = read_thumbnails(folder), write_report(folder).read_text()
    names, train = list(data.names("image")), data.ids("train").tolist()
    wanted = [train[0], train[11], *train[4:8]]  # the page shows four negatives of the six
    assert set(kept.things) == {f"image/{i}" for i in wanted}
    for thing, packed in kept.things.items():
        i = int(thing.removeprefix("image/"))
        assert packed == thumbnail(data.pictures.picture(i))
        assert f'base64,{packed}" alt=""><span>{data.text_of([i], "image")[0]}' in page
    assert page.count(f'base64,{kept.things[f"image/{train[0]}"]}" alt="">{data.text_of([train[0]], "image")[0]}') == 1
    assert len(kept.queries) == 6  # that changed most
    for name, packed in kept.queries.items():
        assert packed == thumbnail(data.pictures.picture(names.index(name)))
        assert f'base64,{packed}" alt="">{data.text_of([names.index(name)], "image")[0]}' in page
    assert {name.split("/")[0] for name in kept.documents} == {"train"}
    for name, packed in kept.documents.items():
        assert packed == thumbnail(data.pictures.picture(names.index(name)))
        assert f'base64,{packed}" alt=""><span>{data.text_of([names.index(name)], "image")[0]}' in page
    assert "and from thumbnails.json" in page
    assert "img-src data:" in page
    (folder / "thumbnails.json").unlink()
    text = write_report(folder).read_text()
    assert "<img" not in text
    assert data.text_of([train[0]], "image")[0] in text  # as before


def test_things_without_pictures_keep_no_file(run: tuple[Path, TwoCropsData], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data = run
    monkeypatch.setattr(data, "depict", lambda i, space: None)
    assert save_thumbnails(folder, data) is None
    monkeypatch.undo()
    for file in ("negatives.jsonl", "evaluation.json"):
        (folder / file).unlink()
    assert save_thumbnails(folder, data) is None  # nothing is shown
    assert not (folder / "thumbnails.json").exists()


def test_records_of_texts_have_no_picture(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folder = make_run(tmp_path)  # whose records name no things
    (folder / "thumbnails.json").write_text(json.dumps({"things": {"image/0": "x"}, "queries": {}, "documents": {}}))
    assert "<img" not in write_report(folder).read_text()


def test_what_a_file_holds_stays_a_picture(run: tuple[Path, TwoCropsData]) -> None:
    folder, data = run
    save_thumbnails(folder, data)
    kept = json.loads((folder / "thumbnails.json").read_text())
    hostile = '"><script>alert(1)</script>'
    (folder / "thumbnails.json").write_text(json.dumps({part: dict.fromkeys(of, hostile) for part, of in kept.items()}))
    page = write_report(folder).read_text()
    assert "<script" not in page
    assert page.count('<img src="data:image/jpeg;base64,&#34;&gt;') == page.count("<img") > 10


@pytest.mark.parametrize("content", ["{", "[1]", '{"faces": {}}', '{"things": 3}'])
def test_a_broken_file_is_named(tmp_path: Path, make_run: Callable[..., Path], content: str) -> None:
    folder = make_run(tmp_path)
    (folder / "thumbnails.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"thumbnails.json: not thumbnails as WriteReport writes them .*Remove the file"
    ):
        write_report(folder)


def test_no_file_is_no_thumbnails(tmp_path: Path) -> None:
    assert read_thumbnails(tmp_path) == Thumbnails()
