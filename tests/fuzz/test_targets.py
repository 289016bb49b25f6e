"""A few hundred mutations of every kind of file: refused by name, harmless, or made again."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from miners.transaction import _own_checksum
from tests.fuzz.targets import TARGETS, Fuzzer, quiet

MUTATIONS = {"mining, interrupted": 30, "cache": 40, "cache, interrupted": 40}


@pytest.fixture(autouse=True)
def few_words_and_no_syncing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with quiet():
        yield


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_never_gives_another_answer(name: str, tmp_path: Path) -> None:
    fuzzer = Fuzzer(name, tmp_path)
    for number in range(MUTATIONS.get(name, 100)):
        fuzzer.try_one(random.Random(f"{name} {number}"))


def test_the_fuzzer_sees_a_reader_that_believes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import miners.transaction as module

    fuzzer = Fuzzer("store", tmp_path)
    monkeypatch.setattr(module, "checksum", lambda path: Anything())
    with pytest.raises(AssertionError, match="another answer was accepted"):
        all(fuzzer.try_one(random.Random(number)) for number in range(100))


class Anything(str):
    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(record: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every value of nested JSON, by its path."""
    inner = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    return [path, *(found for key, value in inner for found in places(value, (*path, key)))]


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fuzzer]:
    names = ("store", "torch index", "faiss index", "table")
    return {name: Fuzzer(name, tmp_path_factory.mktemp("fuzzed") / name.replace(" ", "-")) for name in names}


@pytest.mark.parametrize("name", ["store", "torch index", "faiss index", "table"])
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_manifest_of_any_content_with_the_right_checksum(
    fuzzers: dict[str, Fuzzer], name: str, data: st.DataObject
) -> None:
    """An attacker can write a matching checksum: values of another type or size are refused by name.

    Only names, keys and versions, which nothing else knows, may differ from the untouched answer.
    """
    fuzzer = fuzzers[name]
    shutil.rmtree(fuzzer.place)
    shutil.copytree(fuzzer.valid, fuzzer.place)
    manifests = sorted(path for path in fuzzer.place.rglob("*.json"))
    file = data.draw(st.sampled_from(manifests))
    record = json.loads(file.read_text())
    where = data.draw(st.sampled_from([path for path in places(record) if path and path != ("checksum",)]))
    part = record
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = data.draw(VALUES)
    record["checksum"] = _own_checksum(record)
    file.write_text(json.dumps(record))
    free = where[0] in ("space", "key", "version", "settings")
    try:
        fuzzer.outcome(f"{file.name}: {'.'.join(map(str, where))} = {part[where[-1]]!r}")
    except AssertionError as error:
        if not (free and "another answer" in str(error)):
            raise
