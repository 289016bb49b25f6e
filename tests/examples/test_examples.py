"""Every example runs, and prints a result."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
SMALLER = {"sentence_transformers_trainer": ["--steps", "2", "--rows", "128"], "meta_paths": ["--epochs", "2"]}
"""What makes an example that takes a minute a test that takes seconds."""
NEEDS = {"meta_paths": "torch_geometric"}
"""Packages of extras, without which an example is not tried."""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tmp_path):
    if example.stem in NEEDS:
        pytest.importorskip(NEEDS[example.stem])
    root = example.parent.parent
    done = subprocess.run(
        [sys.executable, str(example), *SMALLER.get(example.stem, [])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=_environment(root),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_plain_torch_is_short_and_needs_no_lightning():
    text = next(path for path in EXAMPLES if path.stem == "plain_torch").read_text()
    assert len(text.splitlines()) < 40
    assert "lightning" not in text


def test_the_trainer_example_is_short():
    text = next(path for path in EXAMPLES if path.stem == "sentence_transformers_trainer").read_text()
    assert len(text.splitlines()) < 60


def test_hard_batches_find_more():
    example = next(path for path in EXAMPLES if path.stem == "plain_torch")
    done = subprocess.run(
        [sys.executable, str(example)],
        capture_output=True,
        text=True,
        env=_environment(example.parent.parent),
        check=True,
    )
    random, mined = (float(share) for share in re.findall(r": (0\.\d+) found", done.stdout))
    assert mined > random


def _environment(root: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
