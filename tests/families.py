"""Five small families that stand for all: what a chain of miners may meet, without text, pictures or weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from hardneg.losses import PoolLoss
from hardneg.modules.base import ContrastiveModule
from miners import Block, Items, NegativePool, PoolMiner, Ragged, StepContext, Store

ROWS, FEATURES, DIM, CLASSES = 12, 8, 6, 4


def features(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_batch(rows: Tensor | None = None, drawn: int = 1) -> Batch:
    """Rows with a query, a document near it, one drawn negative each, a class and a guide's opinion of everything."""
    rows = torch.arange(ROWS) if rows is None else rows
    generator = torch.arange(1000)
    queries = features(1, 1000, FEATURES)[rows]
    documents = queries + 0.8 * features(2, 1000, FEATURES)[rows]
    negatives = documents.repeat_interleave(drawn, 0) + features(3, 1000, FEATURES)[: len(rows) * drawn]
    labels = rows % CLASSES
    items = {
        "query": Items(ids=rows, content=rows + 5000, labels=labels, guide=features(4, 1000, 5)[rows], space="query"),
        "document": Items(ids=rows, content=rows + 9000, guide=features(5, 1000, 5)[rows], space="document"),
        "drawn": Items(
            ids=generator[: len(rows) * drawn] + 300,
            guide=features(6, 1000, 5)[: len(rows) * drawn],
            space="document",
            rows=torch.arange(len(rows)).repeat_interleave(drawn),
        ),
    }
    known = Ragged.from_lists([[int(row)] for row in rows])
    return Batch({"query": queries, "document": documents, "drawn": negatives}, items, known, rows)


class StubFamily(ContrastiveModule):
    """Linear towers in float64; the five families differ in their sides, pools and what they provide."""

    def __init__(self, miners: Sequence[PoolMiner] | None = None, loss: PoolLoss | None = None) -> None:
        super().__init__(loss, miners)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.left = nn.Linear(FEATURES, DIM, bias=False).double()
            self.right = nn.Linear(FEATURES, DIM, bias=False).double()
            self.centres = nn.Parameter(torch.randn(CLASSES, DIM, dtype=torch.float64))
        self.use_miners()
        if "frozen" in self.provides:
            for miner in self.chains[self.directions[0]]:  # type: ignore[union-attr]
                miner.refresh(self.frozen_stores())

    @staticmethod
    def frozen_stores() -> dict[str, Store]:
        """A frozen side of 40 documents, and the guide's opinion of them."""
        vectors = nn.functional.normalize(features(9, 40, DIM), dim=1).float()
        return {"document": Store(vectors), "guide/document": Store(features(10, 40, 5).float())}

    def embed_share(self, space: str, encoder: nn.Module | None = None, ids: Tensor | None = None) -> Tensor:
        return features(1, 1000, FEATURES)[:ROWS].float()

    def store_of(self, space: str, share: Tensor, version: int, ids: Tensor | None = None) -> Store:
        return Store(share, torch.arange(ROWS), space)

    def _pool(
        self, direction: str, anchors: Items, positives: Block, context: StepContext, **parts: object
    ) -> NegativePool:
        return NegativePool(anchors, positives, self.loss.temperature, direction=direction, context=context, **parts)  # type: ignore[arg-type]


class TwoTower(StubFamily):
    """Retrieval-like: queries, documents, drawn negatives, a guide; one encoder serves all sides."""

    provides = frozenset({"embeddings", "sides", "own_positive", "drawn", "guide", "one_space", "frozen"})
    directions = ("query_to_document",)

    def encode(self, batch: Batch) -> dict[str, Items]:
        return {side: replace(items, embeddings=self.left(batch.inputs[side])) for side, items in batch.items.items()}

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = slice(context.offset, context.offset + len(batch))
        roles = {"anchors": sides["query"], "positives": sides["document"], "drawn": sides["drawn"]}
        anchors, positives = sides["query"].take(own), one_each(sides["document"].take(own))
        return [self._pool(self.directions[0], anchors, positives, context, sides=roles, known=batch.known)]


class Composed(StubFamily):
    """Composed retrieval in its second stage: a frozen picture and a text make the query, targets are frozen."""

    provides = frozenset({"embeddings", "sides", "own_positive", "guide", "frozen"})
    directions = ("query_to_target",)

    def encode(self, batch: Batch) -> dict[str, Items]:
        rows, frozen = batch.rows, self.frozen_stores()
        targets, guide = frozen["document"].vectors, frozen["guide/document"].vectors
        query = self.left(batch.inputs["query"]) + targets[rows + 20]
        target = Items(targets[rows].double(), rows, guide=guide[rows], space="document")
        return {
            "query": replace(
                batch.items["query"], embeddings=query, labels=None, guide=features(4, 1000, 5)[rows].float()
            ),
            "target": target,
        }

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = slice(context.offset, context.offset + len(batch))
        roles = {"anchors": sides["query"], "positives": sides["target"]}
        anchors, positives = sides["query"].take(own), one_each(sides["target"].take(own))
        return [self._pool(self.directions[0], anchors, positives, context, sides=roles, known=batch.known)]


