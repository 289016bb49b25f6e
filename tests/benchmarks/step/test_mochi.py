"""The benchmark of MoCHi compares two forms of the same thing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.step import mochi
from benchmarks.step.guided import with_gradients
from benchmarks.step.mochi import ALONE, LEAN, NAIVE, Problem


def test_both_forms_are_the_same_step() -> None:
    problem = Problem.random(8, 6, 50, seed=0, num_hard=10, num_pairs=20, num_with_anchor=5)
    found = {name: with_gradients(step, [problem.queries]) for name, step in list(problem.steps().items())[1:]}
    assert found[LEAN][0] > found[ALONE][0]
    torch.testing.assert_close(found[LEAN], found[NAIVE], rtol=1e-6, atol=1e-6)


def test_the_table_says_what_mixing_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mochi, "QUEUES", (64,))
    monkeypatch.setattr(mochi, "SETTING", {"num_hard": 10, "num_pairs": 20, "num_with_anchor": 5})
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["mochi", "--repeats", "2", "--out", str(tmp_path / "mochi.md")])
    mochi.main()
    torch.set_num_threads(threads)
    text = (tmp_path / "mochi.md").read_text()
    assert f"| 64 | {LEAN} | " in text
    assert "values of the two forms differ by" in text
