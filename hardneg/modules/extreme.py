"""Extreme classification: labels with texts, an encoder for both sides, one classifier per label, and both together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from datamodules.batch import Batch
from datamodules.judgements import Judgements
from hardneg.encoders.base import Encoder
from hardneg.losses import NGAMEClassifierHinge, NGAMEHinge, PoolLoss
from hardneg.metrics.extreme import extreme_measures, inverse_propensities
from hardneg.metrics.retrieval import RetrievalMeasures
from hardneg.modules.base import check_chain
from hardneg.modules.retrieval import RetrievalModule
from miners.draws import generator_for
from miners.index import TorchIndex
from miners.pool import NOBODY, Block, Items, NegativePool, StepContext, among
from miners.ragged import Ragged
from miners.store import Store

SCORED_QUERIES = 1024  # queries whose candidates' vectors, (queries, candidates, d), are in memory at one time
TREE_DEPTH = 7  # as published


class ExtremeModule(RetrievalModule):
    """Rank all labels for a query, in three stages; the first two are a fit each.

    1. The encoder of queries and labels is trained as in `RetrievalModule`; negatives are hard because of who meets
       in a batch (`miners.NGAME`).
    2. With ``classifiers``, the encoder stays as it is, and each label gets a vector of its own. It starts as the
       label's embedding and is trained against every label of the batch, by the same batch miner. What is held is
       3 x labels x dims numbers (a vector and Adam's two moments of each); a step touches the rows of its labels only.
    3. What both stages found is fused: a decision tree on a label's two scores and its inverse propensity, fitted on
       training queries, says how likely it is; the fused score is ``beta x (likelihood + encoder) + classifier``.

    Measures are P@k, nDCG@k, PSP@k, PSnDCG@k for k = 1, 3, 5. In stage 2, plain names are the fused ones, and
    "P@1 encoder" and "P@1 classifier" say what each does alone.

    Args:
        encoder: queries and labels share it; in stage 2 the one that stage 1 saved.
        loss: None = `NGAMEHinge` in stage 1, `NGAMEClassifierHinge` in stage 2.
        classifiers: train stage 2.
        dropout: of the query's embedding in stage 2, in [0, 1).
        propensity: a and b of the propensity model: [0.6, 2.6] for Amazon's data, [0.5, 0.4] for Wikipedia's.
        depth: labels of each score that are looked at in evaluation.
        beta: weight of likelihood and encoder in the fused score.
        fusion_rows: training queries that the tree is fitted on, at most.
        common: miners, directions, similarity, guide, allow_same_guide, learning_rate, weight_decay, warmup_share,
            schedule, eval_batch_size, seed, chunk_size, momentum, frozen; see `RetrievalModule`.

    Raises:
        ValueError: numbers out of range, or options of stage 1 in stage 2.

    Source:
        NGAME, arXiv 2207.04452, sections 4 and 5, and its code's `ScoreFusion`. Differs: both scores are exact, of the
        union of both lists, where the code takes 0 for a score beyond its approximate list; training pairs are filtered
        by the training split's filter, not by the test split's.
    """

    begun: Tensor  # () bool

    def __init__(
        self,
        encoder: Encoder | None = None,
        loss: PoolLoss | None = None,
        classifiers: bool = False,
        dropout: float = 0.5,
        propensity: tuple[float, float] = (0.55, 1.5),
        depth: int = 100,
        beta: float = 1.0,
        fusion_rows: int = 75_000,
        **common: Any,
    ) -> None:
        super().__init__(encoder, loss or (NGAMEClassifierHinge() if classifiers else NGAMEHinge()), **common)
        if not 0 <= dropout < 1:
            raise ValueError(f"ExtremeModule(dropout={dropout}): a share, so 0 <= dropout < 1.")
        if depth < 5 or fusion_rows < 1:
            raise ValueError(f"ExtremeModule(depth={depth}, fusion_rows={fusion_rows}): at least 5 and at least 1.")
        self.with_classifiers = classifiers
        self.classifiers: nn.Embedding | None = None  # (L, d), made when the number of labels is known
        self.dropout = dropout
        self.propensity = propensity
        self.depth = depth
        self.beta = beta
        self.fusion_rows = fusion_rows
        self._queries_of_training: Store | None = None
        self._queries_of_fusion: Store | None = None
        if classifiers:
            self._check_stage_2()

    def _check_stage_2(self) -> None:
        set_anyway = {"chunk_size": self.chunk_size, "momentum": self.momentum, "guide": self.guide}
        wrong = [name for name, value in set_anyway.items() if value is not None] + ["frozen"] * bool(self.frozen)
        if wrong or self.directions != ("query_to_document",):
            raise ValueError(
                f"ExtremeModule(classifiers=True) encodes nothing while it trains, so that it has no use for "
                f"{', '.join(wrong) or 'other directions'}. Set classifiers to false, or leave that out."
            )
        self.provides = frozenset({"embeddings", "sides"})
        check_chain(self._chain, self.loss, self.provides)
        self.encoder.requires_grad_(False)
        self.register_buffer("begun", torch.tensor(False))  # a checkpoint's classifiers are no label embeddings

    # ---- training --------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.with_classifiers:
            shape = len(self.data.corpus_texts), self.encoder.dim
            if self.classifiers is None or tuple(self.classifiers.weight.shape) != shape:
                self.classifiers = nn.Embedding.from_pretrained(torch.zeros(shape), freeze=False, sparse=True)
                self.begun.fill_(False)

    def on_fit_start(self) -> None:
        if self.classifiers is None:
            super().on_fit_start()
            return
        self._queries_of_training = self.embed("query")
        self._begin()

    def _begin(self) -> None:
        """Let classifiers that nothing has trained be the embeddings of their labels."""
        if self.classifiers is not None and not bool(self.begun):
            labels = self._corpus_now()
            with torch.no_grad():
                self.classifiers.weight.copy_(labels.rows(labels.ids))
            self.begun.fill_(True)

    def embed(self, space: str, ids: Tensor | None = None) -> Store:
        if space == "query" and ids is None and self._queries_of_training is not None:
            return self._queries_of_training  # the encoder stays as it is
        return super().embed(space, ids)

    def encode(self, batch: Batch) -> dict[str, Items]:
        if self._queries_of_training is None:
            return super().encode(batch)
        queries = batch.items["query"]
        vectors = self._queries_of_training.rows(queries._need("ids")).to(self.device, self._vector_type())
        return {"query": replace(queries, embeddings=F.dropout(vectors, self.dropout, self.training))}

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        if self.classifiers is None:
            return super().pools(sides, batch, context)
        own = torch.arange(len(batch), device=batch.rows.device)[context.own]
        known = batch.known.select(own)
        ids = batch.known.values.unique()  # (U,) every label of the batch, of all processes
        content = self.data.corpus_texts.content[ids.cpu()].to(ids.device)
        classes = Items(self.classifiers(ids), ids, content, space="document")
        return [
            NegativePool(
                anchors=sides["query"].take(context.own),
                positives=Block(classes, "classes", usable=among(ids, known)),
                temperature=self.loss.temperature,
                similarity=self.similarity,
                direction="query_to_document",
                sides={"anchors": sides["query"], "classes": classes},
                known=known,
                context=context,
            )
        ]

    def configure_optimizers(self) -> Any:
        usual = super().configure_optimizers()
        if self.classifiers is None:
            return usual
        (factor,) = usual["lr_scheduler"]["scheduler"].lr_lambdas[:1]
        optimizer = torch.optim.SparseAdam(self.classifiers.parameters(), lr=self.learning_rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.classifiers is None:  # else the encoded labels are as good as ever
            super().on_train_batch_start(batch, batch_idx)

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def _evaluate(self, split: str, prefix: str) -> None:
        """Rank the labels for every query of the split, and log the repository's measures; alike on every process."""
        data = self.data
        ids, queries = self._collected(split)
        self._begin()
        labels = self._corpus_now()
        right, excluded = (_lists(pairs, ids) for pairs in (data.positives(split), data.excluded(split)))
        training = data.positives(data.train_split)
        counts = torch.bincount(training.documents, minlength=len(labels))
        inverse = inverse_propensities(counts, len(training.queries.unique()), *self.propensity)
        found = {"": self._best(queries, labels, excluded)}
        if self.classifiers is not None:
            found[" encoder"] = found[""]
            found[" classifier"] = self._best(queries, self._classifier_store(), excluded)
            found[""] = self._fused(queries, labels, inverse, excluded)
        names = [data.names("query")[number] for number in ids.tolist()]
        by_query = {
            f"{measure}{whose}": dict(zip(names, values.tolist(), strict=True))
            for whose, (_, ranking) in found.items()
            for measure, values in extreme_measures(ranking, right, inverse).items()
        }
        means = {name: sum(of.values()) / len(of) for name, of in by_query.items()}
        self.log_dict({f"{prefix}/{name}": value for name, value in means.items()}, batch_size=len(ids))
        self.measures = RetrievalMeasures(means, by_query, *found[""])

    def _classifier_store(self) -> Store:
        assert self.classifiers is not None
        vectors = self.classifiers.weight.detach().float().cpu()
        return Store(F.normalize(vectors, dim=1) if self.similarity == "cosine" else vectors)

    def _search(self, queries: Tensor, labels: Store) -> tuple[Tensor, Tensor]:
        scores, ids = TorchIndex(labels, device=str(self.device)).search(queries, min(self.depth, len(labels)))
        return scores.cpu(), ids.cpu()

    def _best(self, queries: Tensor, labels: Store, excluded: Ragged) -> tuple[Tensor, Tensor]:
        """(Q, depth) scores and labels, best first; excluded ones at the end, as -1."""
        scores, ids = self._search(queries, labels)
        out = among(ids, excluded)
        order = out.byte().argsort(dim=1, stable=True)
        return scores.gather(1, order), ids.where(~out, NOBODY).gather(1, order)

    def _candidates(self, queries: Tensor, labels: Store, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Labels that either score finds: ids (Q, C), -1 for a label found twice; both scores and the inverse
        propensity of each (Q, C)."""
        stores = (self._classifier_store(), labels)
        ids = torch.cat([self._search(queries, store)[1] for store in stores], dim=1).sort(dim=1).values
        ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = NOBODY
        at = ids.clamp_min(0)
        scores = [
            torch.cat(
                [
                    torch.einsum("qd,qcd->qc", some, store.vectors[of])
                    for some, of in zip(queries.split(SCORED_QUERIES), at.split(SCORED_QUERIES), strict=True)
                ]
            )
            for store in stores
        ]
        return ids, scores[0], scores[1], inverse[at].float()

    def _fused(self, queries: Tensor, labels: Store, inverse: Tensor, excluded: Ragged) -> tuple[Tensor, Tensor]:
        """(Q, C) fused scores and labels, best first; excluded ones and empty slots at the end, as -1."""
        from sklearn.tree import DecisionTreeClassifier

        training = self._training_queries()
        ids, *features = self._candidates(training.rows(training.ids), labels, inverse)
        judged = self.data.positives(self.data.train_split)
        right = among(ids, _lists(judged, training.ids))
        there = (ids >= 0) & ~among(ids, _lists(self.data.excluded(self.data.train_split), training.ids))
        tree = DecisionTreeClassifier(max_depth=TREE_DEPTH, random_state=0)
        tree.fit(_columns(features, there), right[there].numpy())

        ids, *features = self._candidates(queries, labels, inverse)
        there = (ids >= 0) & ~among(ids, excluded)
        likely = torch.zeros(ids.shape)
        if len(tree.classes_) == 2:  # else the training lists hold no right label, or nothing else
            likely[there] = torch.from_numpy(tree.predict_proba(_columns(features, there))[:, 1]).float()
        classifier, encoder = features[:2]
        fused = (self.beta * (likely + encoder) + classifier).where(there, torch.finfo(torch.float32).min)
        scores, order = fused.sort(dim=1, descending=True, stable=True)
        return scores, ids.where(there, NOBODY).gather(1, order)

    def _training_queries(self) -> Store:
        """The training queries that the tree is fitted on, encoded once: the encoder stays as it is."""
        if self._queries_of_fusion is None:
            ids = self.data.positives(self.data.train_split).queries.unique()
            chosen = torch.randperm(len(ids), generator=generator_for(self.seed))[: self.fusion_rows]
            self._queries_of_fusion = self.embed("query", ids[chosen.sort().values])
        return self._queries_of_fusion


def _lists(pairs: Judgements, queries: Tensor) -> Ragged:
    """The documents of each of ``queries`` (Q,), ascending ids."""
    at = torch.searchsorted(queries, pairs.queries).clamp(max=len(queries) - 1)
    asked = queries[at] == pairs.queries
    return Ragged.from_pairs(at[asked], pairs.documents[asked], len(queries))


def _columns(features: Sequence[Tensor], there: Tensor) -> np.ndarray:
    """(V, features) of the candidates that are there."""
    return torch.stack([feature[there] for feature in features], dim=1).numpy()
