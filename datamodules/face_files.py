"""Lists of face pairs: csv, LFW's ``pairs.txt``, and the ``.bin`` sets of insightface."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from datamodules.readers import Place, read_records, text_field

FOLDS = 10
YES, NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})


@dataclass(frozen=True)
class Pairs:
    """P pairs of pictures.

    Args:
        rows: (P, 2) int64 rows of the pictures.
        same: (P,) bool: both show one identity.
        fold: (P,) int64 from 0.
    """

    rows: Tensor
    same: Tensor
    fold: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def read_pairs(path: Path, names: Sequence[str]) -> Pairs:
    """Read a list of pairs.

    Args:
        path: a table (.csv, .tsv, .jsonl, .parquet) with the columns file_a, file_b, same (1 or 0) and perhaps fold;
            or LFW's pairs.txt. Without folds, the lines are cut into ten.
        names: names of the pictures; position = row.

    Raises:
        FileNotFoundError: no such file, or a pair of a picture that is not there; names the line.
        ValueError: a line that is no pair; names it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Wanted: pairs.txt, or a table with file_a, file_b and same.")
    return _lfw(path, names) if path.suffix == ".txt" else _table(path, names)


def consecutive_folds(pairs: int, folds: int = FOLDS) -> Tensor:
    """(P,) folds of consecutive pairs, sizes that differ by one at most."""
    return torch.arange(pairs) * folds // max(pairs, 1)


def _table(path: Path, names: Sequence[str]) -> Pairs:
    row_of = {name: row for row, name in enumerate(names)}
    rows, same, folds = [], [], []
    for place, record in read_records(path):
        rows.append([_row(place, row_of, text_field(place, record, column)) for column in ("file_a", "file_b")])
        said = str(record.get("same", "")).strip().lower()
        if said not in YES | NO:
            raise ValueError(f"{place}: column 'same' must be 1 or 0, got '{record.get('same')}'.")
        same.append(said in YES)
        if record.get("fold") not in (None, ""):
            try:
                folds.append(int(record["fold"]))
            except ValueError:
                raise ValueError(f"{place}: column 'fold' must be a whole number, got '{record['fold']}'.") from None
    if not rows:
        raise ValueError(f"{path}: holds no pair.")
    if folds and len(folds) < len(rows):
        raise ValueError(f"{path}: {len(rows) - len(folds)} of {len(rows)} pairs have no fold. Give all of them one.")
    fold = torch.tensor(folds).unique(return_inverse=True)[1] if folds else consecutive_folds(len(rows))
    return Pairs(torch.tensor(rows), torch.tensor(same), fold)


def _lfw(path: Path, names: Sequence[str]) -> Pairs:
    """``10 300``, then for each fold 300 lines ``name i j`` and 300 lines ``name i other j``."""
    row_of = {str(PurePosixPath(name).with_suffix("")): row for row, name in enumerate(names)}
    lines = [(number, line.split()) for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)]
    lines = [(number, words) for number, words in lines if words]
    try:
        head = [int(word) for word in lines[0][1]]
        folds, each = (1, head[0]) if len(head) == 1 else head
    except (IndexError, ValueError):
        raise ValueError(f"{path}, line 1: wants the number of folds and of pairs, as in '10 300'.") from None
    if len(lines) - 1 != 2 * folds * each:
        raise ValueError(f"{path}: the first line says {2 * folds * each} pairs, and there are {len(lines) - 1}.")
    rows, same = [], []
    for number, words in lines[1:]:
        place = Place(path, number)
        if len(words) not in (3, 4) or not all(word.isdigit() for word in (words[1], words[-1])):
            raise ValueError(f"{place}: wants 'name i j' or 'name i other j', got '{' '.join(words)}'.")
        one, other = words[0], words[-2] if len(words) == 4 else words[0]
        numbers = (words[1], words[-1])
        rows.append(
            [_row(place, row_of, f"{who}/{who}_{int(n):04d}") for who, n in zip((one, other), numbers, strict=True)]
        )
        same.append(len(words) == 3)
    fold = torch.arange(len(rows)) // (2 * each) if folds > 1 else consecutive_folds(len(rows))
    return Pairs(torch.tensor(rows), torch.tensor(same), fold)


def _row(place: Place, row_of: Mapping[str, int], name: str) -> int:
    if name not in row_of:
        raise FileNotFoundError(f"{place}: there is no picture '{name}' among the {len(row_of)} of its set.")
    return row_of[name]