class Symmetric(StubFamily):
    """Two modalities of the same instants, contrasted both ways, with two encoders."""

    provides = frozenset({"embeddings", "sides", "own_positive", "guide"})
    directions = ("left_to_right", "right_to_left")

    def encode(self, batch: Batch) -> dict[str, Items]:
        return {
            "left": replace(batch.items["query"], embeddings=self.left(batch.inputs["query"]), labels=None),
            "right": replace(batch.items["document"], embeddings=self.right(batch.inputs["document"])),
        }

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = slice(context.offset, context.offset + len(batch))
        out = []
        for direction in self.directions:
            a, b = direction.split("_to_")
            roles = {"anchors": sides[a], "positives": sides[b]}
            positives = one_each(sides[b].take(own))
            out.append(self._pool(direction, sides[a].take(own), positives, context, sides=roles))
        return out


class CrossView(StubFamily):
    """Geo-like: two views of places, both ways through one encoder; the next place shows a part of this one."""

    provides = frozenset({"embeddings", "sides", "own_positive", "drawn", "guide", "one_space"})
    directions = ("query_to_document", "document_to_query")

    def encode(self, batch: Batch) -> dict[str, Items]:
        return {side: replace(items, embeddings=self.left(batch.inputs[side])) for side, items in batch.items.items()}

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own, out = context.own, []
        for direction in self.directions:
            a, b = direction.split("_to_")
            step = 1 if a == "query" else -1
            roles = {"anchors": sides[a], "positives": sides[b]}
            if a == "query":
                roles["drawn"] = sides["drawn"]
            semi = Ragged.from_lists([[row, row + step] for row in batch.rows[own].tolist()])
            positives = one_each(sides[b].take(own))
            out.append(self._pool(direction, sides[a].take(own), positives, context, sides=roles, known=semi))
        return out


class Labelled(StubFamily):
    """Classes with centres: the positive is the anchor's own class centre, the negatives are the others."""

    provides = frozenset({"embeddings", "sides", "own_positive", "labels", "one_space", "guide"})
    directions = ("image_to_class",)

    def encode(self, batch: Batch) -> dict[str, Items]:
        labels, guide = batch.items["query"].labels, batch.items["query"].guide
        return {"image": Items(self.left(batch.inputs["query"]), batch.rows, None, labels, guide, space="image")}

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        images = sides["image"].take(slice(context.offset, context.offset + len(batch)))
        classes = Items(self.centres, torch.arange(CLASSES), guide=features(7, CLASSES, 5), space="class")
        assert images.labels is not None
        positives = one_each(classes.take(images.labels))
        roles = {"anchors": sides["image"], "classes": classes, "positives": sides["image"]}
        return [self._pool(self.directions[0], images, positives, context, sides=roles)]


class ScoresOnly(StubFamily):
    """Re-ranking-like: candidates in retrieved order, with a score and no vector."""

    provides = frozenset({"sides", "drawn", "rank", "own_positive"})
    directions = ("query_to_document",)

    def encode(self, batch: Batch) -> dict[str, Items]:
        """A score for each (query, candidate) pair: the row (B, 1 + N) travels where vectors of others do."""
        number = len(batch.inputs["query"])
        candidates = features(8, number, 5, FEATURES) + 0.3 * batch.inputs["query"][:, None]
        pairs = torch.cat([batch.inputs["document"][:, None], candidates], 1)  # (B, 1 + N, features)
        scores = torch.tanh(pairs @ self.left.weight.sum(0))
        return {"query": replace(batch.items["query"], guide=None, labels=None, embeddings=scores)}

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        queries = sides["query"].take(context.own)
        assert queries.embeddings is not None
        assert queries.ids is not None
        scores, number = queries.embeddings, len(queries)
        items = Items(ids=torch.arange(number * 5).view(number, 5) + 300)
        listed = Block(items, "mined", given=scores[:, 1:], rank=torch.arange(2, 7).expand(number, 5))
        first = torch.ones(number, 1, dtype=torch.long)
        positive = Block(Items(ids=queries.ids[:, None]), "positive", given=scores[:, :1], rank=first)
        anchors = replace(queries, embeddings=None)
        return [self._pool(self.directions[0], anchors, positive, context, sides={"drawn": listed})]


def one_each(items: Items) -> Block:
    """Shared items (B, ...) as one own positive of each anchor."""
    wide = {name: part[:, None] for name, part in items.tensors().items() if name not in ("labels", "norms", "rows")}
    return Block(replace(items, labels=None, norms=None, rows=None, **wide), "positive")


FAMILIES = (TwoTower, Composed, Symmetric, CrossView, Labelled, ScoresOnly)
