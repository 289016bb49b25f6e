"""Where candidates come from: a dense index, a lexical one, or several, each with a quota."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miners.index import Index, TorchIndex, build_index
from miners.store import Store


class Source(ABC):
    """Proposes documents for queries.

    Args:
        quota: how many of each query's negatives come from here; None = all of them.
        name: what the table's column ``source`` says.
    """

    def __init__(self, quota: int | None, name: str) -> None:
        self.quota, self.name = quota, name

    @abstractmethod
    def propose(self, query_rows: Tensor, query_vectors: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        """Retrieve k documents per query.

        Returns:
            rows of the corpus (Q, k), best first, -1 where nothing more was found, and their scores (Q, k) if these are
            exact row products, else None.
        """

    @abstractmethod
    def attach(self, corpus: Store) -> None:
        """Take the corpus; called once, before anything is proposed."""

    def settings(self) -> dict[str, Any]:
        """What shaped the proposals, for the table's metadata."""
        return {"quota": self.quota, "name": self.name}

    def report(self) -> str | None:
        """What is worth telling of the search when all is found; None for nothing."""
        return None


class Dense(Source):
    """Propose by inner product.

    Args:
        index: specification for `build_index`, or a ready index over the corpus.
        quota: how many of each query's negatives come from here; None = all of them.
        name: what the column ``source`` says.
        device: where an index is built.
    """

    def __init__(
        self, index: str | Index = "auto", quota: int | None = None, name: str = "dense", device: str = "auto"
    ) -> None:
        super().__init__(quota, name)
        self.index, self.device = index, device

    def attach(self, corpus: Store) -> None:
        self._corpus = corpus
        self._index = build_index(self.index, corpus, self.device) if isinstance(self.index, str) else self.index
        if self._index.store is not corpus and not torch.equal(self._index.store.ids, corpus.ids):
            raise ValueError("The index was built over other documents than the corpus: their ids differ.")

    def propose(self, query_rows: Tensor, query_vectors: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        scores, ids = self._index.search(query_vectors, k)
        missing = ids < 0
        rows = self._corpus.positions(ids.masked_fill(missing, int(self._corpus.ids[0]))).masked_fill_(missing, -1)
        return rows, scores if self._index.exact_scores else None

    def settings(self) -> dict[str, Any]:
        index = self.index if isinstance(self.index, str) else type(self.index).__name__
        factory = getattr(self.index, "factory", None)
        parameters = getattr(self.index, "parameters", None)
        return (
            super().settings() | {"index": index} | ({"factory": factory, "parameters": parameters} if factory else {})
        )

    def report(self) -> str | None:
        index = self._index
        return certified(index.uncertified, index.searched) if isinstance(index, TorchIndex) else None


def certified(uncertified: int, searched: int) -> str:
    """How often screening was not enough, in a sentence."""
    return f"{uncertified:,} of {searched:,} searches were done again in float32 ({uncertified / max(searched, 1):.2%})"


class Lexical(Source):
    """Propose by BM25 over the texts; needs the `bm25s` package (``pip install bm25s``).

    Args:
        queries: query texts, row by row as mined.
        corpus: document texts.
        quota: how many of each query's negatives come from here; None = all of them.
        name: what the column ``source`` says.
        k1: term-frequency saturation; 1.5 is the library's default.
        b: length normalisation in [0, 1]; 0.75 is the library's default.
        stopwords: language of the stop words ("en"), or None to keep all words.
    """

    def __init__(
        self,
        queries: Sequence[str],
        corpus: Sequence[str],
        quota: int | None = None,
        name: str = "bm25",
        k1: float = 1.5,
        b: float = 0.75,
        stopwords: str | None = "en",
    ) -> None:
        super().__init__(quota, name)
        try:
            import bm25s
        except ImportError as error:
            raise ImportError("Lexical needs bm25s: run `pip install bm25s`, or install 'hardneg[train]'.") from error
        self._bm25s = bm25s
        self._queries, self._texts = queries, corpus
        self.k1, self.b, self.stopwords = k1, b, stopwords

    def attach(self, corpus: Store) -> None:
        if len(self._texts) != len(corpus):
            raise ValueError(f"Lexical got {len(self._texts)} texts for {len(corpus)} documents.")
        self._retriever = self._bm25s.BM25(k1=self.k1, b=self.b)
        self._retriever.index(self._tokens(self._texts), show_progress=False)

    def propose(self, query_rows: Tensor, query_vectors: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        texts = [self._queries[row] for row in query_rows.tolist()]
        rows, scores = self._retriever.retrieve(self._tokens(texts), k=k, show_progress=False)
        # a document that shares no word with the query scores 0: the list is filled up with these
        return torch.from_numpy(rows).long().masked_fill(torch.from_numpy(scores) <= 0, -1), None

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"bm25s": {"k1": self.k1, "b": self.b, "stopwords": self.stopwords}}

    def _tokens(self, texts: Sequence[str]) -> Any:
        return self._bm25s.tokenize(list(texts), stopwords=self.stopwords or [], show_progress=False, return_ids=False)
