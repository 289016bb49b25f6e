"""Anchors against anchors, positives against positives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from miners import InBatch, PoolMiner, SelfBlocks
from miners.testing import PoolMinerContract, random_pool


class TestSelfBlocks(PoolMinerContract):
    def make(self) -> PoolMiner:
        return SelfBlocks()


class TestAnchorsOnly(PoolMinerContract):
    def make(self) -> PoolMiner:
        return SelfBlocks(positives=False)


def test_blocks_are_cosines_without_their_diagonals() -> None:
    pool = SelfBlocks()(random_pool(3, "symmetric"))
    anchors, positives = pool.negatives
    q, p = pool.anchors.unit, pool.sides["positives"].unit
    torch.testing.assert_close(pool.scores(anchors), q @ q.T)
    torch.testing.assert_close(pool.scores(positives), p @ p.T)
    assert not pool.usable_of(anchors).diagonal().any()
    assert not pool.usable_of(positives).diagonal().any()


def test_another_copy_of_the_positive_is_masked_among_documents() -> None:
    pool = SelfBlocks(anchors=False)(random_pool(3, "symmetric"))  # documents 0 and 1 are one text
    assert not pool.usable[0, 1]
    assert not pool.usable[1, 0]


def test_gradient_reaches_both_ends_of_a_self_block() -> None:
    pool = SelfBlocks(anchors=False)(random_pool(3, "symmetric"))
    documents = pool.sides["positives"].embeddings
    (gradient,) = torch.autograd.grad(pool.mass().sum(), documents)
    assert bool((gradient.norm(dim=1) > 0).all())


def test_messages() -> None:
    with pytest.raises(ValueError, match="adds nothing: leave it out"):
        SelfBlocks(anchors=False, positives=False)
    with pytest.raises(ValueError, match=r"one positive per anchor, \(B, 1, d\).*Set positives: false"):
        SelfBlocks()(InBatch()(random_pool(0, "labelled")))
    pool = replace(random_pool(0, "symmetric"), sides=random_pool(0, "scores_only").sides)
    with pytest.raises(ValueError, match="SelfBlocks compares vectors; the pool's side 'positives' has only scores"):
        SelfBlocks(anchors=False)(pool)
