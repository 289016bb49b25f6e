"""Write what is read back: aside, with checksums, synced to the disk, and published by one rename of a manifest.

A reader finds the last version that was published whole, whenever the writer was stopped, and notices a file that was
changed or damaged since. Everything in this project that consists of more than one file goes through `Transaction`;
single files go through `write_file`. A writer holds the lock of its output (`locked`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

PART, NEW, TRASH, BEFORE = ".part", ".new", ".trash", ".before"
OLD_SECONDS = 600  # without a write, after which a file is taken for what a killed writer left
READ_BYTES = 4 << 20
NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
NOT_HERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
Found = TypeVar("Found")


class Damaged(ValueError):
    """A file is not as its manifest describes it; the message names the file and what to do."""


class InUse(OSError):
    """Another run holds the lock of an output; the message says which one and what to do."""


# ---- names and checksums --------------------------------------------------------------------------------------------


def file_in(folder: Path, name: Any) -> Path:
    """Join the name of a file, as a manifest gives it, to the folder of the manifest.

    Raises:
        Damaged: not a plain file name: absolute, with a separator, "..", or no text.
    """
    plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0", ":"}
    if not plain:
        raise Damaged(f"{folder}: its manifest names {name!r:.80}, which is not a plain file name in that folder.")
    return folder / name


def checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits, read block by block."""
    total = hashlib.sha256()
    buffer = bytearray(READ_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            total.update(view[:size])
    return total.hexdigest()


def _own_checksum(record: Mapping[str, Any]) -> str:
    """Checksum of a manifest's content, independent of its layout."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---- single files ---------------------------------------------------------------------------------------------------


@contextmanager
def write_file(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that replaces ``path`` when the block ends: a reader sees the old file or the whole new one.

    Args:
        path: of the file; its folder exists.
        mode: "wb", or "w" for UTF-8 text.

    Raises:
        OSError: no room, or the place cannot be written; the message names the file and what to do.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with write_file(path, "w") as file:
        ...     _ = file.write("1 2 3")
        >>> path.read_text()
        '1 2 3'
    """
    path = Path(path)
    with explained(path):
        with _aside(path, mode) as (file, aside):
            yield file
            file.flush()
            sync(file.fileno())
            file.close()  # Windows renames no open file
            os.replace(aside, path)
        sync_folder(path.parent)


@contextmanager
def _aside(path: Path, mode: str) -> Iterator[tuple[IO[Any], Path]]:
    """A file beside ``path``, open for writing; what is left of it when the block ends is removed."""
    _sweep_once(path.parent)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{NEW}")
    try:
        with open(aside, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file, aside
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@cache
def _sweep_once(folder: Path) -> None:
    """`sweep` once per process and folder: a listing for each of many small files would cost more than the files."""
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove the files that killed writers of `write_file` left in a folder.

    Single files are written without a lock: a file that was not written to for `OLD_SECONDS` belongs to a writer that
    has ended.
    """
    for path in _listed(folder):
        if re.fullmatch(rf"\..+\.[0-9a-f]{{8}}\{NEW}", path.name):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > OLD_SECONDS:
                    path.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text with `write_file`."""
    with write_file(path, "w") as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write JSON with `write_file`."""
    with write_file(path, "w") as file:
        json.dump(record, file, indent=1, sort_keys=True)


def aside_of(path: Path) -> Path:
    """A hidden name beside ``path``, for a file that is being written."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")


def sync(descriptor: int) -> None:
    """Wait until an open file is on the disk.

    On macOS the drive's own cache is flushed too, which ``fsync`` does not do there.
    """
    os.fsync(descriptor)
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # network file systems do not offer it
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)


def sync_file(path: Path) -> None:
    """Flush a file that another function wrote to the disk."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Windows offers no such call; there renames are journalled."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync folders by themselves
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder at once: it is renamed to a hidden name first, so that no half of it is ever found."""
    trash = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TRASH}")
    try:
        os.rename(path, trash)
    except FileNotFoundError:
        return
    _delete(trash)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def publish_folder(part: Path, place: Path) -> None:
    """Give a finished folder its name, after all its files are on the disk; it takes the place of one of that name.

    Where there is a folder already, two renames are needed, and a stop between them leaves the old one under a hidden
    name: `clean` puts it back.
    """
    with explained(place):
        for folder, _, files in os.walk(part):
            for name in files:
                sync_file(Path(folder) / name)
            sync_folder(Path(folder))
        if place.exists():
            before = place.with_name(f".{place.name}.{secrets.token_hex(4)}{BEFORE}")
            os.rename(place, before)
            os.rename(part, place)
            _delete(before)
        else:
            os.rename(part, place)
        sync_folder(place.parent)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one sentence what went wrong on the disk, with which file, and what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, InUse) or getattr(error, "explained", False):
            raise
        if error.errno in NO_ROOM:
            advice = "no room on the disk. What is finished is kept: make room and run again to go on"
        elif error.errno in NOT_HERE:
            advice = "cannot be written there. Choose another place, or change the permissions"
        elif error.errno == errno.ENOENT and not path.parent.is_dir():
            advice = "its folder does not exist. Create it, or choose another place"
        elif error.errno == errno.EIO:
            advice = "the disk failed. What is finished is kept: run again to go on"
        else:
            raise
        explanation = OSError(error.errno, f"{path}: {advice} ({error.strerror or error}).")
        explanation.explained = True  # type: ignore[attr-defined]
        raise explanation from error


