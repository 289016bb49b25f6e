"""Re-ranking: a model reads a query and a document together, and orders a list of candidates."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from hardneg.encoders.cross import CrossEncoder, PairScorer
from hardneg.losses import PairwiseLogistic, PoolLoss
from hardneg.metrics.retrieval import DEPTH, RetrievalMeasures, measure_ranking
from hardneg.modules.evaluated import EvaluatedModule
from miners.base import PoolMiner
from miners.pool import NOBODY, Block, Items, NegativePool, StepContext
from miners.ragged import Ragged
from miners.static_negatives import read_lists
from miners.store import Store

log = logging.getLogger(__name__)

NO_VECTORS = (
    "RerankingModule scores pairs and has no vectors: refreshes, audits, sources that mine while training and `hardneg "
    "predict` want a bi-encoder (RetrievalModule). Mine with one beforehand, and draw with miners.StaticNegatives."
)


class RerankingModule(EvaluatedModule):
    """Train a cross-encoder to put a query's positives before the negatives that sources draw for it.

    Negatives are the row's own drawn ones (`StaticNegatives`, from a table of ``hardneg mine``): other rows' documents
    would each be one more pass through the model. With ``selection``, a second model scores the same pairs, as
    `miners.CET` with `SelectionOfFamily` wants it, and is thrown away after training.

    Validation and test order candidate lists: all documents that the split judges for a query, and those that a mined
    table lists for it. Tables of ``hardneg mine`` leave positives out and judgements bring them back, so that the
    measures tell how well lists are ordered, not how many positives the retriever found.

    Args:
        encoder: the ranker; None = `CrossEncoder()`.
        selection: the selection model: a `CrossEncoder` with another seed, with fewer layers, or `WordOverlap`.
        loss: None = `PairwiseLogistic`.
        miners, learning_rate, weight_decay, warmup_share, schedule, seed: as in `ContrastiveModule`.
        candidates: by split, a table as ``hardneg mine`` writes it: {"dev": "dev.parquet"}; other splits re-rank what
            they judge.
        eval_batch_size: pairs that are scored at a time in evaluation.

    Raises:
        ValueError: a selection model that no miner asks for.

    Source:
        CET, arXiv 2209.05072, and its code: both models from one checkpoint with fresh heads, weights from passes
        without dropout of the models as they were before the step, each model's gradient clipped by itself.
    """

    directions = ("query_to_document",)

    def __init__(
        self,
        encoder: CrossEncoder | None = None,
        selection: PairScorer | None = None,
        loss: PoolLoss | None = None,
        miners: Sequence[PoolMiner] | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_share: float = 0.1,
        schedule: Literal["linear", "constant"] = "linear",
        eval_batch_size: int = 128,
        seed: int = 0,
        candidates: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(loss or PairwiseLogistic(), miners, learning_rate, weight_decay, warmup_share, schedule, seed)
        self.encoder = encoder or CrossEncoder()
        self.selection = selection
        self.eval_batch_size = eval_batch_size
        self.candidates = dict(candidates or {})
        self.provides = frozenset({"sides", "drawn"} | ({"selection"} if selection is not None else set()))
        if selection is not None and not any("selection" in miner.needs for miner in self._chain):
            raise ValueError(
                "RerankingModule has a selection model and no miner that asks for its scores. Add miners.CET with "
                "selection: miners.cet.SelectionOfFamily to model.init_args.miners, or leave selection out."
            )
        if selection is not None and _alike(self.encoder, selection):
            log.warning(
                "the selection model starts as a copy of the ranker, head included: harder negatives will weigh more, "
                "false ones too. Give it another seed, fewer layers, or take WordOverlap."
            )
        self.measures: RetrievalMeasures | None = None
        self._lists: dict[str, Ragged] = {}
        self.use_miners()

    # ---- training ----------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> dict[str, Items]:
        """Scores travel where vectors of other families do: one column for each model, two more for settled ones."""
        if "drawn" not in batch.items:
            raise ValueError(
                "RerankingModule trains on drawn negatives, and this data set draws none. Set data.init_args.sources, "
                "say to miners.RandomNegatives and to miners.StaticNegatives with a table that `hardneg mine` wrote."
            )
        queries, documents, drawn = (list(batch.inputs[side]) for side in ("query", "document", "drawn"))
        rows = batch.items["drawn"]._need("rows")
        asked = [queries[row] for row in rows.tolist()]
        models: list[PairScorer] = [self.encoder] if self.selection is None else [self.encoder, self.selection]
        scores = torch.stack([model([*queries, *asked], [*documents, *drawn]) for model in models], dim=1)
        positives, negatives = scores.split([len(queries), len(drawn)])  # (B, models), (N, models)
        if self.selection is not None:
            settled = torch.stack([model.settled(asked, drawn) for model in models], dim=1)
            negatives = torch.cat([negatives, settled], dim=1)  # (N, 4)
        return {
            "query": batch.items["query"],
            "document": replace(batch.items["document"], embeddings=positives),
            "drawn": replace(batch.items["drawn"], embeddings=negatives),
        }

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = context.own
        anchors, positives, drawn = sides["query"].take(own), sides["document"].take(own), sides["drawn"]
        rows = drawn._need("rows") - context.offset
        mine = ((rows >= 0) & (rows < len(anchors))).nonzero()[:, 0]
        at = Ragged.from_pairs(rows[mine], mine, len(anchors)).padded(NOBODY)  # (B, K) places on the drawn side
        there, at = at != NOBODY, at.clamp_min(0)
        names = {
            part: drawn.tensors()[part][at].where(there, NOBODY)
            for part in ("ids", "content")
            if part in drawn.tensors()
        }
        listed = Items(space=drawn.space, **names)
        own_scores, scores = positives._need("embeddings"), drawn._need("embeddings")[at]  # (B, models), (B, K, ...)

        def block(given: Tensor, origin: str = "selection") -> Block:
            return Block(listed, origin, given=given, usable=there)

        roles: dict[str, Items | Block] = {"anchors": anchors, "drawn": block(scores[:, :, 0], "mined")}
        if self.selection is not None:
            both = torch.cat([own_scores[:, 1:], scores[:, :, 1]], dim=1)  # (B, 1 + K)
            roles["selection"] = Block(Items(space=drawn.space), "selection", given=both)
            roles["settled relevance"], roles["settled selection"] = block(scores[:, :, 2]), block(scores[:, :, 3])
        first = replace(
            positives,
            embeddings=None,
            labels=None,
            rows=None,
            ids=_column(positives.ids),
            content=_column(positives.content),
        )
        return [
            NegativePool(
                anchors=anchors,
                positives=Block(first, "positive", given=own_scores[:, :1]),
                temperature=self.loss.temperature,
                similarity="dot",
                direction=self.directions[0],
                sides=roles,
                known=batch.known.select(torch.arange(len(batch), device=batch.rows.device)[own]),
                context=context,
            )
        ]

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each model by its own norm, as two optimisers would."""
        if self.selection is None or not gradient_clip_val or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        ranker = set(self.encoder.parameters())
        for part in (ranker, [weight for weight in self.parameters() if weight not in ranker]):
            nn.utils.clip_grad_norm_(part, gradient_clip_val)

    def embed_share(self, space: str, encoder: nn.Module | None = None, ids: Tensor | None = None) -> Tensor:
        raise ValueError(NO_VECTORS)

    def store_of(self, space: str, share: Tensor, version: int, ids: Tensor | None = None) -> Store:
        raise ValueError(NO_VECTORS)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Items:
        raise ValueError(NO_VECTORS)

    def save_pretrained(self, folder: str) -> None:
        """Write the ranker as a folder that ``sentence_transformers.CrossEncoder(folder)`` loads."""
        self.encoder.save_pretrained(folder)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def lists(self, split: str) -> Ragged:
        """The candidates of each query, by query id: what the split judges, and what the table lists."""
        if split not in self._lists:
            data = self.data
            judged, number = data.judgements(split), len(data.names("query"))
            queries, documents = [judged.queries], [judged.documents]
            if split in self.candidates:
                path = Path(self.candidates[split])
                if not path.exists():
                    raise FileNotFoundError(
                        f"no table of candidates at '{path}'. Make one with `hardneg mine --split`."
                    )
                listed = read_lists(path, data.names("query"), data.names("document"))
                queries, documents = [*queries, listed.row_of_value], [*documents, listed.values]
            pairs = torch.stack([torch.cat(queries), torch.cat(documents)], dim=1).unique(dim=0)
            self._lists[split] = Ragged.from_pairs(pairs[:, 0], pairs[:, 1], number)
        return self._lists[split]

    @torch.no_grad()
    def _collect(self, batch: Batch, split: str) -> dict[str, Tensor]:
        """Scores of the candidates of a batch of queries."""
        ids = batch.items["query"]._need("ids").cpu()
        lists = self.lists(split).select(ids)
        queries, documents = ids[lists.row_of_value], lists.values  # (pairs,)
        texts = self.data.text_of(queries, "query"), self.data.text_of(documents, "document")
        scores = [
            self.encoder(*(of[start : start + self.eval_batch_size] for of in texts))
            for start in range(0, len(queries), self.eval_batch_size)
        ]
        found = {"query": queries, "document": documents, "score": torch.cat(scores) if scores else torch.zeros(0)}
        return {name: part.to(self.device) for name, part in found.items()}

    def _evaluate(self, split: str, prefix: str) -> None:
        """Order every query's list by score, and log the usual measures; alike on every process."""
        data = self.data
        ids, _ = data.queries(split)
        nothing = {"query": torch.empty(0).long(), "document": torch.empty(0).long(), "score": torch.empty(0)}
        found = {name: part.cpu() for name, part in self._kept_by_all(nothing).items()}
        best_first = found["score"].argsort(descending=True, stable=True)
        row = torch.searchsorted(ids, found["query"][best_first])
        places = Ragged.from_pairs(row, best_first, len(ids)).padded(NOBODY)[:, :DEPTH]  # (Q, k)
        there, at = places != NOBODY, places.clamp_min(0)
        scores, documents = found["score"][at].where(there, 0), found["document"][at].where(there, NOBODY)
        names = data.names("query")
        measures = measure_ranking(
            scores, documents, [names[int(i)] for i in ids], data.names("document"), data.qrels(split)
        )
        self.log_dict({f"{prefix}/{name}": value for name, value in measures.means.items()}, batch_size=len(ids))
        self.measures = measures


def _column(part: Tensor | None) -> Tensor | None:
    return None if part is None else part[:, None]


def _alike(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
