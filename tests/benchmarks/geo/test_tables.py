"""What is measured is the whole table, and the page holds all parts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.geo import tables

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("part", tables.PARTS)
def test_a_part(part: str) -> None:
    pytest.importorskip("faiss")
    found = tables.work(part, 300, 8, 0)()
    if part.startswith("order"):
        assert sorted(found.tolist()) == list(range(300))
    assert set(tables.measure(part, 300, 8, 0)) == {"clock", "processor", "megabytes"}


def test_vectors_are_unit_vectors() -> None:
    assert torch.allclose(tables.unit_vectors(5, 7, 0).norm(dim=1), torch.ones(5))


@pytest.mark.slow
def test_a_small_run_writes_its_page(tmp_path: Path) -> None:
    out = tmp_path / "tables.md"
    tables.main(["--rows=500", "--dim=8", f"--out={out}"])
    assert out.read_text().count("500") >= 3