# ---- locks ----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(
    target: str | os.PathLike[str], advice: str, *, wait: bool = False, also: Sequence[str] = ()
) -> Iterator[None]:
    """Hold the lock of a file or folder while it is written, and clean up what a killed run left beside it.

    The lock is a hidden file beside the target, released by the operating system when its process ends, however it
    ends. A second hidden file says who holds it.

    Args:
        target: what is written; need not exist yet.
        advice: what a second run should do, as the end of a sentence: "choose another --out".
        wait: wait for the other run instead of refusing.
        also: names of files that are written beside the target under the same lock.

    Raises:
        InUse: another run holds the lock, and ``wait`` is False.
        OSError: the folder of the target cannot be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "mined.parquet"
        >>> with locked(target, "choose another --out"):
        ...     write_text(target, "a table")
    """
    target = Path(target)
    with _held(target, target.with_name(f".{target.name}"), advice, wait):
        with explained(target):
            clean(target, also)
        yield


@contextmanager
def locked_folder(folder: str | os.PathLike[str], advice: str, *, wait: bool = False) -> Iterator[None]:
    """As `locked`, for a folder that holds many outputs: the lock lies inside it.

    Raises:
        InUse: another run holds the lock, and ``wait`` is False.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    with _held(folder, folder / ".writer", advice, wait):
        yield


@contextmanager
def _held(target: Path, stem: Path, advice: str, wait: bool) -> Iterator[None]:
    holder = stem.with_name(f"{stem.name}.holder")
    with explained(target):
        stem.parent.mkdir(parents=True, exist_ok=True)
        # thread_local=False: the lock of a process, which any of its threads may release
        lock = FileLock(stem.with_name(f"{stem.name}.lock"), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            other = _holder(holder)
            if not wait:
                raise InUse(f"{target} is in use by {other}. Wait until it has ended, or {advice}.") from None
            logger.info("%s is in use by %s; waiting for it", target, other)
            lock.acquire(poll_interval=0.1)
    try:
        with suppress(OSError):  # it is only what a second run is told
            holder.write_text(json.dumps(_myself()), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _myself() -> dict[str, Any]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command[:200],
    }


def _holder(file: Path) -> str:
    """Who holds a lock, in words."""
    try:
        who = json.loads(file.read_text(encoding="utf-8"))
        return f"process {int(who['pid'])} on {who['host']!s:.80} ({who['command']!s:.200}, since {who['since']!s:.30})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def clean(target: Path, also: Sequence[str] = ()) -> None:
    """Remove what a killed writer of ``target`` left beside it; call it with the lock held.

    A version that was published but not yet under its own name gets its name; a folder that was being replaced comes
    back.

    Args:
        target: what was written.
        also: names of files that are written beside it under the same lock.
    """
    recover(manifest_of(target))
    names = "|".join(map(re.escape, (target.name, manifest_of(target).name, *also)))
    leftover = re.compile(rf"\.(?:{names})\.[0-9a-f]{{8}}(\.part|\.new|\.trash|\.before)")
    for left in _listed(target.parent):
        if match := leftover.fullmatch(left.name):
            if match.group(1) == BEFORE and not target.exists():
                os.rename(left, target)
            else:
                _delete(left)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


# ---- several files --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One file of a manifest.

    Args:
        path: the file's own place.
        size: in bytes; None = not recorded.
        sha256: of its bytes; for a folder, of its manifest; None = not recorded.
        aside: where it lies until it gets its own name; None = always in its own place.
    """

    path: Path
    size: int | None = None
    sha256: str | None = None
    aside: Path | None = None

    def now(self) -> Path:
        """Where the file is: aside, if the writer was stopped before it got its name."""
        return self.aside if self.aside is not None and self.aside.exists() else self.path


