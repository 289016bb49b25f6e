"""Search a corpus while it is being encoded."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from miners.index import TorchIndex
from miners.offline import Dense
from miners.offline.sources import certified
from miners.store import Store

PIECE = 16384  # documents searched together
QUERIES = 8192  # queries searched together
MOST_KEPT = 1 << 24  # results kept in memory, 12 bytes each: 200 MB; with more, the search waits for the whole corpus


class Overlap:
    """Keep each query's best documents while the chunks of a corpus come in; a thread searches what is finished.

    Exact scores do not depend on blocks, and of documents with equal scores the first comes first: the answer is the
    one that a search of the whole corpus gives, bit for bit.

    Args:
        queries: searched with.
        depth: documents kept per query.
        device: where to search.
    """

    def __init__(self, queries: Store, depth: int, device: str = "auto") -> None:
        self.queries, self.depth, self.device = queries, depth, device
        self.scores = torch.empty(len(queries), 0)  # (Q, up to depth), best first
        self.rows = torch.empty(len(queries), 0, dtype=torch.int64)  # (Q, up to depth)
        self.taken = 0  # documents
        self.uncertified = self.searched = 0  # as a `TorchIndex` counts them
        self._waiting: list[Tensor] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._running: Future[None] | None = None

    def take(self, start: int, vectors: Tensor) -> None:
        """Take the documents from row ``start`` on, in the order of the corpus."""
        assert start == self.taken
        self.taken += len(vectors)
        self._waiting.append(vectors)
        if sum(map(len, self._waiting)) >= PIECE:
            self._begin()

    def source(self, documents: int, index: str, quota: int) -> Dense | None:
        """The finished search as a source for `mine`; None if not all documents came by (they were in the cache)."""
        if self._waiting:
            self._begin()
        if self._running is not None:
            self._running.result()
        self._thread.shutdown()
        return Searched(self, index, quota) if self.taken == documents else None

    def _begin(self) -> None:
        """Search what is waiting, after the last piece: one at a time, so that only two are in memory."""
        if self._running is not None:
            self._running.result()
        documents = torch.cat(self._waiting)
        self._waiting = []
        self._running = self._thread.submit(self._search, documents, self.taken - len(documents))

    def _search(self, documents: Tensor, first: int) -> None:
        """Put the best of one piece, which begins at row ``first``, among the best so far."""
        index = TorchIndex(Store(documents, torch.arange(first, first + len(documents))), self.device)
        scores, rows = [], []
        for start in range(0, len(self.queries), QUERIES):
            here = slice(start, start + QUERIES)
            found, places = index.search(self.queries.vectors[here].float(), min(self.depth, len(documents)))
            both = torch.cat([self.scores[here], found.cpu()], dim=1)
            best, order = both.sort(dim=1, descending=True, stable=True)  # earlier pieces first among equals
            scores.append(best[:, : self.depth])
            rows.append(torch.cat([self.rows[here], places.cpu()], dim=1).gather(1, order[:, : self.depth]))
        self.scores, self.rows = torch.cat(scores), torch.cat(rows)
        self.uncertified += index.uncertified
        self.searched += index.searched


class Searched(Dense):
    """A dense source whose search is done; in a table's metadata it is the `Dense` that would have searched."""

    def __init__(self, done: Overlap, index: str, quota: int) -> None:
        super().__init__(index, quota, device=done.device)
        self._done = done

    def attach(self, corpus: Store) -> None:
        """Nothing is left to build."""

    def propose(self, query_rows: Tensor, query_vectors: Tensor, k: int) -> tuple[Tensor, Tensor | None]:
        return self._done.rows[query_rows, :k], self._done.scores[query_rows, :k]

    def report(self) -> str | None:
        return certified(self._done.uncertified, self._done.searched)
