"""Every miner with every family: one step per cell.

A cell may raise only where ``needs - provides`` is not empty (computed here, never listed). A cell that trains must
change the loss or a count against the chain without that miner, with finite gradients that are not all zero.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from itertools import product

import pytest
import torch

import hardneg.losses
import miners
from hardneg.losses import InfoNCE, PoolLoss
from hardneg.modules.base import ContrastiveModule
from miners import BatchMiner, DrawnBatches, InBatch, NegativeSource, PoolMiner, Ragged, Shuffled, TrainingTable
from miners.draws import RowGenerator
from miners.store import Store
from tests.families import CLASSES, DIM, FAMILIES, FEATURES, ROWS, features, make_batch


def public(kind: type) -> list[type]:
    """Concrete public classes of a kind, from the package's own list."""
    found = [vars(miners)[name] for name in miners.__all__ if name in vars(miners)]  # miners are never loaded later
    return [c for c in found if inspect.isclass(c) and issubclass(c, kind) and not inspect.isabstract(c)]


POOL_MINERS = public(PoolMiner)
LOSSES = [
    c
    for name in hardneg.losses.__all__
    if issubclass(c := getattr(hardneg.losses, name), PoolLoss) and not inspect.isabstract(c)
]


def build(kind: type, dim: int = DIM):
    """A miner with the arguments that have no default, for vectors of ``dim`` numbers."""
    if kind is miners.StaticNegatives:
        return kind(Ragged.from_lists([[300 + row, 400 + row] for row in range(ROWS)]))
    if kind is miners.MoCHi:
        # mixes with the anchor want one encoder: tests/miners/test_mochi.py
        return kind(num_hard=4, num_pairs=3, num_with_anchor=0, warmup_epochs=0)
    if kind is miners.TaxonomyNegatives:  # row i is about document i, whose siblings are 300 + 2 i and its neighbour
        children = {document: 450 + row for row in range(ROWS) for document in (row, 300 + 2 * row, 301 + 2 * row)}
        return kind(Ragged.from_lists([[children[i]] if i in children else [] for i in range(450 + ROWS)]), 2)
    if kind is miners.ClusterNegatives:  # documents row, 300 + row and 400 + row are one cluster, the others nobody's
        labels = torch.full((400 + ROWS,), -1)
        for start in (0, 300, 400):
            labels[start : start + ROWS] = torch.arange(ROWS)
        return kind(labels=labels, num_negatives=1, mix=0.0)
    if kind is miners.GeneratedNegatives:
        return kind(Ragged.from_lists([[300 + row, 400 + row] for row in range(ROWS)]), space="document")
    if kind is miners.CET:
        return kind(origins=None)
    if kind is miners.ClusterWeights:
        spaces = ("query", "document", "image", "class")
        miner = kind((2, 3))
        miner.refresh({space: Store(features(13, 500, 3).float(), space=space) for space in spaces})
        return miner
    if kind is miners.LearnedWeights:
        return kind(dim=dim)
    return kind()


def step(family: ContrastiveModule) -> tuple[torch.Tensor, dict[str, float], list[torch.Tensor]]:
    """Two training steps with commits, so that queues hold something; the second one's loss, counts, gradients."""
    for _ in range(2):
        family.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = family.training_step(make_batch(), 0)
        if loss.requires_grad:
            loss.backward()
        counts = {name: float(v) for pool in family.finished for name, v in pool.statistics().items()}
        for pool in family.finished:
            for miner in family.chains[pool.direction]:
                miner.commit(pool)
    return loss.detach(), counts, [p.grad for p in family.parameters() if p.grad is not None]


def missing(family: type[ContrastiveModule], chain: list, loss: PoolLoss) -> set[str]:
    available, lacking = set(family.provides), set()
    for part in (*chain, loss):
        lacking |= part.needs - available
        available |= getattr(part, "provides", frozenset())
    return lacking


CELLS = [
    (family, miner, loss, direction)
    for family, miner, loss in product(FAMILIES, POOL_MINERS, LOSSES)
    for direction in family.directions
]
OUTCOMES: dict[str, int] = {"trains": 0, "raises": 0}


