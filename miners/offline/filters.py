"""Rules that say which retrieved documents may not be negatives. They stand in a list and act in its order.

Every rule keeps the sense of its words for negative scores: "5 % below the positive" means ``positive - 0.05 *
|positive|``. Which positive counts, where a query has several, is said by ``positive``: the lowest is the safest.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from miners.index.torch_index import pair_scores
from miners.offline.candidates import Candidates, Positive, reduce_lists
from miners.store import Store, Vectors

DUPLICATE_BYTES = 8 << 20  # vectors compared at once by NearDuplicate


class Filter(ABC):
    """One rule.

    Attributes:
        relaxes: which of the dropped come back first when a caller relaxes the rules: "lowest" or "highest" score;
            None: never, because what it drops is no negative at all.
    """

    relaxes: ClassVar[Literal["lowest", "highest"] | None] = None

    @property
    def name(self) -> str:
        """The rule's name in reports: the class in snake case."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def __call__(self, candidates: Candidates) -> None:
        """Drop what the rule forbids."""
        candidates.drop(self.forbids(candidates), self.name)

    @abstractmethod
    def forbids(self, candidates: Candidates) -> Tensor:
        """Say (Q, K) which candidates may not be negatives; those dropped already do not matter."""

    def settings(self) -> dict[str, Any]:
        """Constructor arguments, for the table's metadata; what is no plain value is named by the subclass."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}


class RankWindow(Filter):
    """Keep a window of ranks.

    Counted on the retrieved list, known positives included, or on what the rules before it left, as ``mine(ranks=...)``
    says. ``RankWindow(31, 100)`` is "skip the first 30, use down to rank 100".

    Args:
        first: first rank that is kept, 1 = best.
        last: last rank that is kept; None = no end.
    """

    def __init__(self, first: int = 1, last: int | None = None) -> None:
        if first < 1 or (last is not None and last < first):
            raise ValueError(f"RankWindow(first={first}, last={last}): ranks start at 1 and last >= first.")
        self.first, self.last = first, last

    def forbids(self, candidates: Candidates) -> Tensor:
        ranks = candidates.usable.cumsum(1) if candidates.count_survivors else candidates.ranks
        outside = ranks < self.first
        return outside if self.last is None else outside | (ranks > self.last)


class MaxScore(Filter):
    """Drop candidates that score above a value.

    Args:
        score: highest score that is kept, in the units of the scores (cosine: [-1, 1]).
    """

    relaxes = "lowest"

    def __init__(self, score: float) -> None:
        self.score = score

    def forbids(self, candidates: Candidates) -> Tensor:
        return candidates.scores > self.score


class MinScore(Filter):
    """Drop candidates that score below a value.

    Args:
        score: lowest score that is kept, in the units of the scores (cosine: [-1, 1]).
    """

    relaxes = "highest"

    def __init__(self, score: float) -> None:
        self.score = score

    def forbids(self, candidates: Candidates) -> Tensor:
        return candidates.scores < self.score


class AbsoluteMargin(Filter):
    """Keep what scores at least ``margin`` below the positive.

    Args:
        margin: in score units; 0 keeps what does not beat the positive.
        positive: which of several positives counts.

    Source:
        NV-Retriever, arXiv 2407.15831, TopK-MarginPos.
    """

    relaxes = "lowest"

    def __init__(self, margin: float, positive: Positive = "lowest") -> None:
        self.margin, self.positive = margin, checked(positive, "AbsoluteMargin")

    def forbids(self, candidates: Candidates) -> Tensor:
        return candidates.scores + self.margin > candidates.positive(self.positive)[:, None]


class RelativeMargin(Filter):
    """Keep what scores at least a share of the positive's score below it: ``s <= p - margin * |p|``.

    Args:
        margin: share, in [0, 1); 0.05 is NV-Retriever's TopK-PercPos 95 %.
        positive: which of several positives counts.

    Source:
        NV-Retriever, arXiv 2407.15831, TopK-PercPos. Differs: ``|p|``, so that negative scores keep their sense.
    """

    relaxes = "lowest"

    def __init__(self, margin: float = 0.05, positive: Positive = "lowest") -> None:
        if not 0 <= margin < 1:
            raise ValueError(f"RelativeMargin(margin={margin}): a share, so 0 <= margin < 1.")
        self.margin, self.positive = margin, checked(positive, "RelativeMargin")

    def forbids(self, candidates: Candidates) -> Tensor:
        positive = candidates.positive(self.positive)
        return candidates.scores > (positive - positive.abs() * self.margin)[:, None]


class Guide(Filter):
    """Drop what a guide model, another and usually better encoder, scores too close to its own positive's score.

    Args:
        queries: (Q, g) guide vectors of the queries, row by row as mined, or a store with the same ids.
        corpus: (M, g) guide vectors of the documents.
        absolute_margin: keep at least this much below, in the guide's score units.
        relative_margin: keep at least this share below, in [0, 1).
        positive: which of several positives counts.

    Source:
        GISTEmbed, arXiv 2402.16829; margins as in NV-Retriever.
    """

    relaxes = "lowest"

    def __init__(
        self,
        queries: Vectors | Store,
        corpus: Vectors | Store,
        absolute_margin: float = 0.0,
        relative_margin: float = 0.0,
        positive: Positive = "lowest",
    ) -> None:
        if not 0 <= relative_margin < 1:
            raise ValueError(f"Guide(relative_margin={relative_margin}): a share, so 0 <= relative_margin < 1.")
        self.queries = queries if isinstance(queries, Store) else Store(queries, space="query")
        self.corpus = corpus if isinstance(corpus, Store) else Store(corpus)
        if self.queries.dim != self.corpus.dim:
            raise ValueError(f"Guide: queries have {self.queries.dim} dims, the corpus {self.corpus.dim}.")
        self.absolute_margin, self.relative_margin = absolute_margin, relative_margin
        self.positive = checked(positive, "Guide")

    def forbids(self, candidates: Candidates) -> Tensor:
        self._check_rows(candidates)
        queries = self.queries.vectors[candidates.query_rows]
        candidates.guide_scores = pair_scores(queries, self.corpus.vectors, candidates.rows).cpu()
        lists = candidates.known
        positives = pair_scores(queries[lists.row_of_value], self.corpus.vectors, lists.values[:, None]).cpu()[:, 0]
        positive = reduce_lists(lists, positives, self.positive)
        floor = positive - positive.abs() * self.relative_margin - self.absolute_margin
        return candidates.guide_scores > floor[:, None]

    def _check_rows(self, candidates: Candidates) -> None:
        if len(self.corpus) != len(candidates.corpus):
            raise ValueError(
                f"Guide has vectors of {len(self.corpus)} documents, the corpus {len(candidates.corpus)}; "
                "both must list the same documents in the same order."
            )


class SameContent(Filter):
    """Drop documents that are a known positive under another id.

    Args:
        content: (M,) int64 hash of each document's normalised text, pixels or recording; -1 = unknown.
    """

    def __init__(self, content: Tensor | np.ndarray | Sequence[int]) -> None:
        self.content = torch.as_tensor(content, dtype=torch.int64)

    def forbids(self, candidates: Candidates) -> Tensor:
        if len(self.content) != len(candidates.corpus):
            raise ValueError(f"SameContent got {len(self.content)} hashes for {len(candidates.corpus)} documents.")
        positive = self.content[candidates.known.padded(0)]  # (Q, P)
        width = torch.arange(positive.shape[1])
        absent = (width >= candidates.known.lengths[:, None]) | (positive == -1)
        mine = self.content[candidates.rows]  # (Q, K)
        same = torch.zeros_like(mine, dtype=torch.bool)
        for column in range(positive.shape[1]):  # over positives, few, so that no (Q, K, P) block is made
            same |= (mine == positive[:, column : column + 1]) & ~absent[:, column : column + 1]
        return same


class NearDuplicate(Filter):
    """Drop documents whose vector almost equals that of a known positive.

    Args:
        threshold: cosine between document and positive from which they count as one, in (-1, 1].
    """

    def __init__(self, threshold: float = 0.98) -> None:
        if not -1 < threshold <= 1:
            raise ValueError(f"NearDuplicate(threshold={threshold}): a cosine, so -1 < threshold <= 1.")
        self.threshold = threshold

    def forbids(self, candidates: Candidates) -> Tensor:
        corpus, known = candidates.corpus, candidates.known
        query, column = candidates.usable.nonzero(as_tuple=True)  # only what is still in question
        near = torch.zeros_like(candidates.usable)
        # pairs (candidate, positive of the same query), a chunk of candidates at a time
        step = max(1, DUPLICATE_BYTES // (8 * corpus.dim))
        for start in range(0, len(query), step):
            here, place = query[start : start + step], column[start : start + step]
            pairs = known.select(here)
            document = corpus.vectors[candidates.rows[here, place]].float()  # (n, d)
            document = torch.nn.functional.normalize(document, dim=1)
            for first in range(0, len(pairs.values), step):
                owner = pairs.row_of_value[first : first + step]
                positive = corpus.vectors[pairs.values[first : first + step]].float()
                cosine = torch.linalg.vecdot(document[owner], torch.nn.functional.normalize(positive, dim=1))
                close = owner[cosine >= self.threshold]
                near[here[close], place[close]] = True
        return near


class Rescore(Filter):
    """Replace scores by those of any model that scores pairs, such as a cross-encoder; drops nothing itself.

    Rules after it and the sampling read the new scores, and "top" follows the new order. The table keeps the retrieval
    score beside the new one.

    Args:
        score: with ``queries`` and ``corpus``: takes a list of (query, document) pairs, returns one score each, as
            `CrossEncoder.predict` does. Without: takes two (n,) int64 tensors, rows of the queries and of the corpus.
        queries: the queries themselves, row by row as mined.
        corpus: the documents themselves.
        batch_size: pairs per call.
        name: of the model, for the metadata.
    """

    def __init__(
        self,
        score: Callable[..., Any],
        queries: Sequence[Any] | None = None,
        corpus: Sequence[Any] | None = None,
        batch_size: int = 1024,
        name: str = "",
    ) -> None:
        if (queries is None) != (corpus is None):
            raise ValueError("Rescore wants queries and corpus together, or neither.")
        self.score, self.queries, self.corpus, self.batch_size, self.model = score, queries, corpus, batch_size, name

    def __call__(self, candidates: Candidates) -> None:
        usable = candidates.usable
        query, column = usable.nonzero(as_tuple=True)
        rescored = candidates.products.new_full(usable.shape, float("-inf"))
        rescored[query, column] = self._scores(candidates.query_rows[query], candidates.rows[query, column])
        candidates.rescored = rescored
        known = candidates.known
        candidates.positive_rescored = self._scores(candidates.query_rows[known.row_of_value], known.values)
        candidates.reorder(rescored.sort(dim=1, descending=True, stable=True).indices)

    def forbids(self, candidates: Candidates) -> Tensor:
        return torch.zeros_like(candidates.usable)

    def settings(self) -> dict[str, Any]:
        label = (
            self.model or f"{self.score.__module__}.{getattr(self.score, '__qualname__', type(self.score).__name__)}"
        )
        return {"model": label}

    def _scores(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Score n pairs, in batches: (n,) float32."""
        parts = [torch.empty(0)]
        for query, document in zip(queries.split(self.batch_size), documents.split(self.batch_size), strict=True):
            if self.queries is None or self.corpus is None:
                answer = self.score(query, document)
            else:
                pairs = zip(query.tolist(), document.tolist(), strict=True)
                answer = self.score([(self.queries[one], self.corpus[other]) for one, other in pairs])
            answer = torch.as_tensor(np.asarray(answer) if not isinstance(answer, Tensor) else answer)
            if answer.shape != query.shape:
                raise ValueError(
                    f"Rescore: {len(query)} pairs in, scores of shape {tuple(answer.shape)} out; one each."
                )
            if not torch.isfinite(answer).all():
                raise ValueError("Rescore: the model gave NaN or infinity as a score.")
            parts.append(answer.detach().float().cpu())
        return torch.cat(parts)


def checked(positive: str, who: str) -> Any:
    """Return the name of a way to choose among positives, or refuse it."""
    if positive not in get_args(Positive):
        raise ValueError(f"{who}(positive={positive!r}): 'lowest', 'highest' or 'mean'.")
    return positive
