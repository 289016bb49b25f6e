"""The table of costs names every miner, and compares steps that train."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.step import cost
from benchmarks.step.cost import FOUR_BLOCKS, ONE_BLOCK, ready_miners, steps_of


def test_every_miner_without_a_corpus_is_there() -> None:
    assert {"SelfBlocks", "GIST", "PositiveAware", "MemoryQueue"} <= set(ready_miners())
    assert "ADORE" not in ready_miners()


def test_every_step_trains() -> None:
    steps = steps_of(16, seed=0)
    assert next(iter(steps)) == ONE_BLOCK
    values = {name: step() for name, step in steps.items()}
    assert all(bool(torch.isfinite(value)) for value in values.values())
    for name in (
        "InBatch, GIST",
        "InBatch, SelfBlocks",
        "InBatch, MemoryQueue",
        "InBatch, ClusterWeights",
        FOUR_BLOCKS,
    ):
        assert values[name] != values[ONE_BLOCK]


def test_the_table_says_how_equal_both_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "SIZES", (16, 24))
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["cost", "--repeats", "2", "--out", str(tmp_path / "cost.md")])
    cost.main()
    torch.set_num_threads(threads)
    text = (tmp_path / "cost.md").read_text()
    assert f"| {ONE_BLOCK} | " in text
    assert f"| {FOUR_BLOCKS} | " in text
    assert "times as slow; values differ by" in text
    assert text == capsys.readouterr().out.rstrip("\n") + "\n"
