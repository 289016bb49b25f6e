"""Contracts: the laws that every miner obeys, to be inherited by its test. Needs no pytest plugin.

    class TestMyMiner(PoolMinerContract):
        def make(self):
            return MyMiner(margin=0.1)

Each kind of miner has one: `PoolMinerContract`, `BatchMinerContract`, `NegativeSourceContract`. Beside them stand the
small pools, tables and stores on which the laws are tried; they serve other tests as well.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from miners.base import BatchMiner, NegativeSource, PoolMiner, TrainingTable
from miners.draws import RowGenerator
from miners.in_batch import InBatch
from miners.pool import ABILITIES, Block, Items, NegativePool, StepContext
from miners.ragged import Ragged
from miners.store import Store

__all__ = [
    "KINDS",
    "BatchMinerContract",
    "NegativeSourceContract",
    "PoolMinerContract",
    "cost",
    "leaves",
    "one_anchor",
    "permuted",
    "process_share",
    "random_pool",
    "random_stores",
    "random_table",
]

KINDS: Mapping[str, frozenset[str]] = {
    "two_tower": frozenset({"embeddings", "sides", "own_positive", "guide", "drawn"}),
    "symmetric": frozenset({"embeddings", "sides", "own_positive", "one_space"}),
    "labelled": frozenset({"embeddings", "sides", "labels", "one_space"}),
    "scores_only": frozenset({"sides"}),
}
"""Kinds of `random_pool`, and what each provides, in the words of `miners.pool.ABILITIES`."""


# ---- pools ---------------------------------------------------------------------------------------------------------


def one_anchor(
    positive: float,
    candidates: Sequence[float],
    guide_positive: float = 1.0,
    guide_candidates: Sequence[float] | None = None,
    temperature: float = 1.0,
) -> NegativePool:
    """One anchor, one positive, and candidates of exactly these similarities, already added as "in_batch".

    Args:
        positive, candidates: similarities in [-1, 1].
        guide_positive, guide_candidates: what the guide says of the same pairs; None repeats ``candidates``.
    """

    def seen(scores: Sequence[float]) -> Tensor:  # vectors of these cosines with (1, 0)
        cosine = torch.tensor(scores, dtype=torch.float64)
        return torch.stack([cosine, (1 - cosine**2).clamp_min(0).sqrt()], dim=-1)

    def given(scores: Sequence[float]) -> Tensor:
        return torch.tensor([scores], dtype=torch.float64)

    ids = torch.arange(1, len(candidates) + 1)
    anchor = Items(seen([1.0]), torch.tensor([0]), guide=seen([1.0]), space="query")
    own = Items(seen([positive])[None], torch.tensor([[0]]), guide=seen([guide_positive])[None])
    others = Items(seen(candidates), ids, guide=seen(candidates if guide_candidates is None else guide_candidates))
    pool = NegativePool(anchor, Block(own, "positive", given=given([positive])), temperature)
    return pool.add(Block(others, "in_batch", given=given(candidates)))


def random_pool(
    seed: int = 0,
    kind: str = "two_tower",
    anchors: int = 6,
    dims: int = 8,
    dtype: torch.dtype = torch.float32,
    temperature: float = 0.1,
    training: bool = True,
) -> NegativePool:
    """A pool without negatives, as a family of this ``kind`` (see `KINDS`) would make it.

    Values are multiples of 1/32, which every floating type holds exactly: pools of two dtypes are the same pool.
    Embeddings (or scores) are leaves that want a gradient. Two documents are the same text; known positives overlap.

    Args:
        kind: "two_tower": queries, documents, two drawn documents per row, a guide. "symmetric": two views of the same
            things. "labelled": shared positives of the same class, class centres. "scores_only": no vectors at all.
        anchors: B.
    """
    if kind not in KINDS:
        raise ValueError(f"random_pool(kind='{kind}'): wants one of {sorted(KINDS)}.")
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return (torch.randint(-96, 97, shape, generator=generator) / 32).to(dtype)

    def leaf(*shape: int) -> Tensor:
        return values(*shape).requires_grad_()

    rows = torch.arange(anchors)
    context = StepContext(epoch=1, step=3, training=training, seed=seed)
    if kind == "labelled":
        labels = rows % 3
        faces = Items(leaf(anchors, dims), rows, labels=labels, space="image", rows=rows)
        centres = Items(leaf(3, dims), torch.arange(3), labels=torch.arange(3), space="class")
        usable = (labels[:, None] == labels[None]) & (rows[:, None] != rows[None])
        sides: dict[str, Items | Block] = {"anchors": faces, "positives": faces, "classes": centres}
        positives = Block(faces, "positive", usable=usable)
        return NegativePool(faces, positives, temperature, sides=sides, context=context)
    if kind == "scores_only":
        scores = leaf(anchors, anchors)
        documents = Items(ids=rows + 10)
        sides = {"positives": Block(documents, "in_batch", given=scores)}
        positives = Block(Items(ids=rows[:, None] + 10), "positive", given=scores.diagonal()[:, None])
        return NegativePool(Items(ids=rows, space="query"), positives, temperature, "dot", sides=sides, context=context)
    guided = kind == "two_tower"
    guide = [values(anchors, 5) if guided else None for _ in range(2)]
    content = (100 + rows).index_fill(0, torch.tensor([1] if anchors > 1 else [0]), 100)  # documents 0 and 1
    first, second = ("query", "document") if guided else ("imu", "skeleton")
    queries = Items(leaf(anchors, dims), rows, guide=guide[0], space=first, rows=rows)
    documents = Items(leaf(anchors, dims), rows + 10, content, guide=guide[1], space=second, rows=rows)
    sides = {"anchors": queries, "positives": documents}
    if guided:
        drawn = 2 * anchors
        sides["drawn"] = Items(
            leaf(drawn, dims),
            torch.arange(drawn) + 15,
            guide=values(drawn, 5),
            space=second,
            rows=torch.arange(drawn) // 2,
        )
    known = Ragged.from_lists([[10 + row, 10 + (row + 2) % anchors] for row in range(anchors)])
    own = documents.map(lambda part: part[:, None])
    return NegativePool(
        queries, Block(own, "positive"), temperature, "cosine", "anchor_to_positive", (), sides, known, context
    )


def leaves(pool: NegativePool) -> list[Tensor]:
    """Tensors of a `random_pool` that want a gradient, each once."""
    found: dict[int, Tensor] = {}
    for part in (pool.anchors, pool.positives, *pool.sides.values()):
        tensor = part.given if isinstance(part, Block) and part.given is not None else None
        items = part.items if isinstance(part, Block) else part
        for value in (tensor, items.embeddings):
            if value is not None and value.requires_grad and value.is_leaf:
                found[id(value)] = value
    return list(found.values())


def permuted(pool: NegativePool, order: Tensor) -> NegativePool:
    """The same pool, not mined yet, with the rows of its batch in another order: new row i is old row ``order[i]``."""
    assert not pool.negatives, "permute the pool before it is mined"
    place = order.argsort()

    def of_batch(side: Items | Block) -> Items | Block:
        if isinstance(side, Items):
            moved = side.take(order)
            return moved if moved.rows is None else replace(moved, rows=place[moved.rows])
        return _rows_of(replace(side, items=side.items.take(order)), order, columns=order)

    sides = {
        name: of_batch(side)
        if name in ("anchors", "positives")
        else (replace(side, rows=place[side.rows]) if isinstance(side, Items) and side.rows is not None else side)
        for name, side in pool.sides.items()
    }
    anchors = of_batch(pool.anchors)
    assert isinstance(anchors, Items)
    if _shared(pool.positives):
        positives = _rows_of(replace(pool.positives, items=pool.positives.items.take(order)), order, columns=order)
    else:
        positives = _rows_of(replace(pool.positives, items=pool.positives.items.take(order)), order)
    known = None if pool.known is None else pool.known.select(order)
    return replace(pool, anchors=anchors, positives=positives, sides=sides, known=known, memo={})


def process_share(pool: NegativePool, offset: int, rows: int) -> NegativePool:
    """What one process of several holds of a pool that is not mined yet: ``rows`` anchors from ``offset`` on.

    Sides stay those of all processes, as after the gather.
    """
    assert not pool.negatives, "share the pool before it is mined"
    own = torch.arange(offset, offset + rows)
    positives = pool.positives
    if not _shared(positives):
        positives = replace(positives, items=positives.items.take(own))
    return replace(
        pool,
        anchors=pool.anchors.take(own),
        positives=_rows_of(positives, own),
        sides={name: _rows_of(side, own) if isinstance(side, Block) else side for name, side in pool.sides.items()},
        known=None if pool.known is None else pool.known.select(own),
        context=replace(pool.context, offset=offset, rows=rows, global_rows=len(pool)),
        memo={},
    )


def cost(pool: NegativePool) -> Tensor:
    """(B,) what an anchor pays: the softmax of its lowest positive against all negatives; 0 without negatives."""
    logits = pool.logits(pool.positives)
    positive = logits.where(pool.usable_of(pool.positives), logits.detach().max() + 1).amin(1)
    has_one = pool.usable_of(pool.positives).any(1)
    return F.softplus(pool.mass() - positive).where(has_one, 0)


def _shared(positives: Block) -> bool:
    """Positives (G, d) for all anchors, not each anchor's own."""
    return positives.given is None and positives.items.embeddings is not None and positives.items.embeddings.ndim == 2


