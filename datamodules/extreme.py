"""Extreme classification: instances are queries, labels with texts are the corpus."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datamodules.beir import open_folder
from datamodules.extreme_files import read_filter, read_instances, read_labels
from datamodules.judgements import Judgements
from datamodules.text_data import TextData
from datamodules.texts import Texts, TextsBuilder


class ExtremeData(TextData):
    """Train and evaluate on a folder in the layout of the Extreme Classification Repository.

    See `datamodules.extreme_files` for the files. A query of a split is named "<split>/<uid>". Instances without
    labels, and labels without instances, stay in the files' order and are trained on by nobody.

    Args:
        folder: path; "~" and variables such as $HARDNEG_DATA are filled in.
        train_split: "trn" in the repository's folders.
        val_split: split of validation; null for none. The published code validates on the test split.
        test_split: "tst" in the repository's folders; null for none.
        content: title and content of a thing, with a space between; false takes the title alone where there is one.
        filters: leave the pairs of filter_labels_<split>.txt out: they are no positives, and no ranking shows them.
        max_instances: train on so many instances, a fixed random choice of those with labels; null takes all. Labels
            all stay, and so do the other splits.
        loading: batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed; see `TextData`.
    """

    def __init__(
        self,
        folder: str,
        train_split: str = "trn",
        val_split: str | None = None,
        test_split: str | None = "tst",
        content: bool = True,
        filters: bool = True,
        max_instances: int | None = None,
        **loading: Any,
    ) -> None:
        self.folder = folder
        super().__init__(**loading)
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.content = content
        self.filters = filters
        if max_instances is not None and max_instances < 1:
            raise ValueError(f"ExtremeData(max_instances={max_instances}): wants at least 1, or null for all of them.")
        self.max_instances = max_instances
        self._pairs: dict[str, Tensor] = {}  # (V, 2) query and label
        self._excluded: dict[str, Tensor] = {}  # (V, 2)

    def read_texts(self) -> tuple[Texts, Texts]:
        folder = open_folder(self.folder)
        labels = read_labels(folder, self.content)
        queries = TextsBuilder("query")
        for split in dict.fromkeys(filter(None, (self.train_split, self.val_split, self.test_split))):
            start = len(queries.names)
            lists = read_instances(folder, split, self.content, len(labels), queries)
            pairs = [(start + row, label) for row, targets in enumerate(lists) for label in dict.fromkeys(targets)]
            self._pairs[split] = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
            if split == self.train_split and self.max_instances is not None:
                self._pairs[split] = _some(self._pairs[split], self.max_instances)
            removed = self._pairs[split][:0]
            if self.filters:
                removed = read_filter(folder, split, len(lists), len(labels)) + torch.tensor([start, 0])
            self._excluded[split] = removed
        return queries.build(), labels

    def read_judgements(self, split: str) -> Judgements:
        if split not in self._pairs:
            raise ValueError(f"{self} has read the splits {', '.join(self._pairs)}, not '{split}'.")
        pairs, removed = self._pairs[split], self._excluded[split]
        codes = [part[:, 0] * len(self.corpus_texts) + part[:, 1] for part in (pairs, removed)]
        return _judged(pairs[~torch.isin(*codes)])

    def excluded(self, split: str) -> Judgements:
        return _judged(self._excluded[split])

    def __str__(self) -> str:
        return f"ExtremeData({self.folder})"


def _judged(pairs: Tensor) -> Judgements:
    return Judgements(pairs[:, 0].contiguous(), pairs[:, 1].contiguous(), torch.ones(len(pairs), dtype=torch.long))


def _some(pairs: Tensor, instances: int) -> Tensor:
    """(V', 2) the pairs of so many instances; the same ones in every run."""
    ids = pairs[:, 0].unique()
    drawn = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))[:instances]]
    return pairs[torch.isin(pairs[:, 0], drawn)]
