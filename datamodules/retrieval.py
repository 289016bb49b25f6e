"""Retrieval sets in the BEIR layout."""

from __future__ import annotations

from typing import Any

from datamodules.beir import open_folder, read_corpus, read_qrels, read_queries
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
        loading: batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed; see `TextData`.

    Raises:
        ValueError: min_score or max_documents below 1.

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
        **loading: Any,
    ) -> None:
        self.folder = folder
        super().__init__(**loading)
        if min_score < 1:
            raise ValueError(f"RetrievalData(min_score={min_score}): a grade of 0 means not relevant, so at least 1.")
        if max_documents is not None and max_documents < 1:
            raise ValueError(f"RetrievalData(max_documents={max_documents}): wants at least 1, or null for all.")
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.title = title
        self.min_score = min_score
        self.max_documents = max_documents

    def read_texts(self) -> tuple[Texts, Texts]:
        folder = open_folder(self.folder)
        return read_queries(folder), read_corpus(folder, self.title, self.max_documents)

    def read_judgements(self, split: str) -> Judgements:
        return read_qrels(open_folder(self.folder), split, self.query_texts, self.corpus_texts)

    def positives(self, split: str) -> Judgements:
        return self.judgements(split).at_least(self.min_score)

    def __str__(self) -> str:
        return f"RetrievalData({self.folder})"
