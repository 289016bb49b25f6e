"""What retrieval sets have in common: queries, a corpus, judgements, and the loaders between them and a module."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.judgements import Judgements
from datamodules.rows import RowsData
from datamodules.texts import Texts
from miners.base import BatchMiner, NegativeSource, Row, TrainingTable
from miners.pool import Items
from miners.ragged import Ragged

log = logging.getLogger(__name__)


class TextData(RowsData):
    """Queries and documents as texts. Subclasses read them; everything after that is here.

    One training row per query that has a positive; which of its positives travels is drawn anew each epoch. A row's
    known positives, which must never be its negatives, are those of every query with the same normalised text, and
    every document with the same normalised text as one of them.

    Args:
        batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed: as in `RowsData`; what sources
            draw are documents.

    Raises:
        ValueError: a size below 1, or a `batch_miner` that was given another batch_size, drop_last or seed.
    """

    query_texts: Texts
    corpus_texts: Texts
    train_split: str
    val_split: str | None
    test_split: str | None

    def __init__(
        self,
        batch_size: int = 64,
        batch_miner: BatchMiner | None = None,
        sources: Sequence[NegativeSource] = (),
        drop_last: bool = False,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed)
        for source in self.sources:
            if source.space != "document":
                raise ValueError(
                    f"{type(source).__name__} draws from the space '{source.space}', but the negatives of "
                    f"{type(self).__name__} are texts of the space 'document'."
                )
        self._judgements: dict[str, Judgements] = {}

    @abstractmethod
    def read_texts(self) -> tuple[Texts, Texts]:
        """Read queries and corpus."""

    @abstractmethod
    def read_judgements(self, split: str) -> Judgements:
        """Read who is relevant for whom in a split."""

    def positives(self, split: str) -> Judgements:
        """The judgements of a split that count as positives."""
        return self.judgements(split)

    def excluded(self, split: str) -> Judgements:
        """Pairs of a split that are no answer to anything, such as a page and itself: left out of every ranking."""
        nothing = torch.empty(0, dtype=torch.long)
        return Judgements(nothing, nothing, nothing)

    def own_sources(self, table: TrainingTable) -> Sequence[NegativeSource]:
        """Sources that come with the files, before those that the user names."""
        return ()

    def judgements(self, split: str) -> Judgements:
        """All judgements of a split, read once."""
        if split not in self._judgements:
            self._judgements[split] = self.read_judgements(split)
        return self._judgements[split]

    # What Lightning calls

    def setup(self, stage: str) -> None:
        """Read what ``stage`` needs, so that every mistake in the files shows before training starts."""
        if not hasattr(self, "query_texts"):
            self.query_texts, self.corpus_texts = self.read_texts()
        if stage == "fit" and self.batches is None:
            table = training_table(self.query_texts, self.corpus_texts, self.positives(self.train_split))
            if len(table) == 0:
                raise ValueError(
                    f"{self}: no query of the split '{self.train_split}' has a positive; nothing to train on."
                )
            self.start(table, (*self.own_sources(table), *self.sources))
            log.info("%s: %d training rows, %d documents", self, len(table), len(self.corpus_texts))
        if stage in ("fit", "validate") and self.val_split is not None:
            self.queries(self.val_split)
        if stage == "test" and self.test_split is not None:
            self.queries(self.test_split)

    def collate_rows(self) -> CollateRows:
        drawn = bool(self._training().sources)
        return CollateRows(self.query_texts, self.corpus_texts, self.table, drawn)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Queries of the validation split, as batches with the side "query"; none without a split."""
        return self._query_loader(self.val_split)

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Queries of the test split, as batches with the side "query"; none without a split."""
        return self._query_loader(self.test_split)

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """All queries, then the whole corpus: two loaders, with the sides "query" and "document"."""
        return [self._text_loader(texts, range(len(texts))) for texts in (self.query_texts, self.corpus_texts)]

    # What modules, callbacks and reports ask for

    def queries(self, split: str) -> tuple[Tensor, Sequence[str]]:
        """The queries of a split that have a positive: ids (Q,), ascending, and their texts.

        Raises:
            ValueError: no query of the split has one.
        """
        ids = self.positives(split).queries.unique()
        if len(ids) == 0:
            raise ValueError(f"{self}: no query of the split '{split}' has a positive; there is nothing to evaluate.")
        return ids, self.query_texts.take(ids)

    def everything(self, space: str) -> tuple[Tensor, Sequence[str]]:
        """What training meets of a space, for encoding: ids and texts of all training queries, or of the corpus."""
        if self._texts(space) is self.corpus_texts:
            return self.corpus()
        return self.table.anchors, self.query_texts.take(self.table.anchors)

    def corpus(self) -> tuple[Tensor, Sequence[str]]:
        """The whole corpus: ids (M,) = 0 .. M - 1, and the texts."""
        return torch.arange(len(self.corpus_texts)), self.corpus_texts

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """The judgements of a split by name, {query: {document: grade}}, as evaluation libraries take them.

        Only queries that have a positive, as in `queries`; with all their grades, 0 included.
        """
        judged = self.judgements(split)
        evaluated = torch.isin(judged.queries, self.queries(split)[0])
        result: dict[str, dict[str, int]] = {}
        columns = (judged.queries, judged.documents, judged.grades)
        for query, document, grade in zip(*(column[evaluated].tolist() for column in columns), strict=True):
            of_query = result.setdefault(self.query_texts.names[query], {})
            of_query[self.corpus_texts.names[document]] = grade
        return result

    def text_of(self, ids: Tensor | Sequence[int], space: str) -> list[str]:
        """The texts of ids (n,) of a space, "query" or "document"."""
        return self._texts(space).take(ids)

    def names(self, space: str) -> Sequence[str]:
        """The names that the files give to the things of a space; position = id."""
        return self._texts(space).names

    def _texts(self, space: str) -> Texts:
        texts = {"query": self.query_texts, "document": self.corpus_texts}
        if space not in texts:
            raise ValueError(f"{self} has the spaces 'query' and 'document', not '{space}'.")
        return texts[space]

    def _query_loader(self, split: str | None) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return [] if split is None else self._text_loader(self.query_texts, self.queries(split)[0].tolist())

    def _text_loader(self, texts: Texts, ids: Sequence[int]) -> DataLoader[Batch]:
        return self._loader(ids, CollateTexts(texts), batch_size=self.eval_batch_size)


class CollateRows:
    """Turn B `Row` into a `Batch` with the sides "query", "document" and, where there are sources, "drawn".

    A batch for which no source drew anything has an empty side "drawn": processes that gather must agree on the sides.
    """

    def __init__(self, queries: Texts, corpus: Texts, table: TrainingTable, drawn: bool) -> None:
        self.queries, self.corpus, self.drawn = queries, corpus, drawn
        self.anchors, self.known = table.anchors, table.positives

    def __call__(self, rows: Sequence[Row]) -> Batch:
        index = torch.tensor([row.index for row in rows])  # (B,)
        ids = {"query": self.anchors[index], "document": torch.tensor([row.positive for row in rows])}
        inputs = {"query": self.queries.take(ids["query"]), "document": self.corpus.take(ids["document"])}
        items = {"query": identities(self.queries, ids["query"]), "document": identities(self.corpus, ids["document"])}
        if self.drawn:
            drawn = torch.tensor([negative for row in rows for negative in row.negatives], dtype=torch.long)  # (N,)
            lengths = torch.tensor([len(row.negatives) for row in rows])
            inputs["drawn"] = self.corpus.take(drawn)
            items["drawn"] = identities(self.corpus, drawn, torch.arange(len(rows)).repeat_interleave(lengths))
        return Batch(inputs, items, self.known.select(index), index)


class CollateTexts:
    """Turn ids into a `Batch` with one side, for encoding alone: no positives, nothing known."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def __call__(self, ids: Sequence[int]) -> Batch:
        at = torch.tensor(ids)
        side = self.texts.space
        return Batch({side: self.texts.take(at)}, {side: identities(self.texts, at)}, Ragged.empty(len(at)), at)


