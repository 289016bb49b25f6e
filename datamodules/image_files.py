"""Pictures in folders, zip archives and tables: found once, decoded when they are asked for.

Four layouts, told apart by what is there:

    photos/ann/01.jpg                   a folder (or a zip archive) with a folder for each class
    set/metadata.csv                    a table: file, a column with the class, and any others (split, ...)
    set/images.zip                      ... with its pictures in the archive (or in images/, or beside the table)
    faces/train.rec                     insightface's records, with train.idx beside them
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.readers import MOST_BYTES, expand, inside, read_records, text_field
from datamodules.record_files import RecordFiles

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"})
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""What is decoded, whatever a file is called: of Pillow's other formats, one runs Ghostscript."""
TABLE, ARCHIVE, FOLDER = "metadata.csv", "images.zip", "images"
CLASS_COLUMNS = ("identity", "label", "class")


class Files(Protocol):
    """Something that holds packed pictures by name."""

    def names(self) -> list[str]:
        """Names of all pictures, "/" between folders, sorted."""

    def read(self, name: str) -> bytes:
        """The bytes of one."""


class FolderFiles:
    """Pictures below a folder. Hidden files and what has no picture's suffix are passed by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        found = []
        for place, folders, files in os.walk(self.folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".") and not _loops(place, name)]
            below = Path(place).relative_to(self.folder)
            found += [(below / name).as_posix() for name in files]
        return sorted(filter(is_picture, found))

    def read(self, name: str) -> bytes:
        path = self.folder / inside(name, self.folder)
        try:
            if path.exists() and not (path.is_file() and path.stat().st_size <= MOST_BYTES):  # a device never ends
                raise ValueError(f"{path}: must be a file of at most {MOST_BYTES:,} bytes, as a picture is.")
            return path.read_bytes()
        except OSError as error:
            raise FileNotFoundError(f"{path}: cannot be read ({error.strerror}).") from None

    def __str__(self) -> str:
        return str(self.folder)


class ZipFiles:
    """Pictures in a zip archive, read where they lie: nothing is unpacked to disk.

    Each process opens the archive for itself, since workers must not share a file position.

    Raises:
        ValueError: no zip archive; a member whose path leads out of it, is absolute, or is a link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, zipfile.ZipFile] | None = None  # process and handle
        for member in self._archive().infolist():
            inside(member.filename, path)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{path}: member '{member.filename}' is a link, which no set of pictures needs.")

    def names(self) -> list[str]:
        return sorted(filter(is_picture, self._archive().namelist()))

    def read(self, name: str) -> bytes:
        archive = self._archive()
        try:
            member = archive.getinfo(name)
        except KeyError:
            raise FileNotFoundError(f"{self.path}: holds no '{name}'.") from None
        if member.file_size > MOST_BYTES:
            raise ValueError(f"{self.path}: '{name}' unpacks to {member.file_size:,} bytes; a picture has fewer.")
        try:
            return archive.read(member)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{self.path}: '{name}' cannot be unpacked ({error}).") from None

    def _archive(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():
            try:
                self._open = os.getpid(), zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise ValueError(f"{self.path}: is no zip archive that can be read ({error}).") from None
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_open": None}  # a worker opens its own

    def __str__(self) -> str:
        return str(self.path)


@dataclass
class Pictures(Dataset[tuple[Tensor, int, str]]):
    """N pictures with classes: row i is (picture uint8 (C, H, W), class, name).

    Args:
        files: where their bytes are.
        names: N names in ``files``.
        labels: (N,) int64 positions in ``classes``, -1 unknown.
        classes: names of the classes.
        fields: by column of the table, (N,) str: what splits are made of.
        channels: 3 = colour, 1 = grey; see `decode`.
        size: sides that every picture is stretched to; None leaves each as it is.
    """

    files: Files
    names: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    fields: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    channels: int = 3
    size: int | None = None

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"Pictures(channels={self.channels}): wants 3 (colour) or 1 (grey).")
        if self.size is not None and self.size < 1:
            raise ValueError(f"Pictures(size={self.size}): wants at least 1 pixel, or null.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> tuple[Tensor, int, str]:
        return self.picture(row), int(self.labels[row]), self.names[row]

    def picture(self, row: int) -> Tensor:
        """(C, H, W) uint8.

        Raises:
            FileNotFoundError, ValueError: it is not there, or is no picture; names it.
        """
        name = self.names[row]
        return decode(self.files.read(name), f"{self.files}: '{name}'", self.channels, self.size)

    def where(self, wanted: Mapping[str, Sequence[str | int]]) -> Tensor:
        """(n,) rows whose fields have one of the wanted values; all of the conditions must hold.

        Raises:
            ValueError: a field that is not there, or a value that no picture has.
        """
        keep = np.ones(len(self), dtype=bool)
        for name, values in wanted.items():
            if name not in self.fields:
                raise ValueError(f"{self.files}: no column '{name}' to choose by; there are {sorted(self.fields)}.")
            texts = [str(value) for value in values]
            if missing := sorted(set(texts) - set(self.fields[name].tolist())):
                raise ValueError(f"{self.files}: no picture has {name} {', '.join(missing)}.")
            keep &= np.isin(self.fields[name], texts)
        return torch.from_numpy(np.flatnonzero(keep))


def read_pictures(path: str | os.PathLike[str], channels: int = 3, size: int | None = None) -> Pictures:
    """Find the pictures of a folder, a zip archive, a table or records; see the head of this module.

    Without a table, a picture's class is the folder that it lies in, with those above; what lies in no folder has none.

    Args:
        path: "~" and environment variables are filled in.
        channels: 3 = colour, 1 = grey.
        size: sides that every picture is stretched to; None leaves each as it is.

    Raises:
        FileNotFoundError: nothing is there, or a table without pictures.
        ValueError: no picture in it, paths that lead out of it, or lines of the table that are wrong.
    """
    path = expand(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Wanted: a folder of pictures, a .zip archive of them, or a .rec."
        )
    if path.is_dir() and (path / TABLE).exists():
        return _from_table(path, channels, size)
    if path.suffix == ".rec":
        records = RecordFiles(path)
        keys, identities, numbers = records.identities()
        return Pictures(records, tuple(keys), identities, numbers, {}, channels, size)
    files = open_files(path)
    names = files.names()
    if not names:
        raise ValueError(f"{path}: holds no picture ({', '.join(sorted(SUFFIXES))}).")
    labels, classes = _codes(np.array([name.rpartition("/")[0] for name in names]))
    return Pictures(files, tuple(names), labels, classes, {}, channels, size)


def open_files(path: Path) -> FolderFiles | ZipFiles:
    """A folder or a zip archive as `Files`."""
    return FolderFiles(path) if path.is_dir() else ZipFiles(path)


def decode(data: bytes, name: str, channels: int = 3, size: int | tuple[int, int] | None = None) -> Tensor:
    """Unpack a picture -> (C, H, W) uint8.

    It is turned as its EXIF says. What is transparent becomes white. Grey of 16 bits is divided by 257, so that it
    keeps its range. Grey becomes colour by repeating it, colour becomes grey by ITU-R 601. Of frames, the first counts.

    Args:
        name: for messages.
        channels: 3 or 1.
        size: both sides of the result, or (height, width), bicubic with antialiasing; None = as it is.

    Raises:
        ValueError: it is no picture, is cut off, is too large to be one, or holds numbers without a range (float).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:  # Pillow only warns
                raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels")
            opened.load()
            picture: Any = ImageOps.exif_transpose(opened)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"{name}: is no picture that can be read ({error}).") from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name}: is too large ({error}). Scale it down; or set PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from None
    if picture.mode == "F":
        raise ValueError(f"{name}: holds floating point numbers, whose range nobody knows. Save it with 8 or 16 bits.")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        wide = np.asarray(picture).astype(np.int64)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise ValueError(f"{name}: holds values from {wide.min()} to {wide.max()}; wanted 8 or 16 bits.")
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    picture = picture.convert("RGB" if channels == 3 else "L")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    array = np.array(picture)  # a copy: the picture's own memory cannot be written to
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1).contiguous()


def _loops(place: str, name: str) -> bool:
    """Whether a folder is a link to one that it lies in."""
    path = os.path.join(place, name)
    return os.path.islink(path) and Path(place).resolve().is_relative_to(Path(path).resolve())


def is_picture(name: str) -> bool:
    """Whether a file's name is a picture's; hidden ones are not, nor what a Mac leaves in archives."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts) or "__MACOSX" in path.parts
    return path.suffix.lower() in SUFFIXES and not hidden


def _from_table(folder: Path, channels: int, size: int | None) -> Pictures:
    """Pictures that ``metadata.csv`` lists, in its order."""
    table = folder / TABLE
    holder = next((folder / name for name in (ARCHIVE, FOLDER) if (folder / name).exists()), folder)
    files = open_files(holder)
    there = set(files.names())
    names: dict[str, None] = {}
    columns: dict[str, list[str]] = {}
    for place, record in read_records(table):
        name = text_field(place, record, "file")
        if name in names:
            raise ValueError(f"{place}: '{name}' stands in the table twice.")
        if name not in there:
            raise FileNotFoundError(f"{place}: {holder} holds no '{name}'.")
        names[name] = None
        for column, value in record.items():
            if column != "file":
                columns.setdefault(column, []).append("" if value is None else str(value))
    if not names:
        raise ValueError(f"{table}: lists no picture.")
    fields = {column: np.array(values) for column, values in columns.items()}
    of = next((name for name in CLASS_COLUMNS if name in fields), None)
    if of is None:
        raise ValueError(f"{table}: has no column {' or '.join(CLASS_COLUMNS)}; it has {sorted(fields)}.")
    labels, classes = _codes(fields[of])
    return Pictures(files, tuple(names), labels, classes, fields, channels, size)


class PictureView(Sequence[Tensor]):
    """Pictures (n, C, H, W), decoded when they are read: ``view[3:5]`` is a tensor of two.

    Args:
        read: the picture of an id.
        ids: (n,).
    """

    def __init__(self, read: Callable[[int], Tensor], ids: Tensor) -> None:
        self.read, self.ids = read, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: int | slice) -> Tensor:  # type: ignore[override]
        if isinstance(rows, int):
            return self.read(int(self.ids[rows]))
        return torch.stack([self.read(row) for row in self.ids[rows].tolist()])


def _codes(column: NDArray[np.str_]) -> tuple[Tensor, tuple[str, ...]]:
    """Positions among the sorted values; -1 where there is none ("")."""
    classes, labels = np.unique(column, return_inverse=True)
    found = torch.from_numpy(labels.astype(np.int64))
    if len(classes) and classes[0] == "":
        classes, found = classes[1:], found - 1
    return found, tuple(classes.tolist())
