"""CET's weights have mean 1 over the candidates of all processes, also where one process has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miners import CET, Block, Items, NegativePool
from miners.base import process_count, process_rank
from miners.cet import SelectionFeatures
from tests.distributed.processes import in_processes

RANKS = torch.tensor([[1, 5, 40], [2, 3, 9], [7, 1, 1], [30, 2, 8]])
USABLE = torch.tensor([[True, True, True], [True, False, True], [False] * 3, [False] * 3])


def pool_of(rows: slice, columns: int = 3) -> NegativePool:
    """Ready scores of some rows; the last two have no usable candidate."""
    scores = torch.linspace(-2, 2, 12, dtype=torch.float64).view(4, 3)[rows, :columns].requires_grad_()
    positive = torch.linspace(0, 1, 4, dtype=torch.float64)[rows, None]
    first = torch.ones(len(positive), 1, dtype=torch.long)
    own = Block(Items(), "positive", given=positive, rank=first)
    pool = NegativePool(Items(ids=torch.arange(4)[rows], space="query"), own)
    if not columns:  # as `InBatch` leaves out a side without candidates
        return pool
    block = Block(Items(), "mined", given=scores, usable=USABLE[rows, :columns], rank=RANKS[rows, :columns])
    return pool.add(block)


def weighed() -> dict[str, Any]:
    """What a process sees of its share: weights, the selection model's loss, statistics."""
    share, rank = 4 // process_count(), process_rank()
    found: dict[str, Any] = {}
    for name, columns in (("masked", 3), ("missing", 0 if rank else 3)):
        miner = CET(SelectionFeatures(), temperature=2.0)
        pool = miner(pool_of(slice(share * rank, share * (rank + 1)), columns))
        weights = [block.log_weight for block in pool.negatives]
        total, count = miner.aux_loss(pool)
        found[name] = {
            "weights": weights,
            "total": total.detach(),
            "count": count,
            "statistics": statistics(miner, pool),
        }
    return found


def statistics(miner: CET, pool: NegativePool) -> dict[str, Tensor]:
    from hardneg.modules.gather import added

    return miner.statistics(pool, combine=added)


def test_two_processes_weigh_as_one(tmp_path: Path) -> None:
    (one,) = [weighed()["masked"]]
    first, second = in_processes(2, weighed, tmp_path)
    for name in ("masked", "missing"):
        torch.testing.assert_close(first[name]["weights"][0], one["weights"][0][:2])
        torch.testing.assert_close(first[name]["total"] + second[name]["total"], one["total"])
        assert first[name]["count"] + second[name]["count"] == one["count"] == 5
        for process in (first, second):
            assert process[name]["statistics"].keys() == {"correlation", "weight_mean"}
            for key, value in one["statistics"].items():
                torch.testing.assert_close(process[name]["statistics"][key], value)
    assert float(one["statistics"]["weight_mean"]) > 1
