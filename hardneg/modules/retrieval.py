"""Text retrieval: queries on one side, documents on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from datamodules.batch import Batch
from hardneg.encoders.base import Encoder
from hardneg.encoders.text import TextEncoder
from hardneg.losses import PoolLoss
from hardneg.metrics.retrieval import evaluate_retrieval
from hardneg.modules.base import ContrastiveModule
from miners.base import PoolMiner
from miners.pool import Block, Items, NegativePool, StepContext, among
from miners.ragged import Ragged
from miners.store import Store

Direction = Literal["query_to_document", "document_to_query"]


class RetrievalModule(ContrastiveModule):
    """Fine-tune a bi-encoder so that a query lies next to its documents.

    Args:
        encoder: queries and documents share it.
        loss, miners, learning_rate, weight_decay, warmup_share, schedule, seed: as in `ContrastiveModule`.
        directions: "query_to_document", "document_to_query" or both; each has its own chain.
        similarity: "cosine", or "dot" for models trained with it.
        guide: a frozen encoder that judges candidates for `GIST`; its vectors are made once, before training.
        allow_same_guide: let a guide start from the student's own weights, of which little is to be learned.
        eval_batch_size: texts per batch when the corpus is encoded.

    Raises:
        ValueError: a guide with the student's own weights.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        loss: PoolLoss | None = None,
        miners: Sequence[PoolMiner] | None = None,
        directions: Sequence[Direction] = ("query_to_document",),
        similarity: Literal["cosine", "dot"] = "cosine",
        guide: Encoder | None = None,
        allow_same_guide: bool = False,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_share: float = 0.1,
        schedule: Literal["linear", "constant"] = "linear",
        eval_batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(loss, miners, learning_rate, weight_decay, warmup_share, schedule, seed)
        if not directions or set(directions) - {"query_to_document", "document_to_query"}:
            raise ValueError(f"directions={list(directions)}: wants query_to_document, document_to_query or both.")
        self.encoder = encoder or TextEncoder()
        self.directions = tuple(directions)
        self.similarity = similarity
        self.eval_batch_size = eval_batch_size
        provides = {"embeddings", "sides", "own_positive", "drawn", "one_space"}
        # outside the module tree: a guide has no gradient and belongs in no checkpoint of the student
        self._guide = [guide] if guide is not None else []
        self._guide_stores: dict[str, Store] = {}
        if guide is not None:
            if not allow_same_guide and guide.fingerprint("document") == self.encoder.fingerprint("document"):
                raise ValueError(
                    "the guide has the student's own weights: it would judge by what the student already believes. Give "
                    "a stronger guide, or set model.init_args.allow_same_guide: true."
                )
            provides.add("guide")
        self.provides = frozenset(provides)
        self._queries: list[torch.Tensor] = []
        self.use_miners()

    # ---- training ----------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> dict[str, Items]:
        sides = {}
        for side, items in batch.items.items():
            kind = "query" if items.space == "query" else "document"
            vectors = self.encoder(batch.inputs[side], kind)
            guide = self._guide_stores[items.space].rows(items.ids) if self._guide else None
            sides[side] = replace(items, embeddings=vectors, guide=None if guide is None else guide.to(vectors.device))
        return sides

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = slice(context.offset, context.offset + len(batch))
        out = []
        for direction in self.directions:
            forwards = direction == "query_to_document"
            anchors, positives = ("query", "document") if forwards else ("document", "query")
            roles = {"anchors": sides[anchors], "positives": sides[positives]}
            if forwards and "drawn" in sides:
                roles["drawn"] = sides["drawn"]
            known = batch.known if forwards else _turned(batch.known, sides["query"], sides["document"].take(own), own)
            out.append(
                NegativePool(
                    anchors=sides[anchors].take(own),
                    positives=Block(_one_each(sides[positives].take(own)), "positive"),
                    temperature=self.loss.temperature,
                    similarity=self.similarity,
                    direction=direction,
                    sides=roles,
                    known=known,
                    context=context,
                )
            )
        return out

    def on_fit_start(self) -> None:
        if self._guide and not self._guide_stores:
            for space in ("query", "document"):
                self._guide_stores[space] = self._store(self._guide[0], space, f"guide, {space}")

    def embed(self, space: str) -> Store:
        return self._store(self.encoder, space, f"refresh, {space}")

    def _store(self, encoder: Encoder, space: str, progress: str) -> Store:
        ids, texts = self.trainer.datamodule.everything(space)
        vectors = encoder.embed(texts, space, self.eval_batch_size, progress)
        if self.similarity == "cosine":
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return Store(vectors, ids, space, key=encoder.fingerprint(space), version=self.global_step)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._evaluate(self.trainer.datamodule.val_split, "val")
        self._queries = []

    def on_test_epoch_end(self) -> None:
        self._evaluate(self.trainer.datamodule.test_split, "test")
        self._queries = []

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Items:
        (side,) = batch.items
        return replace(batch.items[side], embeddings=self.encoder(batch.inputs[side], side).float())

    def save_pretrained(self, folder: str) -> None:
        """Write the encoder as a folder that ``SentenceTransformer(folder)`` loads."""
        self.encoder.save_pretrained(folder)

    def _collect(self, batch: Batch) -> None:
        self._queries.append(self.encoder(batch.inputs["query"], "query").float().cpu())

    def _evaluate(self, split: str, prefix: str) -> None:
        """Rank the whole corpus for every query of the split, and log the usual measures."""
        data = self.trainer.datamodule
        ids, _ = data.queries(split)
        corpus = self._store(self.encoder, "document", f"{prefix}: encode the corpus")
        queries = torch.cat(self._queries)
        if self.similarity == "cosine":
            queries = torch.nn.functional.normalize(queries, dim=1)
        names = data.names("query")
        measures = evaluate_retrieval(
            queries, [names[int(i)] for i in ids], corpus, data.names("document"), data.qrels(split), self.device
        )
        self.log_dict({f"{prefix}/{name}": value for name, value in measures.means.items()}, batch_size=len(ids))
        self.measures = measures


def _one_each(items: Items) -> Items:
    """Shared items (B, ...) as one positive per anchor: embeddings (B, 1, d), ids (B, 1)."""
    wide = {name: part[:, None] for name, part in items.tensors().items() if name not in ("labels", "norms", "rows")}
    return replace(items, labels=None, norms=None, rows=None, **wide)


def _turned(known: Ragged, queries: Items, documents: Items, own: slice) -> Ragged:
    """For each document of this process, the queries of the batch that know it as a positive.

    ``known`` lists documents by query; here the documents are the anchors.
    """
    assert queries.ids is not None and documents.ids is not None
    listed = among(documents.ids, known)  # (B, B): query i knows document j
    query, document = listed.nonzero(as_tuple=True)
    return Ragged.from_pairs(document, queries.ids[own][query], len(documents))
