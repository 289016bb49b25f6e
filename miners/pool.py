"""The pool of negatives: what a chain of miners changes and a loss reads.

Shape letters, used in every file: B anchors of this process, G of all processes, P positives of an anchor,
N candidates, K kept, d dims, g guide dims, Q queries, M corpus rows, V values of a ragged list.

This is the only place where negatives are masked. `NegativePool.add` masks what can never be a negative: known
positives, the same id, the same content, the same class, the anchor itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from miners.draws import generator_for
from miners.ragged import Ragged

NOBODY = -1
"""The id, content or label of a thing that has none; equal to nothing, not even to itself."""

ABILITIES: Mapping[str, str] = {
    "embeddings": "anchors and candidates have vectors (not only scores)",
    "sides": "both sides of the batch, over all processes",
    "own_positive": "each anchor has positives of its own with a vector, (B, P, d), not a shared list or class centres",
    "guide": "vectors of a frozen guide travel with every item",
    "labels": "items carry classes",
    "drawn": "negatives drawn by a source travel with the rows",
    "one_space": "anchors and candidates come from one encoder, so that their vectors may be mixed",
    "frozen": "a frozen Store of the candidates' side",
    "rank": "candidates know their place in a retrieved list",
    "selection": "a second model of the family's own scores the same pairs (RerankingModule with `selection`)",
}
"""Every word that may stand in ``needs`` and ``provides``, with its meaning."""

SIDES = {"positives": "in_batch", "drawn": "mined", "classes": "classes"}
"""Sides of a batch that hold candidates, and the origin of the block that each becomes."""


Memo = dict[tuple[int, int, str, bool], tuple["Items", "Items", Tensor]]


@dataclass(frozen=True)
class Items:
    """Things with an identity: what is gathered, queued, stored and cached is always Items.

    Args:
        embeddings: (N, d) shared by all anchors, (B, N, d) each anchor's own, None where only scores exist.
        ids: (N,) | (B, N) int64 in ``space``; -1 = nobody.
        content: like ids: hash of the normalised text, pixels or recording; equal = the same thing, -1 = unknown.
        labels: (N,) int64 class, -1 unknown.
        guide: (N, g) | (B, N, g) the guide's view of the same things.
        norms: (N,) length before normalising.
        space: ids of two spaces are never equal: "query", "document", "image", "class", ...
        rows: (N,) int64 row of the global batch that brought the thing along.
        products: where products with these things are remembered; None = in the pool, for as long as it lives.

    Raises:
        ValueError: the parts disagree on the number of things.
    """

    embeddings: Tensor | None = None
    ids: Tensor | None = None
    content: Tensor | None = None
    labels: Tensor | None = None
    guide: Tensor | None = None
    norms: Tensor | None = None
    space: str = "document"
    rows: Tensor | None = None
    products: Any = field(default=None, repr=False, compare=False)  # Memo | None; Any lets Items(**tensors) be checked
    _unit: dict[bool, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shapes = {
            name: tuple(part.shape[:-1] if name in ("embeddings", "guide") else part.shape)
            for name, part in self.tensors().items()
        }
        if len({shape[-1:] for shape in shapes.values()}) > 1:
            raise ValueError(f"Items of space '{self.space}' disagree on how many things they are: {shapes}.")

    def __len__(self) -> int:
        for name, part in self.tensors().items():
            return part.shape[-2 if name in ("embeddings", "guide") else -1]
        return 0

    def tensors(self) -> dict[str, Tensor]:
        """The parts that are there, by name."""
        parts = ("embeddings", "ids", "content", "labels", "guide", "norms", "rows")
        return {name: part for name in parts if (part := getattr(self, name)) is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Items:
        """Apply ``change`` to every part."""
        parts: dict[str, Any] = {name: change(part) for name, part in self.tensors().items()}
        return replace(self, **parts)

    def take(self, index: Tensor | slice) -> Items:
        """Rows of shared items (N, ...), in the order of ``index``."""
        return self.map(lambda part: part[index])

    def detach(self) -> Items:
        """The same things, without gradient."""
        return self.map(Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> Items:
        """The same things on another device."""
        return self.map(lambda part: part.to(*args, **kwargs))

    @property
    def unit(self) -> Tensor:
        """Embeddings at length 1, in fp32 at least; computed once, however many blocks compare them."""
        graph = True in self._unit or torch.is_grad_enabled()  # what was made without a graph has no gradient to give
        if graph not in self._unit:
            self._unit[graph] = F.normalize(_wide(self._need("embeddings")), dim=-1)
        return self._unit[graph]

    @cached_property
    def unit_guide(self) -> Tensor:
        """Guide vectors at length 1, in fp32 at least: a bf16 cosine turns near-ties into noise.

        In fp64 where the model computes in it: a store holds fp32, whose products depend on the shape of the batch.
        """
        guide = _wide(self._need("guide").detach())
        return F.normalize(guide.double() if self._computes_in_double() else guide, dim=-1)

    def _computes_in_double(self) -> bool:
        return self.embeddings is not None and self.embeddings.dtype == torch.float64

    def _need(self, part: str) -> Tensor:
        value = getattr(self, part)
        if value is None:
            raise ValueError(f"Items of space '{self.space}' have no {part}.")
        return value


@dataclass(frozen=True)
class Block:
    """Items as the anchors see them.

    Args:
        items: the candidates (or positives).
        origin: "in_batch", "queries", "documents", "mined", "queue", "bank", "mixed", "pairs", "classes", "generated".
        left: (B, ...) items whose rows are compared with the candidates; None = the anchors.
        given: (B, N) similarity that is no dot product of embeddings: a cross-encoder's, a margin's, a mix's.
        usable: (B, N) bool; None = all.
        log_weight: (B, N) | (B, 1) nats, added after the temperature; may carry gradient.
        rank: (B, N) place in the retrieved list, 1 = best.
        real: False for synthetic candidates: not counted, not mixed again.
        chunk_size: for candidates that are too many to be scored at once, such as a bank: so many columns are scored at
            a time, and once more in backward. Items are then shared (N, d), may lie in a mapped file, and what miners
            say of them is kept as ``rules``.
        rules: what miners made of a block with a ``chunk_size``, applied to each piece of it in this order.

    Raises:
        ValueError: a chunk_size with parts that are not shared by all anchors.
    """

    items: Items
    origin: str
    left: Items | None = None
    given: Tensor | None = None
    usable: Tensor | None = None
    log_weight: Tensor | None = None
    rank: Tensor | None = None
    real: bool = True
    chunk_size: int | None = None
    rules: tuple[Callable[[Block], Block], ...] = ()

    def __post_init__(self) -> None:
        if self.chunk_size is None:
            return
        own = {name for name in ("left", "given", "usable", "log_weight", "rank") if getattr(self, name) is not None}
        if self.chunk_size < 1 or own or self.items._need("embeddings").ndim != 2:
            raise ValueError(
                f"Block(origin='{self.origin}', chunk_size={self.chunk_size}): wants at least 1, and candidates (N, d) "
                f"that all anchors share; got {tuple(self.items._need('embeddings').shape)} with {sorted(own)}."
            )


@dataclass(frozen=True)
class StepContext:
    """Where in the run a step stands, and how to draw numbers that do not depend on the number of processes.

    Args:
        epoch: from 0.
        step: batches trained before this one, from 0; with accumulated gradients, each of them counts.
        training: False in evaluation.
        seed: run seed.
        offset: place of this process' first anchor among the ``global_rows`` of all processes.
        rows: anchors of this process; None where nobody said.
    """

    epoch: int = 0
    step: int = 0
    training: bool = True
    seed: int = 0
    offset: int = 0
    global_rows: int | None = None
    rows: int | None = None

    @property
    def own(self) -> slice:
        """This process' rows among those of all."""
        return slice(self.offset, None if self.rows is None else self.offset + self.rows)

    def draw(self, sample: Callable[[int, torch.Generator], Tensor], rows: int, stream: int = 0) -> Tensor:
        """``sample(G, generator)`` -> (G, ...) from (seed, step, stream); this process keeps its own ``rows`` of them.

        Every process draws for all rows, so that W processes of B rows equal one of W x B.
        """
        drawn = sample(self.global_rows or rows, generator_for(self.seed, self.step, stream))
        return drawn[self.offset : self.offset + rows]