@dataclass
class Manifest:
    """What was published: settings and files, each with its checksum."""

    path: Path
    record: dict[str, Any]
    files: dict[str, Entry] = field(default_factory=dict)
    checked: bool = True
    """False: written before there were checksums."""

    def verified(self, role: str, remedy: str) -> Path:
        """Where a file is, after its size and checksum were compared.

        Args:
            role: name of the file in the manifest.
            remedy: what to do about a damaged one: "encode again".

        Raises:
            Damaged: missing, of another size, or with other bytes.
        """
        if role not in self.files:
            raise Damaged(f"{self.path}: lists no file for {role!r}; {remedy}.")
        entry = self.files[role]
        path = entry.now()
        seen = path
        if path.is_dir():
            seen = manifest_in(path)
        if not seen.is_file():
            raise Damaged(f"{seen} is missing or is not a file; {self.path} lists it. {_sentence(remedy)}")
        if entry.size is not None and (size := seen.stat().st_size) != entry.size:
            raise Damaged(f"{seen} has {size:,} bytes, {self.path} says {entry.size:,}: damaged. {_sentence(remedy)}")
        if entry.sha256 is not None and checksum(seen) != entry.sha256:
            raise Damaged(f"{seen} is damaged: its checksum is not the one in {self.path}. {_sentence(remedy)}")
        return path


def _sentence(remedy: str) -> str:
    return f"{remedy[0].upper()}{remedy[1:]}."


