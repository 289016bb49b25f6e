"""What is read back is the last whole version, after any crash of its writer or damage to its bytes."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from miners.index import FaissIndex, TorchIndex
from miners.offline import MinedNegatives, mine
from miners.store import Store
from miners.transaction import (
    Damaged,
    InUse,
    Transaction,
    aside_of,
    explained,
    file_in,
    locked,
    locked_folder,
    publish_folder,
    read_manifest,
    verified_table,
    write_file,
    write_text,
)
from tests.faults import crashes, failing, steps

BEFORE = Path(__file__).parents[1] / "samples" / "before"


def store(version: int, rows: int = 12) -> Store:
    vectors = torch.randn(rows, 4, generator=torch.Generator().manual_seed(version))
    return Store(vectors, version=version, names=[f"d{row}" for row in range(rows)])


@cache  # mined in this process: a forked child has no threads to multiply with
def table(version: int, queries: int = 6) -> MinedNegatives:
    asked = torch.randn(queries, 4, generator=torch.Generator().manual_seed(9))
    positives = [[row] for row in range(queries)]
    return mine(asked, store(0, 40), positives, num_negatives=version, progress=False)


@dataclass
class Kind:
    """One kind of output: a function that writes a version, and one whose value differs between versions."""

    write: Callable[[Path, int], object]
    read: Callable[[Path], Any]


def write_index(make: Any) -> Callable[[Path, int], None]:
    return lambda place, version: make(store(version, 10 + version)).save(place)


def read_index(kind: Any) -> Callable[[Path], Any]:
    def read(place: Path) -> Any:
        index = kind.load(place, device="cpu")
        found = index.search(torch.eye(4), 3)
        return index.store.version, [part.tolist() for part in found]

    return read


def read_table(place: Path) -> Any:
    mined = MinedNegatives.load(place / "mined.parquet")
    return mined.metadata["settings"]["num_negatives"], mined.table.to_pylist(), mined.queries.to_pylist()


def read_store(place: Path) -> Any:
    found = Store.load(place)
    return found.version, found.vectors.tolist(), found.names


def write_pair(place: Path, version: int) -> None:
    with Transaction(place / "pair.json", {"format": 2}) as both:
        both.path("left", ".txt").write_text(f"{version}")
        both.path("right", ".txt").write_text(f"{version}")


def read_pair(place: Path) -> Any:
    manifest = read_manifest(place / "pair.json", "write it again")
    left, right = (manifest.verified(role, "write it again").read_text() for role in ("left", "right"))
    assert left == right
    return left


def write_folder(place: Path, version: int) -> None:
    with locked(place / "model", "choose another folder"):
        part = aside_of(place / "model")
        with explained(place / "model"):
            part.mkdir()
            for name in "ab":
                (part / name).write_text(f"{version}")
        publish_folder(part, place / "model")


def read_folder(place: Path) -> Any:
    if not (place / "model").exists():
        with locked(place / "model", "choose another folder"):
            pass  # the next writer restores it
    first, second = ((place / "model" / name).read_text() for name in "ab")
    assert first == second
    return first


SAMPLED = {"torch index": 2, "faiss index": 2, "table": 2}  # they write with the steps of the others
KINDS = {
    "pair": Kind(write_pair, read_pair),
    "file": Kind(lambda place, version: write_text(place / "f", f"{version}" * 99), lambda p: (p / "f").read_text()),
    "folder": Kind(write_folder, read_folder),
    "store": Kind(lambda place, version: store(version).save(place), read_store),
    "torch index": Kind(write_index(TorchIndex), read_index(TorchIndex)),
    "faiss index": Kind(write_index(lambda s: FaissIndex(s, "Flat", device="cpu")), read_index(FaissIndex)),
    "table": Kind(lambda place, version: table(version).to_parquet(place / "mined.parquet"), read_table),
}


LEFTOVERS = (".part", ".trash", ".before")


@pytest.mark.parametrize("name", KINDS)
def test_a_writer_killed_at_any_step_leaves_the_old_version_or_the_new(tmp_path: Path, name: str, sampled: int) -> None:
    kind, place, kept = KINDS[name], tmp_path / "place", tmp_path / "kept"
    versions = []
    for version in (1, 2):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        kind.write(place, version)
        versions.append(kind.read(place))
        if version == 1:
            shutil.copytree(place, kept)
    assert versions[0] != versions[1]
    restore(place, kept)
    tried = 0
    for step in crashes(lambda: kind.write(place, 2), sampled):
        assert kind.read(place) in versions, step
        kind.write(place, 2)  # the next run cleans up and comes through
        assert kind.read(place) == versions[1]
        assert not [path.name for path in place.rglob("*") if path.name.endswith(LEFTOVERS)], step
        restore(place, kept)
        tried += 1
    assert tried >= 3


@pytest.fixture
def sampled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Distance between the steps that are tried. A crash of the process loses nothing that was not synced, so that
    syncing costs time alone here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return SAMPLED.get(request.node.callspec.params["name"], 1)


def write_failing(kind: Kind, place: Path, step: int) -> None:
    with failing(step):
        kind.write(place, 2)


def outcome(act: Callable[[], object], expected: type[Exception]) -> str | None:
    """The message of the error that ``act`` ends in, or None."""
    try:
        act()
    except expected as error:
        return str(error)
    return None


def restore(place: Path, kept: Path) -> None:
    shutil.rmtree(place)
    shutil.copytree(kept, place)


@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_at_any_step_is_told_and_the_old_version_kept(tmp_path: Path, name: str, sampled: int) -> None:
    kind, place, kept = KINDS[name], tmp_path / "place", tmp_path / "kept"
    place.mkdir()
    kind.write(place, 1)
    old = kind.read(place)
    shutil.copytree(place, kept)
    total = steps(lambda: kind.write(place, 2))
    new = kind.read(place)
    told = 0
    for step in range(1, total + 1, sampled):
        restore(place, kept)
        error = outcome(lambda step=step: write_failing(kind, place, step), OSError)
        if error is not None:
            assert str(place) in error, step
            assert "no room on the disk" in error, step
            told += 1
        assert kind.read(place) in (old, new), step
    assert told * sampled >= total // 2  # what only cleans up may fail in silence: the next run does it


@pytest.mark.parametrize("name", ["pair", "store", "torch index", "faiss index", "table"])
def test_every_flipped_or_cut_byte_is_noticed_or_harmless(tmp_path: Path, name: str) -> None:
    kind, chance = KINDS[name], random.Random(0)
    kind.write(tmp_path, 1)
    right = kind.read(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    for turn in range(60):
        path = files[turn % len(files)]
        content = path.read_bytes()
        at = chance.randrange(len(content))
        if turn % 4 == 3:
            path.write_bytes(content[:at])
        else:
            flipped = bytes([content[at] ^ (1 << chance.randrange(8))])
            path.write_bytes(content[:at] + flipped + content[at + 1 :])
        found: list[Any] = []
        error = outcome(lambda found=found: found.append(kind.read(tmp_path)), ValueError)
        assert found == [right] if error is None else str(tmp_path) in error, (path, at)
        path.write_bytes(content)
    assert kind.read(tmp_path) == right


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    store(1).save(tmp_path)
    (vectors,) = tmp_path.glob("vectors-*.npy")
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(Damaged, match=rf"{vectors.name} is damaged: .*Remove the folder and encode again"):
        Store.load(tmp_path)
    vectors.write_bytes(whole[:-4])
    with pytest.raises(Damaged, match=rf"{vectors.name} has 316 bytes, .* says 320"):
        Store.load(tmp_path)
    vectors.unlink()
    with pytest.raises(Damaged, match=rf"{vectors.name} is missing"):
        Store.load(tmp_path)


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.npy", "..", "", "a/b", "a\\b", "C:secret", None, 3, ["a"]])
def test_a_name_in_a_file_never_leaves_its_folder(tmp_path: Path, name: Any) -> None:
    with pytest.raises(Damaged, match="not a plain file name"):
        file_in(tmp_path, name)


@pytest.mark.parametrize("name", ["../secret.npy", "/etc/passwd"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_store_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: str, checked: bool) -> None:
    from miners.transaction import _own_checksum

    folder = tmp_path / "store"
    if checked:
        store(1).save(folder)
    else:
        shutil.copytree(BEFORE / "store", folder)
    record = json.loads((folder / "store.json").read_text())
    if checked:
        record["files"]["vectors"]["name"] = name
        record["checksum"] = _own_checksum(record)  # an attacker can write a matching checksum
    else:
        record["files"]["vectors"] = name
    (folder / "store.json").write_text(json.dumps(record))
    with pytest.raises(Damaged, match="not a plain file name"):
        Store.load(folder)


def test_an_index_sets_only_the_attributes_that_it_may(tmp_path: Path) -> None:
    from miners.transaction import _own_checksum

    FaissIndex(store(1), "Flat", device="cpu").save(tmp_path)
    record = json.loads((tmp_path / "index.json").read_text())
    record["settings"]["search"] = "anything"
    record["checksum"] = _own_checksum(record)
    (tmp_path / "index.json").write_text(json.dumps(record))
    with pytest.raises(Damaged, match="search"):
        FaissIndex.load(tmp_path)


# ---- versions from before there were checksums ----------------------------------------------------------------------


def test_what_was_written_before_is_read_and_said_to_be_unchecked(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        old = Store.load(BEFORE / "store")
    assert (len(old), old.key, old.version, old.names[3]) == (12, "k", 3, "d3")  # type: ignore[index]
    assert "unchecked" in caplog.text
    for kind in (TorchIndex, FaissIndex):
        caplog.clear()
        index = kind.load(BEFORE / f"{kind.__name__.removesuffix('Index').lower()}_index", device="cpu")
        scores, ids = index.search(old.vectors[:5], 1)
        assert ids.flatten().tolist() == [0, 1, 2, 3, 4]
        assert torch.allclose(scores, (old.vectors[:5] ** 2).sum(1, keepdim=True))
        assert "unchecked" in caplog.text
    caplog.clear()
    mined = MinedNegatives.load(BEFORE / "negatives.parquet")
    assert (len(mined), len(mined.queries)) == (8, 4)
    assert "unchecked" in caplog.text


def test_a_checksum_cannot_be_taken_away(tmp_path: Path) -> None:
    store(1).save(tmp_path)
    record = json.loads((tmp_path / "store.json").read_text())
    del record["checksum"]
    (tmp_path / "store.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"names .*, which is not a plain file name"):
        Store.load(tmp_path)


def test_two_tables_of_two_runs_are_refused(tmp_path: Path) -> None:
    for version in (1, 2):
        table(version).to_parquet(tmp_path / f"{version}.parquet")
    shutil.copy(tmp_path / "2.queries.parquet", tmp_path / "1.queries.parquet")
    with pytest.raises(Damaged, match=r"1\.queries\.parquet .*Remove it and its manifest, and mine again"):
        MinedNegatives.load(tmp_path / "1.parquet")
    (tmp_path / "1.manifest.json").unlink()
    with pytest.raises(Damaged, match="come from two runs with other settings"):
        MinedNegatives.load(tmp_path / "1.parquet")


def test_a_table_of_another_program_is_said_to_be_unchecked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table(1).to_parquet(tmp_path / "mined.parquet")
    assert verified_table(tmp_path / "mined.parquet", "negatives", "mine again") == tmp_path / "mined.parquet"
    assert not caplog.text
    (tmp_path / "mined.manifest.json").unlink()
    verified_table(tmp_path / "mined.parquet", "negatives", "mine again")
    assert "unchecked" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"other\.parquet"):
        verified_table(tmp_path / "other.parquet", "negatives", "mine again")


# ---- locks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", [locked, locked_folder])
def test_a_second_writer_is_told_who_writes_and_what_to_do(tmp_path: Path, lock: Any) -> None:
    place = tmp_path / "out"
    told = rf"out is in use by process {os.getpid()} on .*, or choose another --out\.$"
    with lock(place, "choose another --out"), pytest.raises(InUse, match=told), lock(place, "choose another --out"):
        pass
    with lock(place, "choose another --out"):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "out", "choose another --out"):
            os._exit(0)
    os.waitpid(child, 0)
    with locked(tmp_path / "out", "choose another --out"):
        pass


def test_who_waits_gets_the_lock_next(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path / "out", "", wait=True):
            order.append("second")

    with locked(tmp_path / "out", ""):
        waiting = threading.Thread(target=second)
        waiting.start()
        order.append("first")
    waiting.join(20)
    assert order == ["first", "second"]


@pytest.mark.parametrize("count", [2, 4])
def test_writers_of_one_store_at_once_leave_one_of_their_versions(tmp_path: Path, count: int) -> None:
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            refused = 0
            for _ in range(10):
                try:
                    store(number).save(tmp_path)
                except InUse:
                    refused += 1
                except BaseException:
                    os._exit(1)
            os._exit(0 if refused < 10 else 2)
        children.append(child)
    whole = [read_store_of(number) for number in range(count)]
    while children:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) in (0, 2)
            children.remove(done)
        if (tmp_path / "store.json").exists():
            assert read_store(tmp_path) in whole
    assert read_store(tmp_path) in whole


def read_store_of(version: int) -> Any:
    one = store(version)
    return one.version, one.vectors.tolist(), one.names


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file.* cannot be written there\. Choose another place"):
        store(1).save(tmp_path / "file")
    with (
        pytest.raises(OSError, match=r"its folder does not exist\. Create it"),
        write_file(tmp_path / "none" / "f", "w"),
    ):
        pass
