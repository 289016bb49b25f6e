"""The source imports by name, and calls what it found by name, in one place."""

from __future__ import annotations

import ast

import pytest

from tests.test_architecture import FOLDERS, sources

BY_NAME = {
    "__import__",
    "eval",
    "exec",
    "exec_module",
    "find_loader",
    "import_from_string",
    "import_module",
    "import_object",
    "import_string",
    "load_module",
    "locate",
    "resolve_name",
    "run_module",
    "run_path",
    "spec_from_file_location",
}
ALLOWED = {
    "hardneg/instantiate.py": "the one function; what it finds is checked before it is called",
    "hardneg/cli.py": "commands, by the constant table OTHERS",
    "hardneg/encoders/model_files.py": "only names in the package sentence_transformers; looked at and never called",
    "hardneg/encoders/text.py": "packages of models, by the constant table PACKAGED",
    "miners/__init__.py": "names that are imported when first used, by the constant table _LATER",
}


def called(node: ast.Call) -> str:
    """The name of what is called; a module's own ``eval()``, such as PyTorch's, is not Python's."""
    if isinstance(node.func, ast.Attribute):
        return "" if node.func.attr in ("eval", "exec") else node.func.attr
    return getattr(node.func, "id", "")


def by_name(tree: ast.Module) -> set[str]:
    """Names of functions that import or run what a string names, where they are called."""
    return {called(node) for node in ast.walk(tree) if isinstance(node, ast.Call)} & BY_NAME


def found_and_called(tree: ast.Module) -> list[int]:
    """Lines with ``getattr(...)(...)`` or ``globals()[...](...)``."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found = node.func.value if isinstance(node.func, ast.Subscript) else node.func
            if isinstance(found, ast.Call) and called(found) in ("getattr", "globals", "locals", "vars"):
                lines.append(node.lineno)
    return lines


def test_one_place_imports_by_name_and_calls_what_it_found() -> None:
    importing = set()
    for path, tree in sources(*FOLDERS):
        assert not found_and_called(tree), f"{path}: use hardneg.instantiate.instantiate"
        importing |= {path} if by_name(tree) else set()
    assert importing == ALLOWED.keys(), "import and call by hardneg.instantiate.instantiate, or say in ALLOWED why not"


@pytest.mark.parametrize(
    "code",
    ["importlib.import_module(x)", "getattr(importlib.import_module(x), y)(**z)", "globals()[x]()", "getattr(a, b)()"],
)
def test_the_walk_sees(code: str) -> None:
    tree = ast.parse(code)
    assert by_name(tree) or found_and_called(tree)