class Transaction:
    """Write several files and publish them together.

    Nothing that is read back changes before `commit`, which happens when the block ends without an error: every file
    is synced and its checksum taken, then one rename of the manifest publishes all. An error removes what was written.

    Files get names of their own (``role-<8 hex digits><suffix>`` in the manifest's folder), or, with ``named``, are
    written aside and get a fixed name after the manifest is published.

    Args:
        manifest: path of the manifest, a JSON file.
        record: plain values that the manifest keeps beside the files.

    Raises:
        OSError: no room, or the place cannot be written; the message names the file.

    Example:
        >>> import tempfile
        >>> manifest = Path(tempfile.mkdtemp()) / "pair.json"
        >>> with Transaction(manifest, {"format": 2}) as both:
        ...     _ = both.path("left", ".txt").write_text("1")
        ...     _ = both.path("right", ".txt").write_text("2")
        >>> read_manifest(manifest, "write it again").verified("left", "write it again").read_text()
        '1'
    """

    def __init__(self, manifest: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
        self.manifest = Path(manifest)
        self.folder = self.manifest.parent
        self.record = dict(record)
        self.token = secrets.token_hex(4)
        self.files: dict[str, tuple[Path, Path | None]] = {}  # role -> where it is written, and its fixed name

    def path(self, role: str, suffix: str = "") -> Path:
        """Where to write a file or a folder with a manifest of its own."""
        path = self.folder / f"{role}-{self.token}{suffix}"
        self.files[role] = (path, None)
        return path

    def named(self, role: str, name: str) -> Path:
        """Where to write a file that will have a fixed name."""
        path = self.folder / f".{name}.{self.token}{PART}"
        self.files[role] = (path, self.folder / name)
        return path

    def __enter__(self) -> Transaction:
        with explained(self.manifest):
            self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            with explained(self.manifest), self._undone():
                self.commit()
            return
        self.undo()
        if isinstance(error, OSError):
            with explained(self.manifest):
                raise error

    def commit(self) -> None:
        """Sync, take checksums, publish, give fixed names, remove what the last version leaves behind."""
        entries: dict[str, dict[str, Any]] = {}
        for role, (path, fixed) in self.files.items():
            seen = manifest_in(path) if path.is_dir() else path
            if not path.is_dir():
                sync_file(path)
            entries[role] = {"name": (fixed or path).name, "bytes": seen.stat().st_size, "sha256": checksum(seen)}
            if fixed is not None:
                entries[role]["aside"] = path.name
        sync_folder(self.folder)
        record = self.record | {"files": entries}
        text = json.dumps(record | {"checksum": _own_checksum(record)}, indent=1, sort_keys=True)
        with _aside(self.manifest, "w") as (file, aside):
            file.write(text)
            file.flush()
            sync(file.fileno())
            file.close()  # Windows renames no open file
            os.replace(aside, self.manifest)
        published, self.files = self.files, {}  # from here on nothing is undone
        for path, fixed in published.values():
            if fixed is not None:
                os.replace(path, fixed)
        sync_folder(self.folder)
        self._sweep(
            [role for role, (_, fixed) in published.items() if fixed is None],
            {path.name for path, _ in published.values()},
        )

    def _sweep(self, roles: list[str], keep: set[str]) -> None:
        """Remove files of earlier versions; what cannot be removed (open on Windows) is left for the next writer."""
        names = "|".join(map(re.escape, roles)) or "(?!)"
        half = re.escape(self.manifest.name)
        stale = re.compile(rf"(?:{names})-[0-9a-f]{{8}}(?:\..+)?|\.{half}\.[0-9a-f]{{8}}\.new")
        for path in _listed(self.folder):
            if path.name not in keep and stale.fullmatch(path.name):
                with suppress(OSError):
                    _delete(path)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Remove what was written and not published."""
        for path, _ in self.files.values():
            with suppress(OSError):
                _delete(path)


def read_manifest(path: str | os.PathLike[str], remedy: str) -> Manifest:
    """Read a manifest that `Transaction` wrote, or one from before there were checksums (``checked`` is False then).

    Args:
        path: of the manifest.
        remedy: what to do about a damaged one: "encode again".

    Raises:
        FileNotFoundError: there is none.
        Damaged: not JSON, of another form, or changed since it was written; names outside its folder.
    """
    path = Path(path)
    broken = f"{path} is damaged or no manifest of this library"
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{broken} ({error!s:.80}). {_sentence(remedy)}") from None
    if not isinstance(record, dict) or not isinstance(record.get("files", {}), dict):
        raise Damaged(f"{broken}. {_sentence(remedy)}")
    checked = "checksum" in record
    if checked and record["checksum"] != _own_checksum(record):
        raise Damaged(f"{path} was changed or damaged: its checksum does not fit. {_sentence(remedy)}")
    files = {}
    for role, entry in record.get("files", {}).items():
        if not checked:  # of the old form: a name alone. An entry of the new form without a checksum is refused
            files[role] = Entry(file_in(path.parent, entry))
            continue
        try:
            aside = file_in(path.parent, entry["aside"]) if "aside" in entry else None
            files[role] = Entry(file_in(path.parent, entry["name"]), int(entry["bytes"]), str(entry["sha256"]), aside)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, Damaged):
                raise
            raise Damaged(
                f"{broken}: its entry {role!r:.40} lacks a name, size or checksum. {_sentence(remedy)}"
            ) from None
    return Manifest(path, record, files, checked)


def read_published(path: str | os.PathLike[str], remedy: str, read: Callable[[Manifest], Found]) -> Found:
    """Read a manifest and its files; read again if a writer published another version meanwhile.

    Raises:
        FileNotFoundError, Damaged: as `read_manifest`; and the errors of ``read``.
    """
    path = Path(path)
    for _ in range(20):
        before = _seen(path)
        manifest = read_manifest(path, remedy)
        try:
            return read(manifest)
        except (OSError, ValueError):
            if _seen(path) == before:
                raise
    return read(read_manifest(path, remedy))


def _seen(path: Path) -> tuple[int, int] | None:
    """What tells one published version from another."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def recover(manifest: Path) -> None:
    """Give files that were published, but not yet named when their writer was stopped, their names."""
    try:
        entries = read_manifest(manifest, "remove it").files.values()
    except (OSError, ValueError):
        return  # the reader of this manifest raises the error
    for entry in entries:
        if entry.aside is not None and entry.aside.exists():
            os.replace(entry.aside, entry.path)


def manifest_of(table: Path) -> Path:
    """Where the manifest of a table lies: beside it."""
    return table.with_name(f"{table.stem}.manifest.json")


def manifest_in(folder: Path) -> Path:
    """Where the manifest of a folder lies: of a store or of an index."""
    index = folder / "index.json"
    return index if index.exists() else folder / "store.json"


def verified_table(path: str | os.PathLike[str], role: str, remedy: str) -> Path:
    """Where a table is, after it was compared with the manifest beside it.

    A table without one comes from another program, or from before there were checksums: the log says that it is
    unchecked.

    Args:
        path: of the table.
        role: its name in the manifest.
        remedy: what to do about a damaged one: "mine again".

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it was changed or damaged since it was written.
    """
    path = Path(path)
    manifest = manifest_of(path)
    if manifest.exists():
        return read_published(manifest, remedy, lambda found: found.verified(role, remedy))
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    logger.warning("%s has no manifest beside it: read as it is, unchecked.", path)
    return path


def value_of(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: Path, remedy: str) -> Any:
    """A value of a manifest, of the type that it must have.

    Raises:
        Damaged: missing or of another type.
    """
    value = record.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Damaged(f"{where}: {name!r} is {value!r:.60}. {_sentence(remedy)}")
    return value
