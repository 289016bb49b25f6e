"""The page of the thirty systems says what the code has: no more, and no less."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import hardneg.losses
import miners
from hardneg.losses import PoolLoss
from miners import BatchMiner, NegativeSource, PoolMiner

PAGE = Path(__file__).parents[2] / "docs" / "systems.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", TEXT, re.MULTILINE)
PATHS = sorted(set(re.findall(r"`((?:miners|hardneg|datamodules)(?:\.\w+)+)`", TEXT)))
LINKS = sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT)))


def found(path: str) -> object:
    """What a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_there_are_thirty_systems_each_with_an_answer() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 31))
    assert len({name for _, name, *_ in ROWS}) == 30
    for number, name, home, verdict in ROWS:
        lives = bool(re.search(r"`(miners|hardneg)", home))
        assert lives or home.startswith("none: "), f"{number} {name}: neither a place nor a reason"
        assert lives or verdict == "-", f"{number} {name}: a verdict on what is not there"


@pytest.mark.parametrize("path", PATHS)
def test_every_class_path_can_be_imported(path: str) -> None:
    if path.startswith("hardneg.interop.pykeen"):
        pytest.importorskip("pykeen")
    assert callable(found(path))


def test_every_public_miner_and_loss_is_on_the_page() -> None:
    for package, kinds in ((miners, (PoolMiner, NegativeSource, BatchMiner)), (hardneg.losses, (PoolLoss,))):
        for name in package.__all__:
            part = vars(package).get(name)
            if inspect.isclass(part) and issubclass(part, kinds) and not inspect.isabstract(part):
                assert f"{package.__name__}.{name}" in PATHS, f"docs/systems.md does not say what {name} is"


@pytest.mark.parametrize("link", LINKS)
def test_every_linked_file_exists(link: str) -> None:
    assert (PAGE.parent / link).exists()
