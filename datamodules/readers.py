"""Stream records from the files people have: jsonl, csv, tsv (each also .gz), parquet, and folders saved by `datasets`.

A reader holds one line, or one block of a columnar file, at a time. Each record comes with its `Place`, so that
whoever finds it wrong can name the file and the line.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

Fields = Mapping[str, Any]
BLOCK_ROWS = 1024  # rows of a columnar file that are Python objects at one time
MOST_BYTES = 1 << 28  # of one line, or one file of JSON: more is an attack (a packed file of zeros), or a mistake


class Place(NamedTuple):
    """Where a record stands: prints as "corpus.jsonl.gz, line 7" behind its folder."""

    path: Path
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[Place, Fields]]:
    """Stream the records of a file as (place, fields), in the file's order.

    Args:
        path: a .jsonl, .csv, .tsv (each also .gz) or .parquet file, or a folder written by `Dataset.save_to_disk`.

    Raises:
        FileNotFoundError: nothing is there; the message says which formats would do.
        ValueError: a line that is no record (file and line are named), or a format that is not known.
    """
    path = expand(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Wanted: a file ending in {FORMATS}, or a `datasets` folder.")
    reader = _datasets_folder if path.is_dir() else _READERS.get(_suffix(path))
    if reader is None:
        raise ValueError(f"{path}: unknown format. Wanted: a file ending in {FORMATS}, or a `datasets` folder.")
    return reader(path)


def read_json_lines(path: Path) -> Iterator[tuple[Place, Fields]]:
    """Stream the records of a file of JSON lines (also .gz), whatever its name ends in.

    Raises:
        ValueError: a line that is no JSON object; file and line are named.
    """
    return _jsonl(path)


def read_json(path: Path) -> Any:
    """Read a file that is one JSON value.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, nested too deeply, or too large; the file is named.
    """
    if path.exists() and path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: has {path.stat().st_size:,} bytes, and {MOST_BYTES:,} are the most.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: is not JSON ({error.msg}).") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}).") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise ValueError(f"{path}: is not JSON that can be read ({error}).") from None


def inside(name: str, folder: Path | str, place: Place | Path | str | None = None) -> str:
    """Check that a name out of a file leads to nothing outside of the folder that it belongs to.

    Args:
        name: relative, with "/" between folders.
        folder: which that is, for the message.
        place: where the name was found, for the message; None = in the folder itself.

    Returns:
        The name.

    Raises:
        ValueError: an absolute path, one with "..", or one with a drive.
    """
    slashes = PurePosixPath(name.replace("\\", "/"))
    if slashes.is_absolute() or ".." in slashes.parts or PureWindowsPath(name).drive or "\0" in name:
        out_of = folder if place else "it"
        raise ValueError(f"{place or folder}: the path '{name}' leads out of {out_of}. Do not trust this file.")
    return name


def read_lines(path: Path) -> Iterator[tuple[Place, str]]:
    """Stream the lines of a text file (also .gz) without their ends.

    Raises:
        ValueError: bytes that are not UTF-8, or a damaged gzip file; file and line are named.
    """
    for number, line in enumerate(_lines(path), start=1):
        yield Place(path, number), line.rstrip("\r\n")


def expand(path: str | os.PathLike[str]) -> Path:
    """Fill in "~" and environment variables, as in "$HARDNEG_DATA/scifact".

    Raises:
        FileNotFoundError: a variable is not set.
    """
    filled = os.path.expandvars(os.path.expanduser(path))
    if "$" in filled:
        raise FileNotFoundError(f"{filled}: the environment variable in this path is not set.")
    return Path(filled)


def text_field(place: Place, fields: Fields, name: str) -> str:
    """Get a field that must be text: "" where it is null or a csv cell is empty.

    Raises:
        ValueError: the field is missing (the fields that are there are named), is not text, or is no valid unicode.
    """
    if name not in fields:
        raise ValueError(f"{place}: has no field '{name}'; its fields are {', '.join(map(str, fields)) or 'none'}.")
    value = fields[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{place}: field '{name}' must be text, got {_shown(value)}.")
    return _unicode(place, name, value)


def id_field(place: Place, fields: Fields, name: str) -> str:
    """Get a field that names something: text or a whole number, never empty.

    Raises:
        ValueError: the field is missing, empty, or neither text nor a whole number.
    """
    value = fields.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = text_field(place, fields, name)
    if not text:
        raise ValueError(f"{place}: field '{name}' is empty; every record needs an id of its own.")
    return text


def texts_field(place: Place, fields: Fields, name: str) -> list[str]:
    """Get a field that may hold one text, a list of texts, or nothing; empty texts are left out.

    Raises:
        ValueError: the field is missing, or holds something that is not text.
    """
    value = fields.get(name)
    if not isinstance(value, list | tuple):
        value = [text_field(place, fields, name)]
    for text in value:
        if not (text is None or isinstance(text, str)):
            raise ValueError(f"{place}: field '{name}' must hold texts, got {_shown(text)} in its list.")
    return [_unicode(place, name, text) for text in value if text and not text.isspace()]


def _unicode(place: Place, name: str, text: str) -> str:
    if not text.isascii():  # a lone surrogate ("\ud83d", half of an emoji) is a str that no file or tokenizer takes
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: field '{name}' is not valid unicode ({error}).") from None
    return text


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _lines(path: Path) -> Iterator[str]:
    """Lines as text with their ends; decoding line by line, so that a bad byte has a line number."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as raw:
        try:
            for number, line in enumerate(iter(lambda: raw.readline(MOST_BYTES + 1), b""), start=1):
                if len(line) > MOST_BYTES:
                    raise ValueError(f"{Place(path, number)}: is longer than {MOST_BYTES:,} bytes, which is the most.")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{Place(path, number)}: is not UTF-8 ({error.reason} at byte {error.start}).") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file after line {number} ({error}).") from None


