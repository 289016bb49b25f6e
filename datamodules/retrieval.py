"""Retrieval sets in the BEIR layout."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from datamodules.beir import choose_queries, open_folder, read_corpus, read_qrels, read_queries
from datamodules.judgements import Judgements
from datamodules.text_data import TextData
from datamodules.texts import Texts


class RetrievalData(TextData):
    """Train and evaluate retrieval on a folder in the BEIR layout.

    The folder holds corpus.jsonl (`_id`, `title`, `text`), queries.jsonl (`_id`, `text`), each .gz if you like, and
    qrels/<split>.tsv (header `query-id corpus-id score`).

    Args:
        folder: path ("~" and variables such as $HARDNEG_DATA are filled in), or "sample:wordnet_senses", which ships
            with this package.
        train_split: qrels file to train on.
        val_split: qrels file of validation; null for none.
        test_split: qrels file of testing; null for none.
        title: put a document's title before its text, with a space between, as BEIR does.
        min_score: grade from which a document counts as a positive, at least 1; nDCG still sees all grades.
        max_documents: cut the corpus down to so many: all that some split judges, and a fixed random fill; null keeps
            all. Measures on a smaller corpus are higher: compare them only with each other.
        max_queries: train on so many queries, a fixed random choice of those with a positive; null takes all. What only
            the others of the split judge may then be cut by ``max_documents``. Other splits keep their queries.
        loading: batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed; see `TextData`.

    Raises:
        ValueError: min_score, max_documents or max_queries below 1.

    Example:
        >>> data = RetrievalData("sample:wordnet_senses", batch_size=16)
        >>> data.setup("fit")
        >>> len(next(iter(data.train_dataloader())).inputs["query"])
        16
    """

    def __init__(
        self,
        folder: str,
        train_split: str = "train",
        val_split: str | None = "dev",
        test_split: str | None = "test",
        title: bool = True,
        min_score: int = 1,
        max_documents: int | None = None,
        max_queries: int | None = None,
        **loading: Any,
    ) -> None:
        self.folder = folder
        super().__init__(**loading)
        if min_score < 1:
            raise ValueError(f"RetrievalData(min_score={min_score}): a grade of 0 means not relevant, so at least 1.")
        for name, value in (("max_documents", max_documents), ("max_queries", max_queries)):
            if value is not None and value < 1:
                raise ValueError(f"RetrievalData({name}={value}): wants at least 1, or null for all.")
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.title = title
        self.min_score = min_score
        self.max_documents = max_documents
        self.max_queries = max_queries
        self._only: dict[str, Collection[str]] = {}  # split -> names of its queries that count

    def read_texts(self) -> tuple[Texts, Texts]:
        folder = open_folder(self.folder)
        if (chosen := self.training_queries()) is not None:
            self._only[self.train_split] = chosen
        return read_queries(folder), read_corpus(folder, self.title, self.max_documents, self._only)

    def training_queries(self) -> Collection[str] | None:
        """Names of the queries to train on; None = all that have a positive."""
        if self.max_queries is None:
            return None
        return choose_queries(open_folder(self.folder), self.train_split, self.max_queries, self.min_score)

    def read_judgements(self, split: str) -> Judgements:
        folder = open_folder(self.folder)
        return read_qrels(folder, split, self.query_texts, self.corpus_texts, self._only.get(split))

    def positives(self, split: str) -> Judgements:
        return self.judgements(split).at_least(self.min_score)

    def __str__(self) -> str:
        return f"RetrievalData({self.folder})"
