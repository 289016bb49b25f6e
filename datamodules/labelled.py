"""Things of which some have a class: windows, pictures, rows. What their data modules have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datamodules.rows import RowsData

UNLABELLED = -1
SPLITS = ("train", "val", "test")


class LabelledData(RowsData):
    """Things in splits, evaluated against the labelled things of the training split.

    A family says what there is: ``classes``, ``labels`` (N,) int64 by id with `UNLABELLED`, ``names(space)``,
    ``spaces`` and, when it is set up, ``_ids``: the things of each split.
    """

    classes: tuple[str, ...]
    labels: Tensor
    label_share: float = 1.0
    label_seed: int = 0
    _ids: Mapping[str, Tensor]
    _thing: str = "thing"
    _where_splits_are_set: str = "Set data.init_args.splits."

    @property
    @abstractmethod
    def spaces(self) -> tuple[str, ...]:
        """What can be embedded."""

    @abstractmethod
    def names(self, space: str) -> Sequence[str]:
        """What a report calls each thing; position = id."""

    def ids(self, split: str) -> Tensor:
        """Things of a split, ascending (n,).

        Raises:
            ValueError: a split that is not there.
        """
        if split not in self._ids:
            raise ValueError(
                f"{self} has no split '{split}'; there are {sorted(self._ids)}. {self._where_splits_are_set}"
            )
        return self._ids[split]

    def labelled(self, share: float | None = None, seed: int | None = None) -> Tensor:
        """Training things whose labels may be used (n,): a share of each class.

        Args:
            share, seed: None = label_share and label_seed.
        """
        rows = self.ids("train")
        rows = rows[self.labels[rows] != UNLABELLED]
        share, seed = self.label_share if share is None else share, self.label_seed if seed is None else seed
        return rows[self._drawn(rows, share, seed)]

    def _drawn(self, rows: Tensor, share: float, seed: int) -> Tensor:
        """(n,) bool: which of the labelled ``rows`` (n,) a share takes."""
        return nested_draw(self.labels[rows], share, seed)

    def text_of(self, ids: Tensor | Sequence[int], space: str) -> list[str]:
        """Class and name of things, for people."""
        rows, names = torch.as_tensor(ids).tolist(), self.names(space)
        kinds = [self.classes[label] if label >= 0 else "unlabelled" for label in self.labels[rows].tolist()]
        return [f"{kind} · {names[row]}" for kind, row in zip(kinds, rows, strict=True)]

    def queries(self, split: str) -> tuple[Tensor, Sequence[str]]:
        """Labelled things of a split, and their texts: what is evaluated, each against the training things.

        Raises:
            ValueError: none of them has a class.
        """
        ids = self.ids(split)
        ids = ids[self.labels[ids] != UNLABELLED]
        if not len(ids):
            raise ValueError(
                f"{self}: no {self._thing} of the split '{split}' has a class; there is nothing to evaluate."
            )
        return ids, self.text_of(ids, self.spaces[0])

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """For each evaluated thing by name, the labelled training things of its class: what a report calls right."""
        train, names = self.labelled(), self.names(self.spaces[0])
        by_class = {
            label: dict.fromkeys((names[i] for i in train[self.labels[train] == label].tolist()), 1)
            for label in self.labels[train].unique().tolist()
        }
        return {names[i]: by_class.get(int(self.labels[i]), {}) for i in self.queries(split)[0].tolist()}


def rank_in_class(labels: Tensor, seed: int) -> Tensor:
    """(n,) place of each thing in a random order of its class, by ``labels`` (n,); the first is 0."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(labels[order], stable=True)]  # class by class, shuffled inside
    counts = torch.bincount(labels)
    rank = torch.empty(len(labels), dtype=torch.long)
    rank[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return rank


def nested_draw(labels: Tensor, share: float, seed: int) -> Tensor:
    """(n,) bool: max(1, floor(share x n_c)) of the n_c things of each class; larger shares contain smaller ones.

    Args:
        labels: (n,) classes.
        share: in (0, 1].
        seed: of the order in which things are taken.
    """
    wanted = (torch.bincount(labels) * share + 1e-9).floor().long().clamp_min(1)
    return rank_in_class(labels, seed) < wanted[labels]