def _jsonl(path: Path) -> Iterator[tuple[Place, Fields]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.isspace():
            continue
        place = Place(path, number)
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: is not JSON ({error.msg} at column {error.colno}).") from None
        except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
            raise ValueError(f"{place}: is not JSON that can be read ({error}).") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{place}: must be one JSON object {{...}}, got {_shown(fields)}.")
        yield place, fields


def _separated(path: Path, delimiter: str) -> Iterator[tuple[Place, Fields]]:
    """Records under a header line; a record that spans lines (quoted line breaks) is named by its last line."""
    csv.field_size_limit(2**31 - 1)  # the module's own 131,072 characters would refuse a long document
    rows = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    try:
        header = next(rows, None)
        if header is None:
            raise ValueError(f"{path}: is empty. Wanted: a header line with the names of the columns.")
        if len(set(header)) < len(header):
            raise ValueError(f"{Place(path, 1)}: the header names a column twice: {', '.join(header)}.")
        for row in rows:
            if not row:
                continue
            place = Place(path, rows.line_num)
            if len(row) != len(header):
                raise ValueError(f"{place}: has {len(row)} fields, but the header names {len(header)}.")
            yield place, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{Place(path, rows.line_num)}: {error}.") from None


def _csv(path: Path) -> Iterator[tuple[Place, Fields]]:
    return _separated(path, ",")


def _tsv(path: Path) -> Iterator[tuple[Place, Fields]]:
    return _separated(path, "\t")


def _parquet(path: Path) -> Iterator[tuple[Place, Fields]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _rows(path, (batch.to_pylist() for batch in file.iter_batches(batch_size=BLOCK_ROWS)))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: is not a parquet file that can be read ({error}).") from None


def _datasets_folder(path: Path) -> Iterator[tuple[Place, Fields]]:
    """The Arrow files that state.json lists. `datasets` is not asked: it makes objects of what the folder names."""
    if (path / "dataset_dict.json").exists():
        splits = read_json(path / "dataset_dict.json").get("splits", [])
        one = path / (splits or ["train"])[0]
        raise ValueError(f"{path}: holds several splits ({', '.join(splits)}). Give the folder of one, such as {one}.")
    if not (path / "state.json").exists():
        raise ValueError(
            f"{path}: is a folder, but not one written by `Dataset.save_to_disk`. "
            f"Give such a folder, or a file ending in {FORMATS}."
        )
    listing = path / "state.json"
    state = read_json(listing)
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
        chosen = state.get("_indices_data_files") or state.get("_indices_files")
    except (AttributeError, KeyError, TypeError):
        raise ValueError(
            f"{path / 'state.json'}: lists no files of data; it must be of `Dataset.save_to_disk`."
        ) from None
    if chosen:
        raise ValueError(
            f"{path}: was saved by an old `datasets` with a choice of rows. Save it again with a newer one."
        )
    for name in names:
        if name != Path(name).name or name in ("", ".."):
            raise ValueError(f"{listing}: the file '{name}' must be in the folder itself. Do not trust it.")

    return _rows(path, (block for name in names for block in _arrow_blocks(path / name)))


def _arrow_blocks(file: Path) -> Iterator[Sequence[dict[str, Any]]]:
    """Blocks of rows of an Arrow stream.

    Raises:
        ValueError: not an Arrow file, or a damaged one.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                batch.validate(full=True)  # offsets of a damaged file would lead anywhere in memory
                yield from (batch.slice(at, BLOCK_ROWS).to_pylist() for at in range(0, len(batch), BLOCK_ROWS))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: is no Arrow file that can be read ({error}).") from None


def _rows(path: Path, blocks: Iterator[Sequence[dict[str, Any]]]) -> Iterator[tuple[Place, Fields]]:
    number = 0
    for block in blocks:
        for fields in block:
            number += 1
            yield Place(path, number, "row"), fields


def _suffix(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[Place, Fields]]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".tsv": _tsv,
    ".tsv.gz": _tsv,
    ".parquet": _parquet,
}
FORMATS = ", ".join(_READERS)
