"""The meter of memory counts what a step holds, and what it gave back does not stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.step.measure import peak_megabytes, seconds, seconds_together, write_table


def test_peak_is_what_lives_at_once() -> None:
    before = torch.ones(5_000_000)

    def step() -> torch.Tensor:
        for _ in range(3):
            kept = torch.empty(2_000_000)  # 8 MB, given back each time
        more = torch.empty(500_000)
        return (kept[:1] + more[:1] + before[:1]).detach()

    assert peak_megabytes(step) == pytest.approx(16, abs=1)  # a new tensor is made before the old one goes


def test_seconds_and_table(tmp_path: Path) -> None:
    assert seconds(lambda: torch.zeros(()), 3) < 0.1
    write_table(tmp_path / "t.md", "Title", "command", ("a", "b"), [("1", "2")], ["a note"], packages=["numpy"])
    text = (tmp_path / "t.md").read_text()
    assert "| a | b |\n|---|---|\n| 1 | 2 |" in text
    assert "numpy" in text
    assert "torch" in text


def test_steps_taken_in_turns() -> None:
    turns: list[str] = []

    def step(name: str) -> torch.Tensor:
        turns.append(name)
        return torch.zeros(())

    taken = seconds_together({"one": lambda: step("one"), "two": lambda: step("two")}, 2)
    assert turns == ["one", "two"] * 3  # the first turn is not counted
    assert all(0 <= time < 0.1 for time in taken.values())