Where = Callable[[Tensor, Block], "Tensor | None"]


@dataclass(frozen=True)
class NegativePool:
    """B anchors, their positives, and the negatives that miners have gathered for them so far.

    Args:
        anchors: (B, d).
        positives: a block of (B, P, d) own positives (usual: P = 1), or of (G, d) shared ones with ``usable`` (B, G);
            an anchor without a usable positive costs nothing.
        temperature: divides similarities; a 0-dim tensor where it is learned.
        similarity: "cosine" normalises vectors, "dot" takes them as they are.
        direction: "query_to_document", ...: one pool and one chain for each.
        negatives: starts empty; `InBatch` fills it.
        sides: "anchors", "positives", "drawn", "classes" after the gather, (G, ...); `InBatch` and `SelfBlocks` use
            them. A ready `Block` where candidates have scores and no vectors.
        known: per anchor, ids in the positives' space that must never be its negatives.
        context: epoch, step, generator.
        dropped: candidates dropped so far, by reason; int64 scalars.
    """

    anchors: Items
    positives: Block
    temperature: Tensor | float = 1.0
    similarity: Literal["cosine", "dot"] = "cosine"
    direction: str = "query_to_document"
    negatives: tuple[Block, ...] = ()
    sides: Mapping[str, Items | Block] = field(default_factory=dict)
    known: Ragged | None = None
    context: StepContext = StepContext()
    dropped: Mapping[str, Tensor] = field(default_factory=dict)
    memo: Memo = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.similarity not in ("cosine", "dot"):
            raise ValueError(f"NegativePool(similarity='{self.similarity}'): wants 'cosine' or 'dot'.")

    # ---- what losses and miners read -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.anchors) if self.anchors.tensors() else len(self.scores(self.positives))

    def scores(self, block: Block) -> Tensor:
        """(B, N) similarity of anchors and candidates, in fp32 at least; with gradient."""
        if block.chunk_size is not None:
            block = self.whole(block)
        if block.given is not None:
            return _wide(block.given)
        return self._product(block.left or self.anchors, block.items, self._view)

    def guide_scores(self, block: Block) -> Tensor:
        """(B, N) cosine of the guide's vectors; no gradient.

        Raises:
            ValueError: no guide vectors on the anchors or on this block.
        """
        for items in (block.left or self.anchors, block.items):
            if items.guide is None:
                raise ValueError(
                    f"a guide miner needs guide vectors on every block; block '{block.origin}' (space '{items.space}') "
                    "has none. Give the module a guide (model.init_args.guide), or use PositiveAware, which needs none."
                )
        if block.chunk_size is not None:
            block = self.whole(block)
        return self._product(block.left or self.anchors, block.items, "unit_guide")

    def logits(self, block: Block, power: float = 1.0) -> Tensor:
        """(B, N) ``power`` x (scores / temperature + log_weight); -inf where not usable."""
        if block.chunk_size is not None:
            block = self.whole(block)
        logits = self.scores(block) / self.temperature
        if block.log_weight is not None:
            logits = logits + block.log_weight
        if power != 1.0:
            logits = logits * power
        return logits if block.usable is None else logits.masked_fill(~block.usable, -torch.inf)

    def mass(self, power: float = 1.0, real: bool = False) -> Tensor:
        """(B,) logsumexp of ``power`` x logits over all negatives; -inf for an anchor without any.

        Args:
            power: importance exponents need ``power`` != 1 (HCL); 0 gives the logarithm of the count.
            real: leave synthetic blocks out.
        """
        parts = [
            part
            for block in self.negatives
            if block.real or not real
            for part in self._of_pieces(block, lambda piece: _logsumexp(self.logits(piece, power)))
        ]
        if not parts:
            return self._zeros() - torch.inf
        return parts[0] if len(parts) == 1 else _logsumexp(torch.stack(parts, dim=1))

    def count(self, real: bool = True) -> Tensor:
        """(B,) int64 usable negatives of each anchor."""
        total = self._zeros().long()
        for block in self.negatives:
            if block.real or not real:
                total = sum((self.usable_of(piece).sum(1) for piece in self.pieces(block)), start=total)
        return total

    def total(self) -> Tensor:
        """(B,) sum of the logits of usable negatives: what label smoothing spreads over."""

        def summed(block: Block) -> Tensor:
            logits = self.scores(block) / self.temperature
            if block.log_weight is not None:
                logits = logits + block.log_weight
            return (logits if block.usable is None else logits.where(block.usable, 0)).sum(1)

        parts = (part for block in self.negatives for part in self._of_pieces(block, summed))
        return sum(parts, start=self._zeros())

    def hardest(self, k: int, origins: Collection[str] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The k usable negatives with the highest score.

        Returns:
            scores (B, k), highest first, with gradient, 0 where there is none; validity (B, k) bool; where (B, k, 2)
            int64: number of the block and column in it. k is cut to the number of columns there are.
        """
        tops, found, wheres = [], [], []
        for number, block in enumerate(self.negatives):
            if origins is not None and block.origin not in origins:
                continue
            top, score, column = self._top(block, k)
            tops.append(top)
            found.append(score)
            wheres.append(torch.stack([torch.full_like(column, number), column], dim=2))
        if not tops:
            nothing = self._zeros()[:, None][:, :0]
            return nothing, nothing.bool(), nothing.long()[:, :, None].expand(-1, -1, 2)
        ranked, scores, where = tops[0], found[0], wheres[0]
        if len(tops) > 1:
            ranked, order = torch.cat(tops, 1).topk(min(k, sum(top.shape[1] for top in tops)), dim=1)
            scores = torch.cat(found, 1).gather(1, order)
            where = torch.cat(wheres, 1).gather(1, order[:, :, None].expand(-1, -1, 2))
        valid = ranked > -torch.inf
        return scores.masked_fill(~valid, 0), valid, where

    def lowest_positive(self, guide: bool = False) -> Tensor:
        """(B, 1) the lowest score (or guide score) among each anchor's usable positives; +inf without one.

        The lowest, so that a margin set against it would drop none of the positives.
        """
        scores = self.guide_scores(self.positives) if guide else self.scores(self.positives).detach()
        if self.positives.usable is not None:
            scores = scores.masked_fill(~self.positives.usable, torch.inf)
        return scores.amin(1, keepdim=True)

    def usable_of(self, block: Block) -> Tensor:
        """(B, N) bool, also where the block itself says nothing."""
        if block.chunk_size is not None:
            block = self.whole(block)
        if block.usable is not None:
            return block.usable
        shape = block.given.shape if block.given is not None else (len(self), len(block.items))
        return torch.ones(shape, dtype=torch.bool, device=self._device())

    @property
    def usable(self) -> Tensor:
        """(B, all N) usable columns of every block side by side; for people and tests."""
        return torch.cat([self.usable_of(block) for block in self.negatives], dim=1)

    def statistics(self, combine: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, Tensor]:
        """What to log of a finished chain, over real negatives: scalars without gradient.

        hardness_mean and hardness_max are similarities (of all negatives; of each anchor's hardest, averaged),
        candidates counts columns before masking, dropped/<reason> what each rule took, empty_rows the anchors with
        no negative left, dropped_share = dropped by miners (identities excepted) / candidates that identities left.

        Args:
            combine: adds up a vector over processes, so that these are the numbers of all anchors.
        """
        with torch.no_grad():
            total, maximum, kept = self._zeros(), self._zeros() - torch.inf, self._zeros()
            for block in (piece for each in self.negatives if each.real for piece in self.pieces(each)):
                scores, usable = self.scores(block).detach(), self.usable_of(block)
                if not scores.shape[1]:
                    continue
                total = total + scores.where(usable, 0).sum(1)
                maximum = torch.maximum(maximum, scores.masked_fill(~usable, -torch.inf).amax(1))
                kept = kept + usable.sum(1)
            filled = kept > 0
            sums = [total.sum(), kept.sum(), maximum.where(filled, 0).sum(), filled.sum(), kept.new_tensor(len(kept))]
            # counts beyond 2^24 need float64, which MPS does not have
            wide = torch.float32 if total.device.type == "mps" else torch.float64
            hardness, kept_sum, hardest, filled_sum, anchors, *dropped = combine(
                torch.stack([number.to(wide) for number in (*sums, *self.dropped.values())])
            )
            reasons = dict(zip(self.dropped, dropped, strict=True))
            judged = sum(
                (n for reason, n in reasons.items() if reason not in IDENTITY), start=torch.zeros_like(anchors)
            )
            out = {
                "hardness_mean": hardness / kept_sum.clamp_min(1),
                "hardness_max": hardest / filled_sum.clamp_min(1),
                "negatives_per_anchor": kept_sum / anchors.clamp_min(1),
                "empty_rows": anchors - filled_sum,
                "dropped_share": judged / (kept_sum + judged).clamp_min(1),
            }
            out |= {f"dropped/{reason}": number for reason, number in reasons.items()}
            return {name: value.to(total.dtype) for name, value in out.items()}

    # ---- what miners change; each returns a new pool ---------------------------------------------------------------

    def add(self, block: Block) -> NegativePool:
        """Append candidates, with everything masked that can never be a negative of its anchor.

        Masked: ids among the anchor's ``known`` ones or its positives' (same space), content equal to its positives'
        or to the anchor's own, the class of the anchor, the anchor itself. Nowhere else is identity looked at.
        """
        if block.chunk_size is None:
            block, dropped = self._without_identities(block)
        else:  # every piece is masked when it is scored; here they are counted
            dropped = {}
            for start in range(0, len(block.items), block.chunk_size):
                dropped = _added(dropped, self._without_identities(self._cut(block, start))[1])
        return replace(self, negatives=(*self.negatives, block), dropped=_added(self.dropped, dropped))

    def whole(self, block: Block) -> Block:
        """A block with a ``chunk_size`` as one judged block, for whoever needs all columns at once."""
        return block if block.chunk_size is None else self._piece(block, 0, len(block.items))

    def pieces(self, block: Block) -> Iterator[Block]:
        """A block with a ``chunk_size`` as judged blocks of so many columns, one by one; any other as it is."""
        if block.chunk_size is None:
            yield block
            return
        for start in range(0, len(block.items), block.chunk_size):
            yield self._piece(block, start)

    def mask(self, where: Where, reason: str) -> NegativePool:
        """Drop candidates where ``where(scores (B, N) without gradient, block)`` is True; None leaves a block alone.

        Synthetic blocks are not judged: nothing is known of them. What was dropped is counted under ``reason``.
        """
        blocks, dropped = [], self._zeros().long().sum()

        def judged(block: Block) -> Block:
            drop = where(self.scores(block).detach(), block)
            return block if drop is None else replace(block, usable=self.usable_of(block) & ~drop)

        for block in self.negatives:
            if block.real and block.chunk_size is not None:
                with torch.no_grad():
                    for piece in self.pieces(block):
                        usable = self.usable_of(piece)
                        dropped = dropped + (usable & ~self.usable_of(judged(piece))).sum()
                block = replace(block, rules=(*block.rules, judged))
            elif block.real and (now := judged(block)) is not block:
                dropped = dropped + (self.usable_of(block) & ~self.usable_of(now)).sum()
                block = now
            blocks.append(block)
        return replace(self, negatives=tuple(blocks), dropped=_added(self.dropped, {reason: dropped}))

    def weight(self, log_weight: Where, real: bool = True) -> NegativePool:
        """Add ``log_weight(scores, block)`` (B, N) | (B, 1) nats to every block; scores keep their gradient here.

        Args:
            real: leave synthetic blocks as they are.
        """

        def weighed(block: Block) -> Block:
            more = log_weight(self.scores(block), block)
            if more is None:
                return block
            return replace(block, log_weight=more if block.log_weight is None else block.log_weight + more)

        blocks = []
        for block in self.negatives:
            if block.real or not real:
                long = block.chunk_size is not None
                block = replace(block, rules=(*block.rules, weighed)) if long else weighed(block)
            blocks.append(block)
        return replace(self, negatives=tuple(blocks))

    def with_positives(self, block: Block) -> NegativePool:
        """Replace the positives; negatives that are the new positives are masked as in `add`."""
        pool = replace(self, positives=block, negatives=())
        for old in self.negatives:
            pool = pool.add(old)
        return pool

    # ---- inside --------------------------------------------------------------------------------------------------

    def _product(self, left: Items, right: Items, view: str) -> Tensor:
        """(B, N) products of two views, remembered: masks, weights, statistics and losses share one."""
        memo = self.memo if right.products is None else right.products
        key = (id(left), id(right), view, True)
        if key not in memo:
            key = (*key[:3], torch.is_grad_enabled())  # what a no_grad block asked for first has no gradient to give
        if key not in memo:
            a, b = (_wide(x._need("embeddings")) if view == "dot" else getattr(x, view) for x in (left, right))
            if a.ndim == 3:  # positives as the left side: one row each
                a = a.squeeze(1)
            if a.shape[-1] != b.shape[-1]:
                raise ValueError(
                    f"anchors of space '{left.space}' have {a.shape[-1]} dims, candidates of space '{right.space}' "
                    f"{b.shape[-1]}: they cannot be compared."
                )
            dtype = torch.promote_types(a.dtype, b.dtype)  # a store holds float32, whatever the encoder computes in
            if view == "unit" and b.dtype != dtype:  # norms in fp32 depend on the shape of the batch
                b = F.normalize(right._need("embeddings").to(dtype), dim=-1)
            a, b = a.to(dtype), b.to(dtype)
            with torch.autocast(a.device.type, enabled=False):  # autocast would multiply in half precision
                product = a @ b.T if b.ndim == 2 else torch.einsum("bd,bnd->bn", a, b)
            # the items too: an id may not be used again while it is a key; but not those that the memo belongs to: they
            # would wait for the garbage collector, a chunk of a bank each
            memo[key] = (left, right if memo is self.memo else left, product)
        return memo[key][2]

    @property
    def _view(self) -> str:
        return "unit" if self.similarity == "cosine" else "dot"

    def _cut(self, block: Block, start: int, columns: int | None = None) -> Block:
        """``columns`` (None: chunk_size) of a long block on the anchors' device, not judged yet."""
        assert block.chunk_size is not None
        items = block.items.take(slice(start, start + (columns or block.chunk_size))).to(self._device())
        return Block(replace(items, products={}), block.origin, real=block.real)

    def _piece(self, block: Block, start: int, columns: int | None = None) -> Block:
        """A part of a long block as all rules leave it."""
        piece, _ = self._without_identities(self._cut(block, start, columns))
        for rule in block.rules:
            piece = rule(piece)
        return piece

    def _of_pieces(self, block: Block, measure: Callable[[Block], Tensor]) -> list[Tensor]:
        """``measure`` of each piece of a block; pieces of a long one are made again in backward, one at a time."""
        if block.chunk_size is None or not torch.is_grad_enabled():
            return [measure(piece) for piece in self.pieces(block)]
        if len(block.items):
            measure(self._piece(block, 0, 1))  # what is remembered of the anchors is made here, not inside a checkpoint
        return [
            checkpoint(
                lambda start: measure(self._piece(block, start)), start, use_reentrant=False, preserve_rng_state=False
            )
            for start in range(0, len(block.items), block.chunk_size)
        ]

    def _top(self, block: Block, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k usable columns with the highest score: score or -inf (B, k), score with gradient, column."""
        if block.chunk_size is None:
            scores = self.scores(block)
            ranked = scores.detach()  # the gradient takes the short way, through the k alone
            if block.usable is not None:
                ranked = ranked.masked_fill(~block.usable, -torch.inf)
            top, column = ranked.topk(min(k, scores.shape[1]), dim=1)
            return top, scores.gather(1, column), column
        with torch.no_grad():
            found = [self._top(piece, k) for piece in self.pieces(block)]
        starts = range(0, len(block.items), block.chunk_size)
        columns = torch.cat([column + start for (_, _, column), start in zip(found, starts, strict=True)], dim=1)
        top, order = torch.cat([top for top, _, _ in found], dim=1).topk(min(k, columns.shape[1]), dim=1)
        columns = columns.gather(1, order)
        vectors = block.items._need("embeddings")
        chosen = Items(vectors[columns.to(vectors.device)].to(top.device), space=block.items.space, products={})
        return top, self._product(self.anchors, chosen, self._view), columns

    def _without_identities(self, block: Block) -> tuple[Block, dict[str, Tensor]]:
        """The block with identities masked, and how many each rule took."""
        usable: Tensor | None = block.usable
        dropped: dict[str, Tensor] = {}
        for reason, same in self._identities(block.items).items():
            if usable is None:
                dropped[reason], usable = same.sum(), ~same
            else:
                dropped[reason], usable = (usable & same).sum(), usable & ~same
        return replace(block, usable=usable), dropped if block.real else {}

    def _identities(self, items: Items) -> dict[str, Tensor]:
        """(B, N) masks, by reason, of candidates that are no negatives whatever a miner thinks."""
        masks: dict[str, Tensor] = {}
        anchors, positives = self.anchors, self.positives.items
        if items.ids is not None:
            if items.space == positives.space and positives.ids is not None:
                masks["positive"] = self._among_positives(items.ids, positives.ids)
            if items.space == positives.space and self.known is not None:
                masks["known"] = among(items.ids, self.known)
            if items.space == anchors.space and anchors.ids is not None:
                masks["self"] = _equal(items.ids, anchors.ids)
        if items.content is not None:
            if positives.content is not None:
                masks["same_content"] = self._among_positives(items.content, positives.content)
            if anchors.content is not None:
                same = _equal(items.content, anchors.content)
                masks["same_content"] = masks["same_content"] | same if "same_content" in masks else same
        if items.labels is not None and anchors.labels is not None:
            masks["same_label"] = _equal(items.labels, anchors.labels)
        return masks

    def _among_positives(self, candidates: Tensor, own: Tensor) -> Tensor:
        """(B, N) candidates that equal one of their anchor's usable positives."""
        usable = self.positives.usable
        if own.ndim == 2:  # each anchor's own
            if own.shape[1] == 1 and usable is None:
                return _equal(candidates, own[:, 0])
            usable = torch.ones_like(own, dtype=torch.bool) if usable is None else usable
            return among(candidates, Ragged.from_pairs(usable.nonzero()[:, 0], own[usable], len(own)))
        rows, columns = self.usable_of(self.positives).nonzero(as_tuple=True)
        return among(candidates, Ragged.from_pairs(rows, own[columns], len(self)))

    def _device(self) -> torch.device:
        return self._reference().device

    def _reference(self) -> Tensor:
        if self.positives.given is not None:
            return self.positives.given
        return next(iter({**self.positives.items.tensors(), **self.anchors.tensors()}.values()))

    def _zeros(self) -> Tensor:
        """(B,) zeros of the dtype that scores have."""
        source = self.positives.given if self.positives.given is not None else self.anchors.embeddings
        dtype = torch.float64 if source is not None and source.dtype == torch.float64 else torch.float32
        return torch.zeros(len(self), dtype=dtype, device=self._device())


IDENTITY = frozenset({"positive", "known", "self", "same_content", "same_label"})
"""Reasons under which `NegativePool.add` drops; every other reason is a miner's judgement."""


def _wide(x: Tensor) -> Tensor:
    """fp32 at least: similarities, masks and sums lose near-ties in half precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _equal(candidates: Tensor, own: Tensor) -> Tensor:
    """(B, N) whether each candidate (N,) | (B, N) equals its anchor's one value (B,); nobody equals nobody."""
    return (candidates == own[:, None]) & (own != NOBODY)[:, None]


def among(candidates: Tensor, own: Ragged) -> Tensor:
    """(B, N) whether each candidate (N,) | (B, N) is on its anchor's list; memory B x N bits, no third dimension."""
    rows, values = own.row_of_value, own.values
    keep = values != NOBODY
    rows, values = rows[keep], values[keep]
    if candidates.ndim == 2:
        codes = torch.cat([candidates.reshape(-1), values]).unique(return_inverse=True)[1]
        base = codes.max() + 1 if len(codes) else 1
        mine = codes[: candidates.numel()].view_as(candidates)
        mine = mine + torch.arange(len(candidates), device=candidates.device)[:, None] * base
        return torch.isin(mine, codes[candidates.numel() :] + rows * base)
    order = candidates.argsort()
    ranked = candidates[order]
    first = torch.searchsorted(ranked, values)
    matches = torch.searchsorted(ranked, values, right=True) - first
    place = torch.arange(int(matches.sum()), device=values.device)
    place = place + torch.repeat_interleave(first - matches.cumsum(0) + matches, matches)
    mask = torch.zeros(len(own), len(candidates), dtype=torch.bool, device=candidates.device)
    mask[torch.repeat_interleave(rows, matches), order[place]] = True
    return mask


def _logsumexp(logits: Tensor) -> Tensor:
    """(B,) logsumexp over the last dim whose gradient stays finite where a row is all -inf."""
    if logits.shape[1] == 0:
        return logits.sum(1) - torch.inf
    top = logits.detach().amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min)
    total = (logits - top).exp().sum(1)
    filled = total > 0
    return (total.where(filled, 1).log() + top.squeeze(1)).where(filled, -torch.inf)


def _added(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**old, **{reason: old[reason] + number if reason in old else number for reason, number in new.items()}}
