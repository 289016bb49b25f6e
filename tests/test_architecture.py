"""The house keeps its shape: who may import whom, and where negatives are masked."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("miners", "datamodules", "hardneg")
OURS = {"miners": set(), "datamodules": {"miners"}, "hardneg": {"miners", "datamodules"}}
HEAVY = {
    "pytorch_lightning",
    "lightning",
    "sentence_transformers",
    "torchvision",
    "wandb",
    "transformers",
    "faiss",
    "datasets",
}
ALLOWED_HEAVY = {"miners/index/faiss_index.py": {"faiss"}, "miners/offline/exports.py": {"datasets"}}


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), parsed(path)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(tree: ast.Module) -> set[str]:
    """Top-level packages and hardneg submodules that a file imports anywhere, lazily too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_import_directions(folder):
    for path, tree in sources(folder):
        for module in imported(tree):
            top = module.split(".")[0]
            if top in FOLDERS and top != folder:
                assert top in OURS[folder], (
                    f"{path} imports {module}: {folder} may import {OURS[folder] or 'nothing'} of ours"
                )
            assert top not in ("tests", "benchmarks"), f"{path} imports {module}"


def test_nothing_imports_the_cli():
    commands = {"hardneg.cli", "hardneg.lightning_cli"}
    # the quickstart and a cell of a benchmark are `hardneg fit` with other arguments
    doors = {"hardneg/cli.py", "hardneg/lightning_cli.py", "hardneg/quickstart.py", "hardneg/benchmark/cell.py"}
    for path, tree in sources(*FOLDERS):
        assert path in doors or not imported(tree) & commands, f"{path} imports the CLI"


def test_miners_import_nothing_heavy():
    for path, tree in sources("miners"):
        heavy = {module.split(".")[0] for module in imported(tree)} & HEAVY
        assert heavy <= ALLOWED_HEAVY.get(path, set()), f"{path} imports {heavy}"


def test_masks_stand_in_the_pool_and_the_losses_only():
    """-inf, masked_fill and logsumexp: a second place where negatives are masked would be a second truth."""
    allowed = ("miners/pool.py", "hardneg/losses/", "miners/index/", "miners/offline/", "miners/testing.py")
    for path, tree in sources(*FOLDERS):
        if path.startswith(allowed) or not path.startswith(("miners", "hardneg/modules", "hardneg/losses")):
            continue
        words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not words & {"masked_fill", "masked_fill_", "logsumexp", "inf"}, f"{path} masks: let the pool do it"


def test_the_training_step_is_written_once():
    from hardneg.modules.base import ContrastiveModule
    from tests import families  # the stub families count as families

    assert families.FAMILIES
    pending, seen = [ContrastiveModule], set()
    while pending:
        pending += (kind := pending.pop()).__subclasses__()
        seen.add(kind)
        assert "training_step" not in vars(kind) or kind is ContrastiveModule, (
            f"{kind.__name__} overrides training_step"
        )
    assert len(seen) > 4


def test_no_pickle_and_no_unsafe_load():
    for path, tree in sources(*FOLDERS):
        assert not imported(tree) & {"pickle", "cloudpickle", "dill", "joblib"}, f"{path} imports a pickle"
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner = getattr(node.func.value, "id", "")
                given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
                assert owner != "torch" or given.get("weights_only") is True, f"{path}: torch.load without weights_only"
                assert owner not in ("np", "numpy") or given.get("allow_pickle") is False, (
                    f"{path}: np.load may unpickle"
                )


def fresh(code: str) -> str:
    """Run code in a new interpreter and give what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_miners_load_nothing_heavy():
    code = "import sys, miners; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(ast.literal_eval(fresh(code)))
    assert not loaded & HEAVY
    assert "pyarrow" not in loaded  # a base dependency, but slow to load
    # and the test can fail: the same code sees what a module does load
    assert "pyarrow" in set(ast.literal_eval(fresh(code.replace("miners;", "miners, pyarrow;"))))


def test_interop_loads_no_peer_before_it_is_asked_for():
    code = "import sys, hardneg.interop; print(sorted({m.split('.')[0] for m in sys.modules}))"
    assert not set(ast.literal_eval(fresh(code))) & (HEAVY | {"pytorch_metric_learning"})


def test_miners_work_without_faiss():
    code = """
import sys
sys.modules["faiss"] = None  # as if it were not installed
import torch
from miners import FaissIndex, NGAME, Store, TorchIndex
store = Store(torch.eye(4), torch.arange(4), "document")
print(TorchIndex(store).search(torch.eye(4)[:2], 1)[1].tolist())
try:
    FaissIndex(store)
except ImportError as error:
    print(error)
"""
    printed = fresh(code)
    assert "[[0], [1]]" in printed
    assert "hardneg[cpu]" in printed
    assert "hardneg[gpu]" in printed