def identities(texts: Texts, ids: Tensor, rows: Tensor | None = None) -> Items:
    """Who these texts are: ids (N,) and content, without embeddings yet."""
    return Items(ids=ids, content=texts.content[ids], space=texts.space, rows=rows)


def training_table(queries: Texts, corpus: Texts, positives: Judgements) -> TrainingTable:
    """One row per query with a positive, in the order of the queries' ids."""
    anchors = positives.queries.unique()  # (N,)
    return TrainingTable(
        anchors=anchors,
        positives=known_positives(queries.content, corpus.content, positives).select(anchors),
        anchor_content=queries.content[anchors],
        document_content=corpus.content,
        anchor_names=queries.names,
        document_names=corpus.names,
    )


def known_positives(query_content: Tensor, document_content: Tensor, positives: Judgements) -> Ragged:
    """All documents that are a positive of a query if equal texts are one thing, for each of the Q queries, sorted.

    Shapes:
        query_content (Q,), document_content (M,); Q lists out.
    """
    query_groups, query_group = query_content.unique(return_inverse=True)  # (Q,) equal text, equal group
    document_groups, document_group = document_content.unique(return_inverse=True)  # (M,)
    num_documents = len(document_content)
    twins = Ragged.from_pairs(document_group, torch.arange(num_documents), len(document_groups))
    grown = twins.select(document_group[positives.documents])  # V lists: the positive and its equals
    group = query_group[positives.queries][grown.row_of_value]
    pairs = (group * num_documents + grown.values).unique()  # each pair once, sorted
    return Ragged.from_pairs(pairs // num_documents, pairs % num_documents, len(query_groups)).select(query_group)
