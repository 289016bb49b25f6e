"""Shards in several processes answer like one index over the whole corpus."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from miners.index import ShardedIndex, TorchIndex
from miners.store import Store
from tests.distributed.processes import in_processes

WORLD = 3
BORDERS = [0, 40, 45, 200]  # shards of very different size, one smaller than k


def corpus() -> torch.Tensor:
    vectors = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    vectors[150] = vectors[3]  # equal documents in two shards
    return vectors


def asked(process_rank: int) -> torch.Tensor:
    rows = [5, 0, 2][process_rank]  # one process has nothing to ask
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(process_rank + 1))


def work(folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    process_rank = dist.get_rank()
    rows = torch.arange(BORDERS[process_rank], BORDERS[process_rank + 1])
    index = ShardedIndex(Store(corpus()[rows], rows * 10), device="cpu")
    answer = index.search(asked(process_rank), 12)
    index.save(f"{folder}/saved")
    again = ShardedIndex.load(f"{folder}/saved", device="cpu").search(asked(process_rank), 12)
    assert all(torch.equal(one, other) for one, other in zip(answer, again, strict=True))
    with pytest.raises(ValueError, match="corpus has 200 documents"):
        index.search(asked(process_rank), 201)
    return answer


@pytest.mark.slow
def test_three_processes_answer_like_one(tmp_path: Path) -> None:
    answers = in_processes(WORLD, work, tmp_path, str(tmp_path))
    whole = TorchIndex(Store(corpus(), torch.arange(200) * 10), device="cpu")
    for process_rank, (scores, ids) in enumerate(answers):
        expected, expected_ids = whole.search(asked(process_rank), 12)
        assert torch.equal(scores, expected)
        assert torch.equal(ids, expected_ids)


def test_without_processes_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"init_process_group.*build_index"):
        ShardedIndex(Store(corpus()))
