"""Pairs, triplets and n-tuples of texts, with or without negatives of their own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from datamodules.judgements import Judgements
from datamodules.readers import Fields, Place, read_records, text_field, texts_field
from datamodules.text_data import TextData
from datamodules.texts import Texts, TextsBuilder
from miners.base import NegativeSource, TrainingTable
from miners.ragged import Ragged
from miners.static_negatives import StaticNegatives

NEGATIVE_COLUMN = re.compile(r"negatives?(_\d+)?")


class PairsData(TextData):
    """Train on rows of an anchor, a positive and any number of negatives.

    Rows with the same anchor are one query with several positives. The corpus is every positive and negative of all
    files, each text once, so that evaluation ranks a whole corpus. Texts have no ids in such files: their names are
    hashes of the texts, and stay the same when rows move.

    Args:
        train: .jsonl, .csv, .tsv (each also .gz), .parquet, or a folder saved by `datasets`; "~" and variables such
            as $HARDNEG_DATA are filled in.
        val: file of validation pairs; null for none.
        test: file of test pairs; null for none.
        anchor: column of the anchor.
        positive: column of the positive, or of a list of positives.
        negatives: columns of negatives, each a text, a list of texts, or empty; null takes every column named negative,
            negatives, negative_1, negative_2, ... FlagEmbedding's files: anchor query, positive pos, negatives [neg].
        num_negatives: how many of a query's own negatives travel with it, drawn anew each epoch; null = all of them
            (as many as the longest list), 0 = none.
        loading: batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed; see `TextData`.

    Raises:
        ValueError: num_negatives below 0.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        test: str | None = None,
        anchor: str = "anchor",
        positive: str = "positive",
        negatives: Sequence[str] | None = None,
        num_negatives: int | None = None,
        **loading: Any,
    ) -> None:
        self.train, self.val, self.test = train, val, test
        super().__init__(**loading)
        if num_negatives is not None and num_negatives < 0:
            raise ValueError(f"PairsData(num_negatives={num_negatives}): wants at least 0, or null for all.")
        self.train_split = "train"
        self.val_split = None if val is None else "val"
        self.test_split = None if test is None else "test"
        self.anchor, self.positive, self.negatives = anchor, positive, negatives
        self.num_negatives = num_negatives
        self._pairs: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._negatives: list[tuple[int, int]] = []

    def read_texts(self) -> tuple[Texts, Texts]:
        queries, documents = TextsBuilder("query"), TextsBuilder("document")
        for split, file in (("train", self.train), ("val", self.val), ("test", self.test)):
            for place, fields in read_records(file) if file is not None else ():
                query = queries.add_once(place, self._anchor(place, fields))
                positives = texts_field(place, fields, self.positive)
                if not positives:
                    raise ValueError(f"{place}: field '{self.positive}' is empty; every row needs a positive.")
                self._pairs[split] += [(query, documents.add_once(place, text)) for text in positives]
                negatives = [documents.add_once(place, text) for text in self._negative_texts(place, fields)]
                if split == "train":
                    self._negatives += [(query, document) for document in negatives]
        return queries.build(), documents.build()

    def read_judgements(self, split: str) -> Judgements:
        pairs = _columns(self._pairs[split])
        return Judgements(pairs[:, 0], pairs[:, 1], torch.ones(len(pairs), dtype=torch.long))

    def own_sources(self, table: TrainingTable) -> Sequence[NegativeSource]:
        if self.num_negatives == 0 or not (self._negatives or self.num_negatives):
            return ()
        if not self._negatives:
            raise ValueError(
                f"{self}: num_negatives={self.num_negatives}, but no row has a negative. Name their columns with "
                "data.init_args.negatives, or leave num_negatives out."
            )
        pairs = _columns(self._negatives)
        lists = Ragged.from_pairs(pairs[:, 0], pairs[:, 1], len(self.query_texts)).select(table.anchors)
        return (StaticNegatives(lists, self.num_negatives or int(lists.lengths.max())),)

    def __str__(self) -> str:
        return f"PairsData({self.train})"

    def _anchor(self, place: Place, fields: Fields) -> str:
        text = text_field(place, fields, self.anchor)
        if not text or text.isspace():
            raise ValueError(f"{place}: field '{self.anchor}' is empty; every row needs an anchor.")
        return text

    def _negative_texts(self, place: Place, fields: Fields) -> list[str]:
        columns = self.negatives
        if columns is None:
            columns = [name for name in fields if NEGATIVE_COLUMN.fullmatch(name)]
        return [text for column in columns for text in texts_field(place, fields, column)]


def _columns(pairs: list[tuple[int, int]]) -> torch.Tensor:
    """(V, 2) of V pairs, each once, in order of first appearance."""
    return torch.tensor(list(dict.fromkeys(pairs)), dtype=torch.long).reshape(-1, 2)
