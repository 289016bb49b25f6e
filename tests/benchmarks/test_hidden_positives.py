"""The benchmark of hidden positives: what is hidden, what is counted, and a tiny run from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import hidden_positives as benchmark
from benchmarks.hidden_positives import Count, HiddenPositives
from miners import InBatch, NegativePool, PositiveAware, Ragged
from miners.testing import random_pool
from tests.distributed.tiny import TinyEncoder
from tests.hardneg.modules.runs import write_data


def by_hand(pool: NegativePool, hidden: list[list[int]]) -> tuple[int, int]:
    """Hidden positives that a pool holds, and that are left."""
    met = passed = 0
    for block in pool.negatives:
        usable = pool.usable_of(block)
        for row, own in enumerate(hidden):
            ids = block.items.ids if block.items.ids.ndim == 1 else block.items.ids[row]
            for column, one in enumerate(ids.tolist()):
                met += one in own
                passed += one in own and bool(usable[row, column])
    return met, passed


def test_one_positive_of_each_query_keeps_its_label(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "set")
    whole = HiddenPositives(str(folder), hide=False, single=True)
    whole.setup("fit")
    data = HiddenPositives(str(folder))
    data.setup("fit")
    assert len(whole.table) == 50
    assert len(data.table) == len(data.hidden.lengths.nonzero())
    assert 5 < len(data.table) <= 13  # every fourth query has a second positive, unless it is the same text
    for anchor, known in zip(data.table.anchors.tolist(), data.table.positives.to_lists(), strict=True):
        hidden = data.hidden.to_lists()[anchor]
        assert hidden
        assert not set(hidden) & set(known)
        assert set(hidden) <= set(whole.table.positives.to_lists()[anchor])
    assert len(data.judgements("test")) == len(whole.judgements("test"))


def test_what_passes_is_counted() -> None:
    pool = replace(random_pool(3, "two_tower"), known=None)
    hidden = [[12, 20], [13], [], [10, 25], [15], []]
    data = SimpleNamespace(hidden=Ragged.from_lists(hidden), hide=True)
    for judge in ([], [PositiveAware(0.2)]):
        mined = InBatch()(pool)
        for miner in judge:
            mined = miner(mined)
        count = Count(data)  # type: ignore[arg-type]
        count.on_train_batch_end(None, SimpleNamespace(finished=[mined]), None)  # type: ignore[arg-type]
        met, passed = by_hand(mined, hidden)
        assert (count.sums["met"], count.sums["passed"]) == (met, passed)
        assert met >= 5
        assert count.sums["left"] == int(mined.count().sum()) - passed
        rates = count.rates()
        assert rates["passed"] == passed / met
        if judge:
            assert rates["true negatives dropped"] > 0
            assert count.sums["dropped_others"] == int(mined.dropped["positive_aware"]) - (met - passed)
        else:
            assert rates["true negatives dropped"] == 0
            assert rates["relative weight"] == 1


def test_weights_are_told_relative_to_the_others() -> None:
    pool = InBatch()(replace(random_pool(3, "two_tower"), known=None))
    hidden = Ragged.from_lists([[12], [13], [14], [15], [10], [11]])

    def halve(scores: torch.Tensor, block: Any) -> torch.Tensor:
        target = torch.isin(block.items.ids[None], torch.tensor([12, 13, 14, 15, 10, 11])[:, None])
        rows = torch.tensor([12, 13, 14, 15, 10, 11])[:, None] == block.items.ids[None]
        return torch.where(rows & target, torch.tensor(0.5).log(), torch.tensor(2.0).log())

    count = Count(SimpleNamespace(hidden=hidden, hide=True))  # type: ignore[arg-type]
    count._add(pool.weight(halve))
    assert count.rates()["relative weight"] == pytest.approx(0.25)


def test_a_tiny_run_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        benchmark, "TextEncoder", lambda **options: TinyEncoder(seed=0 if "num_layers" in options else 1)
    )
    threads = torch.get_num_threads()
    arguments = ["--folder", str(write_data(tmp_path / "set")), "--steps", "12", "--batch-size", "4", "--seeds", "2"]
    arguments += ["--threads", str(threads), "--out", str(tmp_path / "out.md"), "--work", str(tmp_path / "work")]
    assert benchmark.main(arguments) == 0
    text = (tmp_path / "out.md").read_text()
    assert all(f"| {name} | " in text for name in benchmark.CHAINS)
    assert all(f"- {name} against none: " in text for name in benchmark.CHAINS if name != "none")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(benchmark.CHAINS)
    of = {row["chain"]: row for row in rows}
    assert of["none"]["passed"] == 1.0
    assert of["all labels"]["passed"] == 0.0
    assert of["all labels"]["true negatives dropped"] == 0.0
    assert of["GIST"]["true negatives dropped"] > 0
    assert 0 < of["CET"]["relative weight"] < 5