@pytest.mark.parametrize(
    ("family", "miner", "loss", "direction"), CELLS, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_pool_miner_cell(family, miner, loss, direction, monkeypatch):
    monkeypatch.setattr(family, "directions", (direction,))
    before = [] if miner is InBatch else [InBatch()]
    chain = [*before, build(miner)]
    if missing(family, chain, loss()):
        OUTCOMES["raises"] += 1
        with pytest.raises(ValueError, match="needs"):
            family(chain, loss())
        return
    OUTCOMES["trains"] += 1
    value, counts, gradients = step(family(chain, loss()))
    if missing(family, before, loss()):  # a loss that only this miner makes possible has nothing to be compared with
        reference, without = value + 1, {}
    else:
        reference, without, _ = step(family(before, loss()))
    assert torch.isfinite(value)
    assert not torch.equal(value, reference) or counts != without
    assert all(torch.isfinite(g).all() for g in gradients)
    assert any(bool((g != 0).any()) for g in gradients)


def test_share_of_cells_that_raise_is_at_most_a_quarter(capsys):
    raising = sum(
        bool(missing(family, [build(m)] if m is InBatch else [InBatch(), build(m)], loss()))
        for family, m, loss, _ in CELLS
    )
    with capsys.disabled():
        print(f"\nmatrix: {len(CELLS)} cells of pool miners, {raising} raise ({raising / len(CELLS):.0%})")
    assert raising / len(CELLS) <= 0.25, "too many cells need what no family provides: say why, or teach the families"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", public(BatchMiner), ids=lambda c: c.__name__)
def test_batch_miner_cell(family, kind):
    batches, module = DrawnBatches(attached(kind)), family([InBatch()], InfoNCE())
    batches.miner.refresh({"query": module.embed("query")})
    for epoch in range(2):
        batches.set_epoch(epoch)
        seen = []
        for rows in batches:
            index = torch.tensor([row.index for row in rows])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert torch.isfinite(module.training_step(make_batch(index), 0))
            anchors = module.finished[0].anchors.detach()
            batches.trained(index, anchors)
            seen += index.tolist()
        assert len(seen) == len(set(seen)) == batches.miner.num_rows  # families hand out some of their members
        assert len(seen) == ROWS or kind is miners.FamilyBatches


def attached(kind: type[BatchMiner]) -> BatchMiner:
    miner = kind(batch_size=8)
    rows = torch.arange(ROWS)
    places = miners.Places(features(10, ROWS, 2), "metres")
    known = Ragged.from_lists([[i] for i in range(ROWS)])
    inputs = features(14, ROWS, FEATURES)
    miner.attach(TrainingTable(rows, known, labels=rows % CLASSES, document_places=places, inputs=inputs))
    return miner


@pytest.mark.parametrize("family", FAMILIES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", public(NegativeSource), ids=lambda c: c.__name__)
def test_source_cell(family, kind, monkeypatch):
    source = build(kind)
    if source.needs - family.provides:
        assert "drawn" not in family.provides
        return
    miner = attached(Shuffled)
    table = miner.table
    if kind is miners.RandomNegatives:  # draws from all documents; those below 300 are the batch's own
        own = Ragged.from_lists([list(range(300))] * ROWS)
        table = replace(table, positives=own, document_content=torch.arange(400 + ROWS))
    source.attach(table)
    vectors = torch.randn(100 + ROWS, 4, generator=torch.Generator().manual_seed(0))
    source.refresh({"query": Store(vectors[:ROWS]), "document": Store(vectors, 300 + torch.arange(100 + ROWS))})
    rows = next(iter(DrawnBatches(miner, [source])))
    drawn = {negative for row in rows for negative in row.negatives}
    index = torch.tensor([row.index for row in rows])
    made = source.corrupt(miner.table.inputs[index], index, RowGenerator(0, 0))
    assert drawn or made is not None
    assert all(300 <= negative < 300 + 100 + ROWS for negative in drawn)
    if made is not None:  # copies that no data set holds take the place of what is drawn by id
        batch = make_batch()
        batch.inputs["drawn"] = source.corrupt(batch.inputs["document"], batch.rows, RowGenerator(0, 0)).inputs
        monkeypatch.setattr("tests.test_matrix.make_batch", lambda rows=None: batch)
    with_drawn, _, gradients = step(family([InBatch()], InfoNCE()))
    without, _, _ = step(family([InBatch(drawn="none")], InfoNCE()))
    assert not torch.equal(with_drawn, without)
    assert any(bool((g != 0).any()) for g in gradients)
