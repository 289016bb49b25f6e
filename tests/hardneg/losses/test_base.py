"""What every loss owes: a sum and a count, read from the pool alone."""

from __future__ import annotations

import inspect

import pytest
import torch

import hardneg.losses
from hardneg.losses import InfoNCE, LambdaRank, NGAMEHinge, PairwiseLogistic, PoolLoss, TripletMargin
from miners import InBatch
from miners.pool import ABILITIES
from miners.testing import permuted, random_pool

PUBLIC = [getattr(hardneg.losses, name) for name in hardneg.losses.__all__ if name != "PoolLoss"]


@pytest.mark.parametrize("loss", PUBLIC)
def test_public_losses_are_pool_losses_with_words_that_exist(loss: type) -> None:
    assert issubclass(loss, PoolLoss)
    assert loss().needs <= set(ABILITIES)


@pytest.mark.parametrize("loss", PUBLIC)
def test_losses_never_look_at_embeddings(loss: type) -> None:
    source = inspect.getsource(inspect.getmodule(loss))
    assert ".embeddings" not in source
    assert ".unit" not in source


@pytest.mark.parametrize(
    "loss", [InfoNCE(), InfoNCE(label_smoothing=0.1), PairwiseLogistic(), TripletMargin(), LambdaRank(), NGAMEHinge()]
)
def test_a_loss_is_two_scalars_and_does_not_mind_the_order_of_rows(loss: PoolLoss) -> None:
    pool = random_pool(3, "two_tower")
    total, count = loss(InBatch()(pool))
    assert total.ndim == count.ndim == 0
    assert not count.requires_grad
    moved = loss(InBatch()(permuted(pool, torch.tensor([4, 2, 0, 1, 5, 3]))))
    torch.testing.assert_close(moved[0], total)
    assert moved[1] == count
