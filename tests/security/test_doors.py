"""SECURITY.md lists every option and key that takes a path, a class or a text, and each kind of door has a payload."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest

from hardneg.cli import COMMANDS
from hardneg.encoders.base import Encoder
from miners.store import Store
from tests.security import doors
from tests.test_architecture import FOLDERS, ROOT, sources

TEXT, NO_KEY = "text", "index"
PARSERS = {
    "hardneg/cli.py": "the commands of `hardneg`; each module adds its arguments",
    "hardneg/audit/cli.py": "the defaults of `hardneg mine`",
    "hardneg/quickstart.py": "python -m hardneg.quickstart",
}


@cache
def written() -> Mapping[str, frozenset[str]]:
    """Kinds of doors by option or key, as SECURITY.md lists them."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("\n## Every option and key\n")[1]
    found: dict[str, frozenset[str]] = {}
    for section in text.split("\n### ")[1:]:
        kinds, _, lines = section.partition("\n")
        for line in re.split(r"\n- ", lines):
            where, _, names = line.partition(":")
            for group in re.findall(r"`([^`]+)`", where) or [where.strip("- \n")]:
                for name in re.findall(r"`([^`]+)`", names):
                    key = name if group == "YAML" else f"{group} {name}"
                    found[key] = found.get(key, frozenset()) | frozenset(kinds.split(", "))
    return found


def tried() -> Mapping[str, list[str]]:
    """Tests by the kind of door that they try, which fail if their payload runs."""
    found: dict[str, list[str]] = {}
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        for name, test in vars(importlib.import_module(f"{__package__}.{file.stem}")).items():
            for mark in getattr(test, "pytestmark", ()):
                if mark.name == "door" and "mark" in inspect.signature(test).parameters:
                    for kind in mark.args:
                        found.setdefault(kind, []).append(f"{file.name}::{name}")
    return found


def kinds_described() -> dict[str, str]:
    """Of the table "Kinds of doors": kind -> the test that it names."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("\n## Kinds of doors\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    return {row[0].strip(): row[-1].strip().strip("`") for row in rows}


def test_every_option_and_key_is_written_down() -> None:
    derived = {*doors.options(), *doors.keys(), *doors.suite_keys()}
    assert len(doors.options()) > 80
    assert len(doors.keys()) > 150
    assert sorted(derived - written().keys()) == [], "say in SECURITY.md what kind of door it is"
    assert sorted(written().keys() - derived) == [], "take it out of SECURITY.md"


def test_what_takes_a_path_or_a_class_is_no_mere_text() -> None:
    kinds = {**doors.options(), **doors.keys()}
    assert [name for name, of in written().items() if TEXT in of and kinds.get(name) in ("path", "class")] == []
    assert [name for name, of in written().items() if TEXT in of and len(of) > 1] == []


def test_each_kind_has_a_payload() -> None:
    used = frozenset().union(*written().values()) - {TEXT} | {NO_KEY}
    assert used == kinds_described().keys()
    assert used - tried().keys() == set(), "write a test with a harmless payload: @door(kind), and the fixture `mark`"
    assert [kind for kind, test in kinds_described().items() if test not in tried()[kind]] == []


def test_there_are_no_other_parsers() -> None:
    made = {path for path, tree in sources(*FOLDERS) if "ArgumentParser" in {_name(node) for node in _calls(tree)}}
    assert made == PARSERS.keys()


def _calls(tree: ast.Module) -> Iterator[ast.expr]:
    return (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


# ---- the derivation sees what is new ---------------------------------------------------------------------------------


def test_a_new_option_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from hardneg.report import cli

    def add_arguments(parser: Any) -> None:
        parser.add_argument("--template", type=Path)
        parser.add_argument("--words")
        parser.add_argument("--store")
        parser.add_argument("--number", type=int)
        parser.add_argument("--flag", action="store_true")
        parser.add_argument("--one-of", choices=("a", "b"))

    monkeypatch.setattr(cli, "add_arguments", add_arguments)
    found = dict(doors._of_parser(doors._parser("report")))
    assert found == {
        "hardneg report --template": "path",
        "hardneg report --words": "text",
        "hardneg report --store": "path",
    }


def test_every_command_is_asked() -> None:
    asked = {" ".join(name.split()[:2]) for name in doors.options()}
    assert {f"hardneg {command}" for command in COMMANDS} <= asked


def test_a_new_class_is_seen() -> None:
    """What the list must reach: by inheritance, by the type of an argument, and functions that return an encoder."""
    found = {each.__name__ for each in doors.reachable()}
    assert {"RetrievalData", "RetrievalModule", "TextEncoder", "RefreshNegatives", "SentenceTransformersPeer"} <= found
    assert {"StaticNegatives", "TaxonomyNegatives", "Generated", "PairsTable", "FaceTest", "Store", "IRResNet"} <= found
    assert {"load_images", "load_composed", "load_signals", "load_towers", "load_tabular", "CrossEncoder"} <= found


@pytest.mark.parametrize(
    ("hint", "name", "kind"),
    [
        (str, "prompt", "text"),
        (str | None, "guide_folder", "path"),
        (str | Path, "negatives", "path"),
        (Path | None, "x", "path"),
        (Sequence[str], "texts", "text"),
        (list[dict[str, str]], "tables", "path"),
        (dict[str, float], "mix", "nothing"),
        (dict[str, Encoder], "parts", "class"),
        (tuple[int, ...] | None, "sizes", "nothing"),
        (Literal["a", "b"] | None, "folder", "nothing"),
        (str | Store | None, "frozen", "class"),
        (Any, "anything", "class"),
        (type[Encoder], "kind", "class"),
    ],
)
def test_types_are_told_apart(hint: Any, name: str, kind: str) -> None:
    assert doors.kind_of(hint, name) == kind
