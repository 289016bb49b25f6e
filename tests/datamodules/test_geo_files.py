"""Layouts of the public sets and tables of one's own; what is missing or wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.geo_files import CVACT, CVUSA, VIGOR, GeoPairs, PairsTable, PlacesTable, University1652
from tests.geo import put, write_cvact, write_cvusa, write_tiles, write_university, write_vigor, write_walks

Edit = Callable[[Path, Callable[[list[str]], list[str]]], None]


def test_cvusa(tmp_path: Path, edit_lines: Edit) -> None:
    folder = write_cvusa(tmp_path)
    pairs = CVUSA(str(folder)).read()
    assert (len(pairs.queries), len(pairs.references), pairs.distractors, pairs.skipped) == (12, 12, 0, 0)
    assert pairs.queries.names[0] == "streetview/panos/0000001.jpg"
    assert pairs.references.names[2] == "bingmap/19/0000003.jpg"
    assert pairs.positives.to_lists() == [[i] for i in range(12)]
    assert pairs.query_places.coordinates[1].tolist() == [40.00101, -75.0]  # the panorama's
    assert len(CVUSA(str(folder), "val").read().queries) == 6
    assert pairs.queries.picture(0, 3, (16, 32)).shape == (3, 16, 32)
    edit_lines(folder / "split_locations/all.csv", lambda lines: ["40,-75,140,-75,1", *lines[1:]])
    with pytest.raises(ValueError, match=r"all.csv, line 1: latitude 140, longitude -75: wants -90 to 90"):
        CVUSA(str(folder)).read()
    edit_lines(folder / "split_locations/all.csv", lambda lines: lines[1:3])
    with pytest.raises(ValueError, match=r"train-19zl.csv, line 3: split_locations/all.csv has 2 lines, and no 3"):
        CVUSA(str(folder)).read()


def test_a_missing_view_is_named_or_counted(tmp_path: Path) -> None:
    folder = write_cvusa(tmp_path)
    (folder / "bingmap/19/0000002.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"train-19zl.csv, line 2: .*holds no 'bingmap/19/0000002.jpg'. Set skip"
    ):
        CVUSA(str(folder)).read()
    pairs = CVUSA(str(folder), skip_missing=True).read()
    assert (len(pairs.queries), pairs.skipped) == (11, 1)


def test_a_corrupt_picture_is_named(tmp_path: Path) -> None:
    folder = write_cvusa(tmp_path)
    put(folder / "bingmap/19/0000002.jpg", b"no picture")
    with pytest.raises(ValueError, match=r"'bingmap/19/0000002.jpg': is no picture that can be read"):
        CVUSA(str(folder)).read().references.picture(1, 3, (16, 16))


def test_cvact(tmp_path: Path) -> None:
    folder = write_cvact(tmp_path)
    pairs = CVACT(str(folder)).read()
    assert (len(pairs.queries), pairs.query_places.units) == (8, "metres")
    assert pairs.references.names[3] == "satview_polish/pano_003_satView_polish.jpg"
    assert pairs.reference_places.coordinates[3].tolist() == [690_030.0, 6_090_000.0]
    assert CVACT(str(folder), "val").read().queries.names[0] == "streetview/pano_008_grdView.jpg"
    assert len(CVACT(str(folder), "test").read().queries) == 2
    (folder / "ANU_data_small/streetview/pano_001_grdView.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"ACT_data.mat, train pair 1: .*holds no 'streetview/pano_001_grdView"):
        CVACT(str(folder)).read()
    assert CVACT(str(folder), skip_missing=True).read().skipped == 1
    put(folder / "ACT_data.mat", b"nothing")
    with pytest.raises(ValueError, match="is no table with panoIds, utm, trainSet and valSet"):
        CVACT(str(folder)).read()


def test_vigor(tmp_path: Path, edit_lines: Edit) -> None:
    folder = write_vigor(tmp_path)
    train = VIGOR(str(folder)).read()
    assert len(train.queries) == 16
    assert train.positives.to_lists()[:2] == [[0], [0]]  # two panoramas of the first tile
    test = VIGOR(str(folder), "test").read()
    assert (len(test.queries), len(test.references)) == (16, 32)
    assert test.distractors == 16
    assert [len(near) for near in test.semi_positives.to_lists()] == [3] * 16
    assert all(right[0] not in near for right, near in zip(test.positives.to_lists(), test.semi_positives.to_lists()))
    cross = VIGOR(str(folder), "test", "cross").read()
    assert {name.split("/")[1] for name in cross.references.names} == {"Chicago", "SanFrancisco"}
    assert test.reference_places.coordinates[0].tolist() == [40.003, -74.0]
    assert test.query_places.coordinates[0].tolist() == [40.003, -74.0001]
    edit_lines(
        folder / "splits/Seattle/same_area_balanced_train.txt", lambda lines: [lines[0].replace("43.0000", "49.0")]
    )
    with pytest.raises(
        ValueError, match=r"same_area_balanced_train.txt, line 1: satellite_list.txt of Seattle has no tile"
    ):
        VIGOR(str(folder)).read()
    edit_lines(folder / "splits/Chicago/same_area_balanced_train.txt", lambda lines: ["pano sat 1 1"])
    with pytest.raises(ValueError, match="wants a panorama and four tiles with two offsets each"):
        VIGOR(str(folder)).read()


def test_vigor_as_its_authors_pack_it(tmp_path: Path) -> None:
    folder = write_vigor(tmp_path)
    for city in [path.name for path in (folder / "ground").iterdir()]:
        (folder / city).mkdir()
        (folder / "ground" / city).rename(folder / city / "panorama")
        (folder / "satellite" / city).rename(folder / city / "satellite")
    (folder / "ground").rmdir()
    assert VIGOR(str(folder)).read().references.names[0].startswith("Chicago/satellite/")


def test_university(tmp_path: Path) -> None:
    folder = write_university(tmp_path)
    train = University1652(str(folder)).read()
    assert (len(train.queries), len(train.references), train.distractors) == (18, 6, 0)
    assert train.positives.to_lists()[3] == [1]
    drone = University1652(str(folder), "test").read()
    assert (len(drone.queries), len(drone.references), drone.distractors) == (12, 6, 2)
    satellite = University1652(str(folder), "test", "satellite").read()
    assert (len(satellite.queries), len(satellite.references), satellite.distractors) == (4, 18, 6)
    assert satellite.positives.to_lists()[1] == [3, 4, 5]
    (folder / "train/satellite/0002/0002.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"building '0002' has pictures in drone alone \(1 such\): a place with one kind"
    ):
        University1652(str(folder)).read()
    assert University1652(str(folder), skip_missing=True).read().skipped == 1
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        University1652(str(folder / "nowhere")).read()


def tiles(folder: Path, split: str = "train", **options: object) -> GeoPairs:
    fixed = {"query": "sar_{mosaic}.png", "reference": "opt_{mosaic}.png", "where": {"split": [split]}, "tile": 16}
    position = {"position": ["east_m", "south_m"], "units": "metres", "area": "scene"}
    return PairsTable(str(folder / "tiles.csv"), **fixed, **position, **options).read()


def test_tiles_of_mosaics(tmp_path: Path, edit_lines: Edit) -> None:
    folder = write_tiles(tmp_path)
    pairs = tiles(folder, semi_positive_metres=160)
    assert len(pairs.queries) == 60
    whole = pairs.references.picture(0, 3, (16, 16))
    other = pairs.references.picture(1, 3, (16, 16))
    assert torch.equal(whole[:, :, 8:], other[:, :, :8])  # they overlap by half
    assert pairs.references.picture(0, 1, (8, 8)).shape == (1, 8, 8)
    assert pairs.references.titles[1] == "opt_a.png@8,0"
    middle = 12 + 5  # row 1, column 5
    near = pairs.semi_positives.to_lists()[middle]
    assert near == [4, 5, 6, 16, 18, 28, 29, 30]  # nearer than 160 m; 160 itself touches without overlap
    assert len(tiles(folder, "test_cross_area").queries) == 84
    edit_lines(folder / "tiles.csv", lambda lines: [lines[0], lines[1].replace("a,a,0,0", "a,a,100,0"), *lines[2:]])
    with pytest.raises(
        ValueError, match=r"'sar_a.png' has 104 x 64 pixels, and the tile at 100,0 of 16 x 16 leads out"
    ):
        tiles(folder).queries.picture(0, 1, (16, 16))


def test_a_table_of_pairs(tmp_path: Path, edit_lines: Edit) -> None:
    folder = write_cvusa(tmp_path, 3, 0)
    lines = ["id,latitude,longitude", *(f"000000{i + 1},40.00{i},-75" for i in range(3))]
    put(folder / "mine.csv", "\n".join(lines))
    patterns = {"query": "streetview/panos/{id}.jpg", "reference": "bingmap/19/{id}.jpg"}
    pairs = PairsTable(str(folder / "mine.csv"), **patterns).read()
    assert pairs.query_places.coordinates[:, 0].tolist() == [40.0, 40.001, 40.002]
    assert PairsTable(str(folder / "mine.csv"), **patterns, position=None).read().query_places is None
    for wrong, said in (
        ("0000001,-75,140", None),
        ("0000001,140,-75", r"mine.csv, line 2: latitude 140, longitude -75.*Are the two swapped\?"),
        ("0000001,40,-175.5x", "mine.csv, line 2: column 'longitude' must be a number, got '-175.5x'"),
        ("0000001,nan,0", "mine.csv, line 2: coordinates .* are no numbers"),
        ("0000009,40,-75", "mine.csv, line 2: .* holds no 'streetview/panos/0000009.jpg'"),
    ):
        edit_lines(folder / "mine.csv", lambda lines, new=wrong: [lines[0], new, *lines[2:]])
        if said is None:
            PairsTable(str(folder / "mine.csv"), **patterns).read()
            continue
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            PairsTable(str(folder / "mine.csv"), **patterns).read()
    with pytest.raises(ValueError, match="wants the column 'nothing'"):
        PairsTable(str(folder / "mine.csv"), "{nothing}").read()
    with pytest.raises(ValueError, match="no column 'split' to choose by"):
        PairsTable(str(folder / "mine.csv"), where={"split": ["train"]}).read()
    with pytest.raises(ValueError, match="no row meets"):
        PairsTable(str(folder / "mine.csv"), where={"id": ["x"]}).read()
    shared = [
        "id,tile,latitude,longitude,lat2,lon2",
        "0000001,0000001,40,-75,41,-75",
        "0000002,0000001,40.001,-75,41,-75",
    ]
    put(folder / "shared.csv", "\n".join(shared))
    patterns["reference"] = "bingmap/19/{tile}.jpg"
    with pytest.raises(
        ValueError, match=r"shared.csv, line 3: 'bingmap.*' is at \[40.001, -75.0\] here and at \[40.0, -75"
    ):
        PairsTable(str(folder / "shared.csv"), **patterns).read()
    pairs = PairsTable(str(folder / "shared.csv"), **patterns, reference_position=["lat2", "lon2"]).read()
    assert pairs.query_places.coordinates[:, 0].tolist() == [40.0, 40.001]
    assert pairs.reference_places.coordinates.tolist() == [[41.0, -75.0]]
    with pytest.raises(ValueError, match="a distance above 0, between positions"):
        PairsTable("mine.csv", position=None, semi_positive_metres=3)


def walks(folder: Path, **options: object) -> GeoPairs:
    sides = {"queries": {"split": ["query"]}, "references": {"split": ["gallery"]}}
    fixed = {"position": ["frame"], "units": "metres", "area": "video", "images": "images", **sides, **options}
    return PlacesTable(str(folder / "metadata.csv"), **fixed).read()


def test_places_within_a_radius(tmp_path: Path) -> None:
    folder = write_walks(tmp_path)
    pairs = walks(folder, radius=2, semi_positive_metres=4)
    assert (len(pairs.queries), len(pairs.references)) == (8, 40)
    names = pairs.references.names
    assert [names[i][-8:-4] for i in pairs.positives.to_lists()[0]] == ["0001", "0002", "0004", "0005"]
    assert [names[i][-8:-4] for i in pairs.semi_positives.to_lists()[0]] == ["0000", "0006", "0007"]
    assert all(names[i].startswith("floor3") for i in pairs.positives.to_lists()[-1])  # never another walk
    every = {"split": ["query", "gallery"]}
    same = walks(folder, radius=1, semi_positive_metres=2, queries=every, references=every)
    assert same.queries.names == same.references.names
    names = [name[-8:-4] for name in same.references.names]
    assert [names[i] for i in same.positives.to_lists()[5]] == ["0004", "0006"]  # not itself
    assert [names[i] for i in same.semi_positives.to_lists()[5]] == ["0005", "0003", "0007"]
    with pytest.raises(ValueError, match=r"no reference lies within 0.5 m of .*\(48 such queries\)"):
        walks(folder, radius=0.5, queries=every, references=every)
    lonely = {"queries": {"frame": [3]}, "references": {"frame": [0, 9]}, "where": {"video": [0, 1]}}
    with pytest.raises(
        ValueError, match=r"line 5: no reference lies within 2 m of .*\(2 such queries\): a place with one"
    ):
        walks(folder, radius=2, **lonely)
    with pytest.raises(ValueError, match=r"no row is among the queries"):
        walks(folder, radius=2, queries={"frame": [77]})
    with pytest.raises(ValueError, match="the second wider than the first"):
        PlacesTable("x.csv", {}, {}, radius=3, semi_positive_metres=2)
