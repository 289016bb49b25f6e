"""Text retrieval: queries on one side, documents on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from hardneg.encoders.base import Encoder
from hardneg.encoders.text import TextEncoder
from hardneg.losses import PoolLoss
from hardneg.metrics.retrieval import evaluate_retrieval
from hardneg.modules.evaluated import EvaluatedModule
from hardneg.modules.gather import in_order
from hardneg.modules.guide_vectors import kept_store
from miners.base import PoolMiner, process_count, process_rank
from miners.pool import Block, Items, NegativePool, StepContext, among
from miners.ragged import Ragged
from miners.store import Store

Direction = Literal["query_to_document", "document_to_query"]


class RetrievalModule(EvaluatedModule):
    """Fine-tune a bi-encoder so that a query lies next to its documents.

    Args:
        encoder: queries and documents share it.
        loss, miners, learning_rate, weight_decay, warmup_share, schedule, seed, chunk_size, momentum: as in
            `ContrastiveModule`.
        directions: "query_to_document", "document_to_query" or both; each has its own chain.
        similarity: "cosine", or "dot" for models trained with it.
        guide: a frozen encoder that judges candidates for `GIST`; its vectors are made once, before training.
        guide_folder: where the guide's vectors are kept, so that the next run with the same guide and texts need not
            make them; runs may share it.
        allow_same_guide: let a guide start from the student's own weights, of which little is to be learned.
        frozen: stores of spaces that are never encoded, by space: {"document": "runs/predict/stores/document"} trains
            queries against a corpus that stays as it is (ADORE). A `Store`, or the folder of one as
            `hardneg predict` writes it.
        eval_batch_size: texts per batch when the corpus is encoded.
        rp_cutoffs: also measure R-precision at these ranks, "RP@5": the share of the first k that is relevant, where
            fewer than k are relevant of those that are (skill extraction: [1, 5, 10]).

    Raises:
        ValueError: a guide with the student's own weights, a guide's folder without a guide; frozen spaces that do
            not exist, or every space frozen.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        loss: PoolLoss | None = None,
        miners: Sequence[PoolMiner] | None = None,
        directions: Sequence[Direction] = ("query_to_document",),
        similarity: Literal["cosine", "dot"] = "cosine",
        guide: Encoder | None = None,
        guide_folder: str | None = None,
        allow_same_guide: bool = False,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_share: float = 0.1,
        schedule: Literal["linear", "constant"] = "linear",
        eval_batch_size: int = 128,
        seed: int = 0,
        chunk_size: int | None = None,
        momentum: float | None = None,
        frozen: Mapping[str, str | Store] | None = None,
        rp_cutoffs: Sequence[int] = (),
    ) -> None:
        super().__init__(loss, miners, learning_rate, weight_decay, warmup_share, schedule, seed, chunk_size, momentum)
        if not directions or set(directions) - {"query_to_document", "document_to_query"}:
            raise ValueError(f"directions={list(directions)}: wants query_to_document, document_to_query or both.")
        self.encoder = encoder or TextEncoder()
        self.directions = tuple(directions)
        self.similarity = similarity
        self.eval_batch_size = eval_batch_size
        self.rp_cutoffs = tuple(rp_cutoffs)
        provides = {"embeddings", "sides", "own_positive", "drawn"}
        if self.encoder.one_space:
            provides.add("one_space")
        # outside the module tree: a guide has no gradient and belongs in no checkpoint of the student
        self._guide = [guide] if guide is not None else []
        self.guide_stores: dict[str, Store] = {}
        self.guide_folder = guide_folder
        self.guide_seconds_saved = 0.0  # what earlier runs spent on vectors that this one found in the folder
        if guide_folder is not None and guide is None:
            raise ValueError(f"guide_folder='{guide_folder}' without a guide: set model.init_args.guide too.")
        if guide is not None:
            if not allow_same_guide and guide.fingerprint("document") == self.encoder.fingerprint("document"):
                raise ValueError(
                    "the guide has the student's own weights: it would judge by what the student already believes. "
                    "Give a stronger guide, or set model.init_args.allow_same_guide: true."
                )
            provides.add("guide")
        if set(frozen or ()) - {"query", "document"} or len(frozen or ()) > 1:
            raise ValueError(f"frozen={sorted(frozen or ())}: wants 'query' or 'document', and not both.")
        self.frozen = {
            space: store if isinstance(store, Store) else Store.load(store) for space, store in (frozen or {}).items()
        }
        if self.frozen:
            provides.add("frozen")
        self.provides = frozenset(provides)
        self._corpus: tuple[Any, Store] | None = None
        self.use_miners()

    @property
    def guide(self) -> Encoder | None:
        """The frozen encoder that judges candidates; its vectors are in ``guide_stores`` once a fit has begun."""
        return self._guide[0] if self._guide else None

    # ---- training ----------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> dict[str, Items]:
        sides = {}
        for side, items in batch.items.items():
            kind = "query" if items.space == "query" else "document"
            if self._guide:
                items = replace(items, guide=self.guide_stores[items.space].rows(items._need("ids")).to(self.device))
            if items.space in self.frozen:
                vectors = self.frozen[items.space].rows(items._need("ids"))
                sides[side] = replace(items, embeddings=vectors.to(self.device, self._vector_type()))
                continue
            if self.slow is None or side in self._anchor_sides():
                sides[side] = replace(items, embeddings=self.encoder(batch.inputs[side], kind))
            if self.slow is not None and side in self._candidate_sides():
                with torch.no_grad():
                    sides[f"slow {side}"] = replace(items, embeddings=self.slow(batch.inputs[side], kind))
        return sides

    def _vector_type(self) -> torch.dtype:
        """What vectors from outside are compared in: the encoder's type, fp32 at least."""
        return torch.promote_types(torch.float32, next(self.encoder.parameters()).dtype)

    def _anchor_sides(self) -> set[str]:
        return {"query" if direction == "query_to_document" else "document" for direction in self.directions}

    def _candidate_sides(self) -> set[str]:
        both = {"query_to_document": {"document", "drawn"}, "document_to_query": {"query"}}
        return set().union(*(both[direction] for direction in self.directions))

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = context.own

        def candidates(side: str) -> Items:
            return sides[f"slow {side}"] if f"slow {side}" in sides else sides[side]

        out = []
        for direction in self.directions:
            forwards = direction == "query_to_document"
            anchors, positives = ("query", "document") if forwards else ("document", "query")
            roles = {"anchors": sides[anchors], "positives": candidates(positives)}
            if forwards and {"drawn", "slow drawn"} & set(sides):
                roles["drawn"] = candidates("drawn")
            if forwards:
                known = batch.known.select(torch.arange(len(batch), device=batch.rows.device)[own])
            else:
                known = _turned(batch.known, sides["query"], sides["document"].take(own))
            out.append(
                NegativePool(
                    anchors=sides[anchors].take(own),
                    positives=Block(_one_each(roles["positives"].take(own)), "positive"),
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
        self._check_vectors()
        if self._guide and not self.guide_stores:
            for space in ("query", "document"):
                self.guide_stores[space] = self._guided(self._guide[0], space)
        if self.frozen:
            for space, store in self.frozen.items():
                check_frozen(store, space, self.data.everything(space)[0], self.data.names(space))
            for direction in self.directions:
                for miner in self.chain_of(direction):
                    miner.refresh(self.frozen)

    def _guided(self, guide: Encoder, space: str) -> Store:
        """The guide's vectors of a space: read from its folder, or made, each process its share."""
        ids, texts = self._things(space, None), self._texts(space, None)

        def make() -> Store:
            progress = f"guide, {space}" if process_rank() == 0 else None
            share = guide.embed(texts[process_rank() :: process_count()], space, self.eval_batch_size, progress)
            return self._joined(space, share, guide, 0, ids)

        if self.guide_folder is None:
            return make()
        store, seconds = kept_store(Path(self.guide_folder), guide.fingerprint(space), ids, texts, space, make)
        self.guide_seconds_saved += seconds
        return store

    def _check_vectors(self) -> None:
        """Encode two texts of each space that is trained: broken weights show here, not after an epoch of NaN."""
        for space in sorted({"query", "document"} - set(self.frozen)):
            _, texts = self.data.everything(space)
            if not bool(torch.isfinite(self.encoder.embed(texts[:2], space)).all()):
                raise ValueError(
                    f"the encoder's vectors of space '{space}' are not finite (NaN or infinite) before training: its "
                    "weights are broken. Load another checkpoint, or train in a wider precision."
                )

    def embed_share(self, space: str, encoder: nn.Module | None = None, ids: Tensor | None = None) -> Tensor:
        if space in self.frozen:
            return torch.empty(0)
        texts = self._texts(space, ids)
        progress = f"encode, {space}" if process_rank() == 0 and encoder is None else None
        return (encoder or self.encoder).embed(  # type: ignore[operator]
            texts[process_rank() :: process_count()], space, self.eval_batch_size, progress
        )

    def store_of(self, space: str, share: Tensor, version: int, ids: Tensor | None = None) -> Store:
        if space in self.frozen:
            return self.frozen[space]
        return self._joined(space, share, self.encoder, version, self._things(space, ids))

    def _texts(self, space: str, ids: Tensor | None) -> Sequence[str]:
        data = self.data
        return data.everything(space)[1] if ids is None else data.text_of(ids, space)

    def _joined(self, space: str, share: Tensor, encoder: Encoder, version: int, ids: Tensor) -> Store:
        """The shares of all processes, every W-th thing each, as one store."""
        vectors = in_order(share, len(ids), self.device)
        if self.similarity == "cosine":
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return Store(vectors, ids, space, key=encoder.fingerprint(space), version=version)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str) -> None:
        """Write the encoder as a folder that ``SentenceTransformer(folder)`` loads."""
        self.encoder.save_pretrained(folder)

    def _collect(self, batch: Batch, split: str) -> dict[str, Tensor]:
        vectors = self.encoder(batch.inputs["query"], "query").float()
        return {"ids": batch.items["query"]._need("ids"), "vectors": vectors}

    def _collected(self, split: str) -> tuple[Tensor, Tensor]:
        """Ids (Q,) and vectors (Q, d), on the CPU, of the queries of a split that all processes have encoded."""
        ids, _ = self.data.queries(split)
        queries = self._vectors_of_all(split, ids, self.encoder.dim)
        if self.similarity == "cosine":
            queries = torch.nn.functional.normalize(queries, dim=1)
        return ids, queries

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._corpus = None

    def _corpus_now(self) -> Store:
        """The encoded corpus; dev and test share it where nothing was trained or loaded between them."""
        if self._corpus is not None:
            data, corpus = self._corpus
            if data is self.data and corpus.key == self.encoder.fingerprint("document"):
                return corpus
        corpus = self.embed("document")
        self._corpus = self.data, corpus
        return corpus

    def _evaluate(self, split: str, prefix: str) -> None:
        """Rank the whole corpus for every query of the split, and log the usual measures; alike on every process."""
        data = self.data
        corpus = self._corpus_now()
        ids, queries = self._collected(split)
        names = data.names("query")
        measures = evaluate_retrieval(
            queries,
            [names[int(i)] for i in ids],
            corpus,
            data.names("document"),
            data.qrels(split),
            self.device,
            self.rp_cutoffs,
        )
        self.log_dict({f"{prefix}/{name}": value for name, value in measures.means.items()}, batch_size=len(ids))
        self.measures = measures


def _one_each(items: Items) -> Items:
    """Shared items (B, ...) as one positive per anchor: embeddings (B, 1, d), ids (B, 1)."""
    wide = {name: part[:, None] for name, part in items.tensors().items() if name not in ("labels", "norms", "rows")}
    return replace(items, labels=None, norms=None, rows=None, **wide)  # type: ignore[arg-type]


def _turned(known: Ragged, queries: Items, documents: Items) -> Ragged:
    """For each of B documents, the queries of the batch of all processes that know it as a positive.

    ``known`` lists documents by query (G); here the documents are the anchors.
    """
    assert queries.ids is not None
    assert documents.ids is not None
    listed = among(documents.ids, known)  # (G, B): query i knows document j
    query, document = listed.nonzero(as_tuple=True)
    return Ragged.from_pairs(document, queries.ids[query], len(documents))


def check_frozen(store: Store, side: str, ids: Tensor, names: Sequence[str]) -> None:
    """Compare a frozen store with the data set that it is to serve.

    Args:
        side: what it is called in messages.
        ids: (n,) things that it has to hold.
        names: the data set's; position = id.

    Raises:
        ValueError: things that have no vector, or names that say that the store was made of another data set.
    """
    try:
        rows = store.positions(ids)
    except KeyError as error:
        raise ValueError(f"frozen '{side}': {error.args[0]} Encode this data set with `hardneg predict`.") from error
    if store.names is None:
        return
    for number, row in zip(ids.tolist(), rows.tolist(), strict=True):
        if store.names[row] != names[number]:
            raise ValueError(
                f"frozen '{side}': id {number} is '{store.names[row]}' in the store and '{names[number]}' in this "
                "data set. The store was made of another one; encode this one with `hardneg predict`."
            )
