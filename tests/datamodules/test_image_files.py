"""Pictures from folders, archives and tables: what is odd, broken or hostile is said or handled, never swallowed."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from datamodules.image_files import ZipFiles, decode, read_pictures


def packed(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def grey(value: int = 7, height: int = 4, width: int = 6) -> bytes:
    return packed(np.full((height, width), value, dtype=np.uint8))


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


TWO = {"ann/1.png": grey(1), "ann/2.png": grey(2), "bob/1.png": grey(3)}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_folder_for_each_class(tmp_path: Path, kind: str) -> None:
    extra = {"ann/.hidden.png": b"", "ann/Thumbs.db": b"", "__MACOSX/ann/1.png": b"", "loose.png": grey(9)}
    files = TWO | extra
    path = write(tmp_path / "set", files) if kind == "folder" else write_zip(tmp_path / "set.zip", files)
    pictures = read_pictures(path)
    assert pictures.names == ("ann/1.png", "ann/2.png", "bob/1.png", "loose.png")
    assert pictures.classes == ("ann", "bob")
    assert pictures.labels.tolist() == [0, 0, 1, -1]
    picture, label, name = pictures[2]
    assert (label, name) == (1, "bob/1.png")
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 4, 6)
    assert picture.unique().tolist() == [3]


@pytest.mark.parametrize("where", ["images.zip", "images", "."])
def test_a_table_with_its_pictures(tmp_path: Path, where: str) -> None:
    if where == "images.zip":
        write_zip(tmp_path / where, TWO)
    else:
        write(tmp_path / where, TWO)
    (tmp_path / "metadata.csv").write_text(
        "file,identity,split\nbob/1.png,b,test\nann/2.png,a,train\nann/1.png,,train\n"
    )
    pictures = read_pictures(tmp_path, channels=1, size=8)
    assert pictures.names == ("bob/1.png", "ann/2.png", "ann/1.png")  # the table's order
    assert pictures.classes == ("a", "b")
    assert pictures.labels.tolist() == [1, 0, -1]
    assert pictures.where({"split": ["train"]}).tolist() == [1, 2]
    assert pictures[0][0].shape == (1, 8, 8)
    with pytest.raises(ValueError, match="no picture has split val"):
        pictures.where({"split": ["val"]})
    with pytest.raises(ValueError, match="no column 'age'"):
        pictures.where({"age": [3]})


def test_lines_of_a_table_that_are_wrong_are_named(tmp_path: Path) -> None:
    write(tmp_path, TWO)
    table = tmp_path / "metadata.csv"
    table.write_text("file,identity\nann/1.png,a\nann/9.png,a\n")
    with pytest.raises(FileNotFoundError, match=r"metadata.csv, line 3: .*holds no 'ann/9.png'"):
        read_pictures(tmp_path)
    table.write_text("file,identity\nann/1.png,a\nann/1.png,a\n")
    with pytest.raises(ValueError, match=r"line 3: 'ann/1.png' stands in the table twice"):
        read_pictures(tmp_path)
    table.write_text("file,who\nann/1.png,a\n")
    with pytest.raises(ValueError, match="no column identity or label or class"):
        read_pictures(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_pictures(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        read_pictures(tmp_path / "empty")
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match="no zip archive"):
        read_pictures(tmp_path / "text.zip")


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "C:/out.png", "..\\out.png"])
def test_paths_that_lead_out_of_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "set.zip", TWO)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), grey())
    with pytest.raises(ValueError, match="leads out of it"):
        read_pictures(path)


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", TWO)
    link = zipfile.ZipInfo("ann/3.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match=r"'ann/3.png' is a link"):
        read_pictures(path)


def test_a_table_cannot_name_what_is_outside(tmp_path: Path) -> None:
    write(tmp_path, {"secret.png": grey(), "set/ann/1.png": grey()})
    (tmp_path / "set" / "metadata.csv").write_text("file,identity\n../secret.png,a\n")
    with pytest.raises(FileNotFoundError, match="holds no"):
        read_pictures(tmp_path / "set")


def test_a_member_that_unpacks_to_far_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.image_files.MOST_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ann/1.png", b"\0" * 10_000)
    with pytest.raises(ValueError, match=r"'ann/1.png' unpacks to 10,000 bytes"):
        read_pictures(tmp_path / "set.zip").picture(0)


def test_an_archive_goes_to_workers_without_its_handle(tmp_path: Path) -> None:
    files = ZipFiles(write_zip(tmp_path / "set.zip", TWO))
    copy = pickle.loads(pickle.dumps(files))  # noqa: S301  our own bytes: what a worker gets
    assert copy.read("bob/1.png") == files.read("bob/1.png")
    assert copy._open[1] is not files._open[1]


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    write(tmp_path, TWO | {"ann/3.png": grey()[:40], "ann/4.jpg": b"not a picture", "ann/5.png": b""})
    pictures = read_pictures(tmp_path)
    for row in (2, 3, 4):
        with pytest.raises(ValueError, match=f"'ann/{row + 1}.* is no picture that can be read"):
            pictures.picture(row)


def test_transparency_becomes_white() -> None:
    array = np.zeros((2, 2, 4), dtype=np.uint8)
    array[0, :, 3] = 255  # the upper row is black, the lower one is not there
    assert decode(packed(array), "x")[0].tolist() == [[0, 0], [255, 255]]
    assert decode(packed(array), "x", channels=1)[0].tolist() == [[0, 0], [255, 255]]


def test_sixteen_bits_keep_their_range() -> None:
    array = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert decode(packed(array), "x", channels=1).tolist() == [[[0, 1, 128, 255]]]
    assert decode(packed(array, "TIFF"), "x")[2].tolist() == [[0, 1, 128, 255]]


def test_numbers_without_a_range_are_refused() -> None:
    with pytest.raises(ValueError, match="x: holds floating point numbers"):
        decode(packed(np.zeros((2, 2), dtype=np.float32), "TIFF"), "x")
    with pytest.raises(ValueError, match="holds values from 0 to 70000"):
        decode(packed(np.array([[0, 70000]], dtype=np.int32), "TIFF"), "x")


def test_grey_palette_and_one_bit_become_colour() -> None:
    assert decode(grey(7), "x").unique().tolist() == [7]
    one_bit, palette = io.BytesIO(), io.BytesIO()
    Image.new("1", (2, 2), 1).save(one_bit, "PNG")
    Image.new("P", (2, 2)).save(palette, "PNG")
    assert decode(one_bit.getvalue(), "x").unique().tolist() == [255]
    assert decode(palette.getvalue(), "x").shape == (3, 2, 2)


def test_exif_turns() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    assert decode(packed(np.zeros((2, 5), dtype=np.uint8), "JPEG", exif=exif), "x").shape == (3, 5, 2)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_larger_than_any(monkeypatch: pytest.MonkeyPatch) -> None:
    for most in (4, 20):  # 24 pixels: Pillow itself refuses twice the number, and warns below
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(ValueError, match=r"x: is too large .*Scale it down"):
            decode(grey(), "x")


def test_a_format_that_runs_a_program_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript under the name of a picture: Pillow would hand it to Ghostscript."""
    ran: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **_: ran.append(arguments))
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"
    with pytest.raises(ValueError, match=r"cat\.jpg: is no picture that can be read"):
        decode(text.encode(), "cat.jpg")
    assert not ran


def test_a_picture_of_several_is_its_first() -> None:
    """Phones write two pictures into one JPEG file."""
    file = io.BytesIO()
    first, second = (Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (200, 10))
    first.save(file, "MPO", save_all=True, append_images=[second])
    assert decode(file.getvalue(), "x").float().mean() == pytest.approx(200, abs=2)


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"size": 0}])
def test_options(tmp_path: Path, wrong: dict[str, int]) -> None:
    write(tmp_path, TWO)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        read_pictures(tmp_path, **wrong)
