"""What scores almost like the positive is probably one too."""

from __future__ import annotations

import pytest
import torch

from miners import Block, Items, NegativePool, PoolMiner, PositiveAware
from miners.testing import PoolMinerContract, one_anchor


class TestPositiveAware(PoolMinerContract):
    def make(self) -> PoolMiner:
        return PositiveAware(relative_margin=0.05)

    def test_masks_above_95_percent_of_the_positive(self) -> None:
        pool = one_anchor(positive=1.0, candidates=[0.96, 0.94, -0.5])
        assert self.make()(pool).usable.tolist() == [[False, True, True]]


class TestPositiveAwareAbsolute(PoolMinerContract):
    def make(self) -> PoolMiner:
        return PositiveAware(relative_margin=0, absolute_margin=0.2)


def test_a_negative_positive_keeps_the_margin_s_direction() -> None:
    pool = one_anchor(-0.4, [-0.39, -0.41, -0.45])
    assert PositiveAware(0.1)(pool).usable.tolist() == [[False, False, True]]
    assert PositiveAware(0, 0.03)(pool).usable.tolist() == [[False, False, True]]


def test_a_tie_with_the_ceiling_stays() -> None:
    assert PositiveAware(0, 0.5)(one_anchor(1.0, [0.5, 0.5000001])).usable.tolist() == [[True, False]]


def test_the_lowest_of_several_positives_decides() -> None:
    given = torch.tensor([[0.9, 0.5, 0.1]])
    positives = Block(
        Items(ids=torch.tensor([[1, 2, 3]])), "positive", given=given, usable=torch.tensor([[1, 1, 0]]) > 0
    )
    pool = NegativePool(Items(ids=torch.tensor([0]), space="query"), positives)
    pool = pool.add(Block(Items(ids=torch.tensor([4, 5])), "in_batch", given=torch.tensor([[0.6, 0.4]])))
    mined = PositiveAware(0)(pool)
    assert mined.usable.tolist() == [[False, True]]
    assert int(mined.dropped["positive_aware"]) == 1


def test_an_anchor_without_a_positive_keeps_its_candidates() -> None:
    positives = Block(
        Items(ids=torch.tensor([[1]])), "positive", given=torch.tensor([[0.9]]), usable=torch.zeros(1, 1) > 0
    )
    pool = NegativePool(Items(ids=torch.tensor([0]), space="query"), positives)
    pool = pool.add(Block(Items(ids=torch.tensor([4])), "in_batch", given=torch.tensor([[0.99]])))
    assert PositiveAware(0.05)(pool).usable.tolist() == [[True]]


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"PositiveAware\(relative_margin=1.5\): a share"):
        PositiveAware(1.5)
    with pytest.raises(ValueError, match=r"PositiveAware\(absolute_margin=-1\): a distance, so at least 0"):
        PositiveAware(0, -1)
