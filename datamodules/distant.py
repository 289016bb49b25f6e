"""Distant supervision: a sentence is a positive example of every label whose name stands in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.beir import open_folder, read_qrels
from datamodules.judgements import Judgements
from datamodules.readers import Fields, Place, read_records, text_field
from datamodules.retrieval import RetrievalData
from datamodules.texts import Texts, TextsBuilder, content_hash
from miners.phrases import find_names, without_nested

log = logging.getLogger(__name__)


class DistantLabelsData(RetrievalData):
    """Train on sentences that nobody has labelled, and evaluate on a BEIR folder whose corpus is the labels' names.

    A sentence's positives are the labels whose whole name stands in it, the longest where names contain one another;
    sentences without any are left out, not taken for negative. The folder's training queries keep their own positives
    and get the others whose name stands in them. A sentence that is there twice counts once.

    Overlaps are removed and logged: training texts that are an evaluation query of any split of the folder, and
    validation queries that are test queries too.

    Args:
        folder: as in `RetrievalData`; the documents are labels.
        sentences: files of unlabelled sentences, see `datamodules.readers`.
        sentence: their field: a text, or a list of words.
        stop_names: labels that are too common as words to be matched.
        max_per_label: sentences that a name brings at most, the first in order of their hash; null for no bound.
        options: train_split, val_split, test_split, title, min_score and those of loading, as in `RetrievalData`.

    Source:
        Decorte et al., arXiv 2209.05987; tokens and the longest match are ours, since the paper does not say.
    """

    def __init__(
        self,
        folder: str,
        sentences: Sequence[str] = (),
        sentence: str = "text",
        stop_names: Sequence[str] = ("plan", "communication"),
        max_per_label: int | None = 1000,
        **options: Any,
    ) -> None:
        super().__init__(folder, **options)
        if max_per_label is not None and max_per_label < 1:
            raise ValueError(
                f"DistantLabelsData(max_per_label={max_per_label}): wants at least 1, or null for no bound."
            )
        self.sentences = tuple(sentences)
        self.sentence = sentence
        self.stop_names = frozenset(name.casefold() for name in stop_names)
        self.max_per_label = max_per_label
        self._labelled = 0  # queries that come with the folder; sentences stand behind them

    def read_texts(self) -> tuple[Texts, Texts]:
        queries, corpus = super().read_texts()
        self._labelled = len(queries)
        builder, seen, again = TextsBuilder("query"), set(queries.content.tolist()), 0
        for name, text in zip(queries.names, queries, strict=True):
            builder.add(Place(open_folder(self.folder), 0), name, text)
        for file in self.sentences:
            for place, fields in read_records(file):
                text = self._sentence(place, fields)
                content = content_hash(text)
                if not text or content in seen:
                    again += 1
                    continue
                seen.add(content)
                builder.add(place, f"sentence-{len(builder.names) - self._labelled}", text)
        if self.sentences:
            log.info("%s: %d sentences are empty, there twice, or a query of the folder; left out", self, again)
        return builder.build(), corpus

    def read_judgements(self, split: str) -> Judgements:
        judged = super().read_judgements(split)
        if split == self.train_split:
            return self._distant(judged)
        if split == self.val_split and self.test_split is not None:
            held_out = self._contents([self.test_split])
            kept = ~torch.isin(self.query_texts.content[judged.queries], held_out)
            if not bool(kept.all()):
                number = len(judged.queries[~kept].unique())
                log.info("%s: %d queries of '%s' are test queries too; removed from it", self, number, split)
            return Judgements(judged.queries[kept], judged.documents[kept], judged.grades[kept])
        return judged

    def __str__(self) -> str:
        return f"DistantLabelsData({self.folder})"

    def _distant(self, judged: Judgements) -> Judgements:
        """The folder's own training pairs, and those that names in texts make."""
        folder = open_folder(self.folder)
        splits = [path.stem for path in (folder / "qrels").glob("*.tsv") if path.stem != self.train_split]
        texts = torch.cat([judged.queries.unique(), torch.arange(self._labelled, len(self.query_texts))])
        evaluated = torch.isin(self.query_texts.content[texts], self._contents(splits))
        if bool(evaluated.any()):
            log.info("%s: %d training texts are evaluation queries; removed", self, int(evaluated.sum()))
        texts = texts[~evaluated]
        names = [name if self._matched(name) else "" for name in self.corpus_texts]
        found = without_nested(find_names(names, self.query_texts.take(texts)))
        matched = torch.stack([texts[found.text], found.name], dim=1).unique(dim=0)
        matched = matched[self._first_of_each_label(matched)]
        kept = torch.isin(judged.queries, texts)
        own = torch.stack([judged.queries, judged.documents, judged.grades], dim=1)[kept]
        fresh = torch.cat([matched, torch.full((len(matched), 1), self.min_score)], dim=1)
        pairs = torch.cat([own, fresh])
        both, place = pairs[:, :2].unique(dim=0, return_inverse=True)
        grades = torch.zeros(len(both), dtype=torch.long).scatter_reduce_(0, place, pairs[:, 2], "amax")
        log.info(
            "%s: %d pairs of %d labels by name, in %d texts; %d pairs with the folder's own",
            self,
            len(matched),
            len(matched[:, 1].unique()),
            len(matched[:, 0].unique()),
            len(both),
        )
        return Judgements(both[:, 0], both[:, 1], grades)

    def _contents(self, splits: Sequence[str]) -> Tensor:
        """(n,) content of all queries that these splits judge."""
        folder = open_folder(self.folder)
        ids = [read_qrels(folder, split, self.query_texts, self.corpus_texts).queries for split in splits]
        return self.query_texts.content[torch.cat([torch.empty(0).long(), *ids]).unique()]

    def _matched(self, name: str) -> bool:
        return len(name.strip()) > 1 and name.strip().casefold() not in self.stop_names

    def _first_of_each_label(self, pairs: Tensor) -> Tensor:
        """(n,) True for so many (text, label) pairs of each label, by the texts' hashes: the same in any order."""
        if self.max_per_label is None:
            return torch.ones(len(pairs), dtype=torch.bool)
        order = self.query_texts.content[pairs[:, 0]].argsort(stable=True)
        order = order[pairs[order, 1].argsort(stable=True)]
        label = pairs[order, 1]
        place = torch.arange(len(label)) - torch.searchsorted(label, label)
        return torch.zeros(len(pairs), dtype=torch.bool).scatter_(0, order, place < self.max_per_label)

    def _sentence(self, place: Place, fields: Fields) -> str:
        value = fields.get(self.sentence)
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            return " ".join(value).strip()
        return text_field(place, fields, self.sentence).strip()
