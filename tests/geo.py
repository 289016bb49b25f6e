"""Small sets of places in the layouts of the public ones: a place is a pattern that both of its views show."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def view(place: int, kind: int = 0, size: tuple[int, int] = (16, 16)) -> bytes:
    """A PNG of a pattern of 4 x 4 fields, seen by another sensor for each ``kind``."""
    pattern = np.random.default_rng(place).integers(0, 256, (4, 4, 3))
    fields = pattern.repeat(size[0] // 4, 0).repeat(size[1] // 4, 1)
    noise = np.random.default_rng((place + 1) * 100 + kind).normal(0, 12, fields.shape)
    seen = fields if kind == 0 else 255 - fields
    file = io.BytesIO()
    Image.fromarray(np.clip(seen + noise, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def put(file: Path, data: bytes | str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)


def write_cvusa(folder: Path, train: int = 12, val: int = 6) -> Path:
    """Panoramas twice as wide as high; positions along a street."""
    for split, first, number in (("train", 0, train), ("val", train, val)):
        lines = []
        for place in range(first, first + number):
            name = f"{place + 1:07d}"
            put(folder / f"bingmap/19/{name}.jpg", view(place))
            put(folder / f"streetview/panos/{name}.jpg", view(place, 1, (16, 32)))
            lines.append(f"bingmap/19/{name}.jpg,streetview/panos/{name}.jpg,streetview/annotations/{name}.png")
        put(folder / f"splits/{split}-19zl.csv", "\n".join(lines) + "\n")
    spots = [f"{40 + place / 1000},{-75},{40 + place / 1000 + 1e-5},{-75},0.5" for place in range(train + val)]
    put(folder / "split_locations/all.csv", "\n".join(spots) + "\n")
    return folder


def write_cvact(folder: Path, train: int = 8, val: int = 4) -> Path:
    """ANU_data_small with train and val, ANU_data_test with two more places, ACT_data.mat for all."""
    from scipy.io import savemat

    names = [f"pano_{place:03d}" for place in range(train + val + 2)]
    for place, name in enumerate(names):
        part = folder / ("ANU_data_test" if place >= train + val else "ANU_data_small")
        put(part / f"streetview/{name}_grdView.jpg", view(place, 1, (16, 32)))
        put(part / f"satview_polish/{name}_satView_polish.jpg", view(place))
    utm = np.array([[690_000.0 + 10 * place, 6_090_000.0] for place in range(len(names))])
    sets = {
        f"{split}Set": {f"{split}Ids": np.zeros(1), f"{split}Ind": np.arange(first, last)[:, None] + 1}
        for split, first, last in (("train", 0, train), ("val", train, train + val))
    }
    savemat(folder / "ACT_data.mat", {"panoIds": np.array(names), "utm": utm, **sets})
    return folder


def write_vigor(folder: Path, tiles: int = 8) -> Path:
    """Four cities of tiles in a row, a panorama for each tile but the last, two for the first."""
    cities = ("Chicago", "NewYork", "SanFrancisco", "Seattle")
    for city_number, city in enumerate(cities):
        names = [f"satellite_{40 + city_number + i / 1000:.4f}_-74.0000.png" for i in range(tiles)]
        for i, name in enumerate(names):
            put(folder / f"satellite/{city}/{name}", view(100 * city_number + i))
        put(folder / f"splits/{city}/satellite_list.txt", "\n".join(names) + "\n")
        lines = []
        for number, i in enumerate([0, *range(tiles - 1)]):
            pano = f"p{number},{40 + city_number + i / 1000:.4f},-74.0001,.jpg"
            put(folder / f"ground/{city}/{pano}", view(100 * city_number + i, 1, (16, 32)))
            near = [names[(i + step) % tiles] for step in (1, 2, 3)]
            lines.append(" ".join([pano, *(f"{name} 1.0 -1.0" for name in (names[i], *near))]))
        for file, chosen in (
            ("same_area_balanced_train.txt", lines[: tiles // 2]),
            ("same_area_balanced_test.txt", lines[tiles // 2 :]),
            ("pano_label_balanced.txt", lines),
        ):
            put(folder / f"splits/{city}/{file}", "\n".join(chosen) + "\n")
    return folder


def write_university(folder: Path, train: int = 6, test: int = 4, distractors: int = 2, drones: int = 3) -> Path:
    """Buildings with views of a drone and a satellite; some of the gallery are nobody's."""
    for building in range(train):
        put(folder / f"train/satellite/{building:04d}/{building:04d}.jpg", view(building))
        for number in range(drones):
            put(folder / f"train/drone/{building:04d}/image-{number:02d}.jpeg", view(building, 1 + number))
    for building in range(train, train + test + distractors):
        sides = ["gallery_"] if building >= train + test else ["gallery_", "query_"]
        for side in sides:
            put(folder / f"test/{side}satellite/{building:04d}/{building:04d}.jpg", view(building))
            for number in range(drones):
                put(folder / f"test/{side}drone/{building:04d}/image-{number:02d}.jpeg", view(building, 1 + number))
    return folder


def write_tiles(folder: Path, columns: int = 12, rows: int = 4) -> Path:
    """Two mosaics of 8 x 8 fields and tiles of 16 pixels every 8, as sen12_pairs has them; splits by row."""
    table = ["mosaic,scene,px,py,east_m,south_m,split"]
    for scene in ("a", "b"):
        seed = ord(scene)
        fields = np.random.default_rng(seed).integers(0, 256, (2 * rows, columns + 1)).repeat(8, 0).repeat(8, 1)
        for kind, picture in (("sar", fields), ("opt", np.stack([255 - fields] * 3, axis=2))):
            file = io.BytesIO()
            Image.fromarray(picture.astype(np.uint8)).save(file, "PNG")
            put(folder / f"{kind}_{scene}.png", file.getvalue())
        for row in range(2 * rows - 1):
            for column in range(columns):
                part = "test_same_area" if row >= rows + 1 else "train"
                split = "test_cross_area" if scene == "b" else part
                table.append(f"{scene},{scene},{8 * column},{8 * row},{80 * column},{80 * row},{split}")
    put(folder / "tiles.csv", "\n".join(table) + "\n")
    return folder


def write_walks(folder: Path, walks: Sequence[int] = (12, 12, 12, 12)) -> Path:
    """Frames of walks as ie_tower has them; every fifth is a query."""
    table = ["file,label,level,area,section,video,frame,split,video_split"]
    for walk, frames in enumerate(walks):
        for frame in range(frames):
            name = f"floor{walk}/v{walk:03d}_{frame:04d}.png"
            put(folder / "images" / name, view(50 * walk + frame // 2, frame % 2))
            split = "query" if frame % 5 == 3 else "gallery"
            table.append(f"{name},floor{walk},{walk},hall,main,{walk},{frame},{split},{split}")
    put(folder / "metadata.csv", "\n".join(table) + "\n")
    return folder