def _rows_of(block: Block, rows: Tensor, columns: Tensor | None = None) -> Block:
    """Rows (and columns) of a block's (B, N) parts."""
    parts = {name: getattr(block, name) for name in ("given", "usable", "log_weight", "rank")}
    taken = {name: part[rows] for name, part in parts.items() if part is not None}
    if columns is not None:
        taken = {name: part[:, columns] for name, part in taken.items()}
    return replace(block, **taken)


# ---- training sets -------------------------------------------------------------------------------------------------


def random_table(seed: int = 0, rows: int = 50) -> TrainingTable:
    """A training set: some anchors twice, one to three positives each, some documents the same text."""
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.arange(rows)
    anchors[rows - rows // 10 :] = torch.arange(rows // 10)  # the last tenth repeats the first anchors
    documents = 2 * rows
    number = torch.randint(1, 4, (rows,), generator=generator)
    drawn = torch.randint(documents, (rows, 3), generator=generator)
    by_anchor: dict[int, set[int]] = {}
    for anchor, many, ids in zip(anchors.tolist(), number.tolist(), drawn.tolist(), strict=True):
        by_anchor.setdefault(anchor, set()).update(ids[:many])
    return TrainingTable(
        anchors,
        Ragged.from_lists([sorted(by_anchor[anchor]) for anchor in anchors.tolist()]),
        anchor_content=1000 + torch.arange(rows),
        document_content=torch.arange(documents) // 2 * 2 + (torch.arange(documents) % 10 > 1),
        labels=torch.arange(rows) % 5,
    )


def random_stores(table: TrainingTable, seed: int = 0, dims: int = 4) -> dict[str, Store]:
    """Fresh embeddings of a table's anchors ("query") and documents ("document"), as a refresh hands them over."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"query": table.anchors, "document": table.positives.values}
    return {
        space: Store(torch.randn(1 + int(ids.max()), dims, generator=generator), space=space)
        for space, ids in sizes.items()
    }


# ---- contracts -----------------------------------------------------------------------------------------------------


class PoolMinerContract(ABC):
    """Laws of a `PoolMiner`. Inherit in a test class, write ``make``.

    Attributes:
        random: the miner draws numbers; a permuted batch may then get other negatives.
        kinds: kinds of `random_pool` to run on; by default all that provide what the miner needs.
    """

    random: bool = False
    kinds: Sequence[str] = tuple(KINDS)

    @abstractmethod
    def make(self) -> PoolMiner:
        """A fresh miner, the same each time."""

    def before(self) -> Sequence[PoolMiner]:
        """Miners that stand before this one in a chain."""
        return (InBatch(),)

    def _runs(self) -> list[str]:
        """Kinds of pool that provide what the miner needs."""
        provided = frozenset[str]().union(*(miner.provides for miner in self.before()))
        kinds = [kind for kind in self.kinds if self.make().needs <= KINDS[kind] | provided]
        assert kinds, f"no kind of random_pool provides {sorted(self.make().needs)}: override before()."
        return kinds

    def _mined(self, pool: NegativePool) -> NegativePool:
        """The pool as it reaches this miner."""
        for miner in self.before():
            pool = miner(pool)
        return pool

    def _pools(self, **options: Any) -> Iterator[NegativePool]:
        for kind in self._runs():
            for seed in range(3):
                yield self._mined(random_pool(seed, kind, **options))

    def test_names_abilities_that_exist(self) -> None:
        assert self.make().needs | self.make().provides <= set(ABILITIES)

    def test_forward_is_pure(self) -> None:
        for pool in self._pools():
            miner = self.make()
            seen, state, random = _snapshot(pool), _snapshot(vars(miner)), torch.get_rng_state()
            miner(pool)
            assert _snapshot(pool) == seen, "the pool that went in was changed"
            assert _snapshot(vars(miner)) == state, "forward changed the miner; write what must be remembered in commit"
            assert torch.equal(torch.get_rng_state(), random), "draw from pool.context, not from torch's own generator"

    def test_same_seed_same_answer(self) -> None:
        for first, second in zip(self._pools(), self._pools(), strict=True):
            miner = self.make()
            answers = [_answer(miner(first)), _answer(miner(second)), _answer(self.make()(first))]
            _assert_alike(answers[0], answers[1])
            _assert_alike(answers[0], answers[2])

    def test_masked_stays_masked_and_what_is_dropped_is_counted(self) -> None:
        for pool in self._pools():
            pool = pool.mask(lambda scores, block: scores < scores.mean(), reason="test")
            mined = self.make()(pool)
            assert len(mined.negatives) >= len(pool.negatives), "a block vanished; mask it instead"
            lost = 0
            for old, new in zip(pool.negatives, mined.negatives, strict=False):
                was, now = pool.usable_of(old), mined.usable_of(new)
                assert not (now & ~was).any(), f"a masked candidate of block '{old.origin}' came back"
                lost += int((was & ~now).sum()) if old.real else 0
            added = [mined.whole(block) for block in mined.negatives[len(pool.negatives) :]]
            lost += sum(
                int((~mined.usable_of(block)).sum()) for block in added if block.real and block.usable is not None
            )
            counted = sum(int(n) for n in mined.dropped.values()) - sum(int(n) for n in pool.dropped.values())
            assert counted <= lost, f"{counted} candidates were counted as dropped, {lost} were"
            if not added:
                assert counted == lost, f"{lost} candidates were dropped, {counted} were counted: use pool.mask"

    def test_an_anchor_without_negatives_costs_nothing(self) -> None:
        for pool in self._pools():
            emptied = pool.mask(lambda scores, block: _first_row(scores), reason="test")
            mined = self.make()(emptied)
            costs = cost(mined)
            assert bool(costs.isfinite().all()), "an anchor without negatives gave a cost that is not finite"
            if not mined.count(real=False)[0]:
                assert costs[0] == 0
            for gradient in torch.autograd.grad(costs.sum(), leaves(pool), allow_unused=True):
                assert gradient is None or bool(gradient.isfinite().all()), "an empty row gave a gradient of NaN"

    def test_all_rows_empty_cost_nothing(self) -> None:
        for pool in self._pools():
            mined = self.make()(pool).mask(
                lambda scores, block: torch.ones_like(scores, dtype=torch.bool), reason="test"
            )
            costs = cost(mined)
            assert bool((costs[mined.count(real=False) == 0] == 0).all())
            for gradient in torch.autograd.grad(costs.sum(), leaves(pool), allow_unused=True):
                assert gradient is None or bool(gradient.isfinite().all())

    def test_a_batch_of_one(self) -> None:
        for pool in self._pools(anchors=1):
            assert bool(cost(self.make()(pool)).isfinite().all())

    def test_ids_stay_with_their_vectors(self) -> None:
        for pool in self._pools():
            known: dict[tuple[str, int], list[Tensor]] = {}  # a document may be encoded twice, with other dropout
            sides = [side.items if isinstance(side, Block) else side for side in pool.sides.values()]
            for name, vector in _named(pool.anchors, pool.positives.items, *sides):
                known.setdefault(name, []).append(vector)
            mined = self.make()(pool)
            blocks = [block.items for block in (mined.positives, *mined.negatives) if block.real]
            for name, vector in _named(*blocks):
                theirs = known.get(name, [vector])
                assert any(torch.equal(vector, one) for one in theirs), f"{name} has a vector that is not its own"

    def test_permuting_the_batch_permutes_the_answer(self) -> None:
        if self.random:
            return
        for kind in self._runs():
            pool = random_pool(5, kind)
            order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(1))
            straight = _answer(self.make()(self._mined(pool)))
            moved = _answer(self.make()(self._mined(permuted(pool, order))))
            _assert_alike({name: part[order] for name, part in straight.items()}, moved)

    def test_processes_see_what_one_process_sees(self) -> None:
        for kind in self._runs():
            pool = random_pool(6, kind)
            whole = _answer(self.make()(self._mined(pool)))
            for offset in (0, 2, 4):
                share = self.make()(self._mined(process_share(pool, offset, 2)))
                _assert_alike({name: part[offset : offset + 2] for name, part in whole.items()}, _answer(share))

    def test_half_precision_is_close(self) -> None:
        for half in (torch.float16, torch.bfloat16):
            for pool, wide in zip(self._pools(dtype=half), self._pools(), strict=True):
                mined, expected = self.make()(pool), self.make()(wide)
                costs = cost(mined)
                assert costs.dtype == torch.float32, "similarities and sums belong in fp32"
                assert torch.equal(mined.count(), expected.count()), "half precision kept other candidates"
                torch.testing.assert_close(costs, cost(expected), rtol=1e-2, atol=1e-2)
                for gradient in torch.autograd.grad(costs.sum(), leaves(pool), allow_unused=True):
                    assert gradient is None or bool(gradient.isfinite().all())

    def test_autocast_changes_nothing(self) -> None:
        for pool, wide in zip(self._pools(), self._pools(), strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                mined = self.make()(pool)
                answer = _answer(mined)
            assert answer["cost"].dtype == torch.float32
            torch.testing.assert_close(answer["cost"], _answer(self.make()(wide))["cost"], rtol=1e-2, atol=1e-2)

    def test_evaluation_needs_no_gradient(self) -> None:
        for pool in self._pools(training=False):
            with torch.no_grad():
                assert bool(cost(self.make().eval()(pool)).isfinite().all())

    def test_commit_and_aux_loss(self) -> None:
        for pool in self._pools():
            miner = self.make()
            mined = miner(pool)
            own = miner.aux_loss(mined)
            if own is not None:
                total, count = own
                assert total.ndim == count.ndim == 0, "aux_loss returns (sum, count), 0-dim"
                assert bool(total.isfinite())
                assert total.requires_grad, "an aux_loss without a gradient trains nothing"
            seen = _snapshot(mined)
            miner.commit(mined)
            assert _snapshot(mined) == seen, "commit changed the pool"

    def test_what_commit_remembers_survives_a_checkpoint(self) -> None:
        for kind in self._runs():
            pool = self._mined(random_pool(7, kind))
            miner, again = self.make(), self.make()
            for _ in range(3):
                miner.commit(miner(pool))
            again.load_state_dict(_saved_and_loaded(miner.state_dict()))
            _assert_alike(_answer(miner(pool)), _answer(again(pool)))


class BatchMinerContract(ABC):
    """Laws of a `BatchMiner`. Inherit in a test class, write ``make``.

    Attributes:
        covers: every row is handed out once per epoch; False where the method leaves rows out.
    """

    covers: bool = True

    @abstractmethod
    def make(self, batch_size: int, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        """A fresh miner, not attached yet."""

    def _ready(self, table: TrainingTable, batch_size: int = 8, drop_last: bool = False, seed: int = 0) -> BatchMiner:
        miner = self.make(batch_size, drop_last, seed)
        miner.attach(table)
        miner.refresh(random_stores(table))
        return miner

    def test_an_epoch_hands_out_every_row_once(self) -> None:
        for rows in (1, 3, 8, 50):
            batches = list(self._ready(random_table(rows=rows)))
            handed = sorted(row for batch in batches for row in batch)
            assert len(handed) == len(set(handed)), "a row was handed out twice"
            assert not self.covers or handed == list(range(rows))
            assert all(len(batch) == 8 for batch in batches[:-1])

    def test_drop_last_leaves_whole_batches(self) -> None:
        for rows in (3, 8, 50):
            batches = list(self._ready(random_table(rows=rows), drop_last=True))
            assert all(len(batch) == 8 for batch in batches)
            assert not self.covers or len(batches) == rows // 8

    def test_len_is_reached(self) -> None:
        for rows in (1, 8, 50):
            for drop_last in (False, True):
                for processes in (1, 2, 3):
                    with _process(0, processes):
                        miner = self._ready(random_table(rows=rows), 4, drop_last)
                        assert len(list(miner)) == len(miner)

    def test_same_seed_same_batches(self) -> None:
        table = random_table()
        assert list(self._ready(table)) == list(self._ready(table))
        assert list(self._ready(table)) != list(self._ready(table, seed=1))

    def test_epochs_differ(self) -> None:
        miner = self._ready(random_table())
        first = list(miner)
        miner.set_epoch(1)
        assert list(miner) != first

    def test_a_resumed_run_goes_on_with_the_very_next_batch(self) -> None:
        table = random_table()
        for trained in (0, 1, 4):
            straight, stopped = self._ready(table), self._ready(table)
            for epoch in range(2):
                whole = self._epoch(straight, table, epoch)
                if epoch == 0:
                    self._epoch(stopped, table, epoch)
            part = self._epoch(stopped, table, 1, trained=trained)
            resumed = self.make(8)
            resumed.attach(table)
            resumed.load_state_dict(_saved_and_loaded(stopped.state_dict()))
            rest = self._epoch(resumed, table, 1, refresh=False)
            assert part + rest == whole, f"{trained} batches were trained before the stop"
            following = self._epoch(straight, table, 2)
            assert self._epoch(resumed, table, 2) == following, "the epoch after a resumed one differs"

    def _epoch(
        self, miner: BatchMiner, table: TrainingTable, epoch: int, trained: int | None = None, refresh: bool = True
    ) -> list[list[int]]:
        """Train an epoch, or its first batches; the loader draws two batches ahead, as loaders do."""
        miner.set_epoch(epoch)
        if refresh:
            miner.refresh(random_stores(table, seed=epoch))
        ahead = iter(miner)
        done: list[list[int]] = []
        queue = list(islice(ahead, 2))
        while queue and len(done) != trained:
            batch = queue.pop(0)
            rows = torch.tensor(batch)
            vectors = RowGenerator(epoch, 0).uniform(rows, 4).float() - 0.5
            miner.observe(rows, Items(vectors, table.anchors[rows], space="query"))
            miner.batch_trained()
            done.append(batch)
            queue += islice(ahead, 1)
        return done

    def test_processes_share_the_batches_of_one_process(self) -> None:
        table = random_table(rows=47)
        for processes in (2, 3):
            one = list(self._ready(table, 4 * processes))
            shares = []
            for rank in range(processes):
                with _process(rank, processes):
                    shares.append(list(self._ready(table, 4)))
            assert len({len(share) for share in shares}) == 1, "processes have different numbers of batches"
            joined = [[row for share in step for row in share] for step in zip(*shares, strict=True)]
            assert joined == one[: len(joined)]
            assert sum(map(len, one[len(joined) :])) < processes * self._ready(table, 4).together

    def test_a_refresh_rearranges_what_is_left(self) -> None:
        table = random_table()
        miner = self._ready(table)
        batches = iter(miner)
        done = list(islice(batches, 2))
        miner.refresh(random_stores(table, seed=9))
        handed = [row for batch in (*done, *batches) for row in batch]
        assert len(handed) == len(set(handed)), "a row was handed out twice after a refresh"
        assert not self.covers or sorted(handed) == list(range(len(table)))


class NegativeSourceContract(ABC):
    """Laws of a `NegativeSource`. Inherit in a test class, write ``make``.

    Attributes:
        random: draws differ from epoch to epoch.
    """

    random: bool = True

    @abstractmethod
    def make(self, table: TrainingTable) -> NegativeSource:
        """A fresh source for this training set, not attached yet."""

    def _ready(self, table: TrainingTable) -> NegativeSource:
        source = self.make(table)
        source.attach(table)
        source.refresh(random_stores(table))
        return source

    def _draw(self, source: NegativeSource, rows: Tensor, epoch: int = 0, seed: int = 0) -> Tensor:
        positives = random_table().positives.select(rows)
        draw = source.draw(rows, positives.values[positives.offsets[:-1]], epoch, RowGenerator(seed, epoch, stream=1))
        assert draw.ids.dtype == torch.long
        assert draw.usable.dtype == torch.bool
        assert draw.ids.shape == draw.usable.shape
        assert draw.ids.shape[0] == len(rows)
        assert draw.tag
        assert isinstance(draw.tag, str)
        assert bool((draw.ids[~draw.usable] == -1).all()), "an unusable slot holds -1"
        assert bool((draw.ids[draw.usable] >= 0).all()), "a usable slot holds an id"
        return draw.ids

    def test_a_draw_is_a_function_of_seed_epoch_and_row(self) -> None:
        table = random_table()
        rows = torch.arange(len(table))
        whole = self._draw(self._ready(table), rows)
        for seed in range(3):
            order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[: 10 * seed + 1]
            assert torch.equal(self._draw(self._ready(table), order), whole[order]), "a draw depends on its batch"
        assert torch.equal(self._draw(self._ready(table), rows), whole)

    def test_epochs_and_seeds_differ(self) -> None:
        if not self.random:
            return
        table = random_table()
        source, rows = self._ready(table), torch.arange(len(table))
        first = self._draw(source, rows)
        assert not torch.equal(self._draw(source, rows, epoch=1), first)
        assert not torch.equal(self._draw(source, rows, seed=1), first)

    def test_never_a_known_positive_never_the_same_twice(self) -> None:
        table = random_table()
        source, known = self._ready(table), table.positives.to_lists()
        for epoch in range(20):
            for positives, drawn in zip(
                known, self._draw(source, torch.arange(len(table)), epoch).tolist(), strict=True
            ):
                usable = [negative for negative in drawn if negative >= 0]
                assert not set(usable) & set(positives), "a known positive was drawn"
                assert len(usable) == len(set(usable)), "one negative was drawn twice for a row"


def _named(*many: Items) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """((space, id), vector (d,)) of everything that has both."""
    for items in many:
        if items.ids is not None and items.embeddings is not None:
            vectors = items.embeddings.detach().reshape(-1, items.embeddings.shape[-1])
            for name, vector in zip(items.ids.reshape(-1).tolist(), vectors, strict=True):
                if name >= 0:
                    yield (items.space, name), vector


def _answer(pool: NegativePool) -> dict[str, Tensor]:
    """What a loss can see of a pool, by row, whatever the order of columns."""
    width = sum(block.items.__len__() if block.given is None else block.given.shape[1] for block in pool.negatives)
    scores, valid, _ = pool.hardest(max(width, 1))
    return {
        "cost": cost(pool).detach(),
        "mass": pool.mass().detach(),
        "count": pool.count(real=False),
        "scores": scores.detach(),
        "valid": valid,
    }


def _assert_alike(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    for name, part in first.items():
        torch.testing.assert_close(second[name], part, rtol=1e-5, atol=1e-5, msg=partial("{}: {}".format, name))


def _first_row(scores: Tensor) -> Tensor:
    """(B, N) True in row 0."""
    return (torch.arange(len(scores)) == 0)[:, None].expand_as(scores)


def _saved_and_loaded(state: Mapping[str, Any]) -> Any:
    """Through a file and back, without pickle's objects: as a checkpoint does."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _snapshot(thing: Any) -> Any:
    """A comparable copy of nested tensors and plain values."""
    if isinstance(thing, Tensor):
        return ("tensor", tuple(thing.shape), str(thing.dtype), thing.detach().cpu().reshape(-1).double().tolist())
    if isinstance(thing, NegativePool):
        return {name: _snapshot(part) for name, part in vars(thing).items() if name != "memo"}
    if isinstance(thing, Block | StepContext | Ragged):
        return {name: _snapshot(part) for name, part in vars(thing).items()}
    if isinstance(thing, Items):
        return {name: _snapshot(part) for name, part in thing.tensors().items()} | {"space": thing.space}
    if isinstance(thing, Mapping):
        return {name: _snapshot(part) for name, part in thing.items()}
    if isinstance(thing, list | tuple):
        return [_snapshot(part) for part in thing]
    return thing if isinstance(thing, str | int | float | bool | frozenset | None) else id(thing)


class _process:
    """Pretend to be one of several processes."""

    def __init__(self, rank: int, count: int) -> None:
        self._patches = [
            patch("miners.base.process_rank", lambda: rank),
            patch("miners.base.process_count", lambda: count),
        ]

    def __enter__(self) -> None:
        for one in self._patches:
            one.start()

    def __exit__(self, *_: object) -> None:
        for one in self._patches:
            one.stop()