# ---- .bin ------------------------------------------------------------------------------------------------------------


class BinFiles:
    """Packed pictures of a ``.bin`` file, in memory; their names are their numbers."""

    def __init__(self, path: Path, packed: Sequence[bytes]) -> None:
        self.path, self.packed = path, packed

    def names(self) -> list[str]:
        return [f"{row:06d}" for row in range(len(self.packed))]

    def read(self, name: str) -> bytes:
        return self.packed[int(name)]

    def __str__(self) -> str:
        return str(self.path)


def read_bin(path: Path) -> tuple[BinFiles, Pairs]:
    """Read an evaluation set of insightface (``lfw.bin``, ``cfp_fp.bin``, ``agedb_30.bin``, ...).

    Such a file is a pickle of (packed pictures, whether pairs are the same). It is not unpickled: see `plain_pickle`.
    Pair i is pictures 2i and 2i + 1; ten folds in the file's order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else in it; what it is and where.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Wanted: an evaluation set such as lfw.bin.")
    content = plain_pickle(path.read_bytes(), str(path))
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise ValueError(f"{path}: holds a {type(content).__name__}, not (pictures, same).")
    pictures, same = content
    if not isinstance(pictures, tuple | list) or not all(isinstance(picture, bytes) for picture in pictures):
        raise ValueError(f"{path}: its first part is no list of packed pictures.")
    if not isinstance(same, tuple | list) or not all(isinstance(value, bool | int) for value in same):
        raise ValueError(f"{path}: its second part is no list of booleans.")
    if len(pictures) != 2 * len(same) or not same:
        raise ValueError(f"{path}: {len(pictures)} pictures for {len(same)} pairs; wanted two for each.")
    rows = torch.arange(len(pictures)).view(-1, 2)
    return BinFiles(path, pictures), Pairs(rows, torch.tensor([bool(v) for v in same]), consecutive_folds(len(same)))


_VALUES = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG1", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BINSTRING", "SHORT_BINSTRING"),  # what Python 2 called bytes
}
_PUT, _GET = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}
_IGNORED = {"PROTO", "FRAME"}


def plain_pickle(data: bytes, name: str) -> Any:
    """Read a pickle of lists, tuples, bytes, whole numbers and booleans, and refuse every other.

    A pickle is a program. This reads its instructions one by one and carries out those that make plain values; the
    first one that could name a class, call something or make anything else ends it.

    Args:
        data: the pickle.
        name: for messages.

    Raises:
        ValueError: another instruction, named with its place; or a pickle that is cut off or makes no sense.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    place = 0
    try:
        for code, argument, position in pickletools.genops(io.BytesIO(data)):
            place, what = position or 0, code.name
            if what in _VALUES:
                stack.append(argument.encode("latin-1") if isinstance(argument, str) else argument)
            elif what in ("NEWTRUE", "NEWFALSE"):
                stack.append(what == "NEWTRUE")
            elif what == "EMPTY_LIST":
                stack.append([])
            elif what == "EMPTY_TUPLE":
                stack.append(())
            elif what == "MARK":
                marks.append(len(stack))
            elif what in ("LIST", "TUPLE"):
                items = since_mark()
                stack.append(items if what == "LIST" else tuple(items))
            elif what in ("TUPLE1", "TUPLE2", "TUPLE3"):
                number = int(what[-1])
                items = [stack.pop() for _ in range(number)][::-1]
                stack.append(tuple(items))
            elif what in ("APPEND", "APPENDS"):
                items = since_mark() if what == "APPENDS" else [stack.pop()]
                if not isinstance(stack[-1], list):
                    raise ValueError(f"{name}: byte {place}: appends to a {type(stack[-1]).__name__}.")
                stack[-1].extend(items)
            elif what in _PUT or what == "MEMOIZE":
                memo[len(memo) if what == "MEMOIZE" else argument] = stack[-1]
            elif what in _GET:
                stack.append(memo[argument])
            elif what == "STOP":
                (result,) = stack
                return result
            elif what not in _IGNORED:
                raise ValueError(
                    f"{name}: byte {place}: the instruction {what} is none of those that make lists, tuples, bytes, "
                    "numbers and booleans. Such a file could run code when it is unpickled; it is not read."
                )
    except (IndexError, KeyError):
        raise ValueError(f"{name}: byte {place}: is no pickle that makes sense.") from None
    except ValueError as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}: after byte {place}: is no whole pickle ({error}).") from None
    raise AssertionError("genops ends at STOP, or complains")
