"""A page of what an encoder of pictures takes for alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.labelled import rank_in_class
from hardneg.callbacks.draw import DrawEvaluation


class DrawNeighbours(DrawEvaluation):
    """Write ``neighbours.html`` of the last evaluation into the run's folder, after fit and after test.

    It shows pictures that their nearest neighbours take for another class, and pictures that they do not, each with the
    training pictures next to it. Whatever `ProbeClasses` evaluates can be drawn if its data has pictures.

    Args:
        wrong, right: how many pictures of each, at random from each class in turn.
        found: how many neighbours of each.
    """

    def __init__(self, wrong: int = 8, right: int = 8, found: int = 8) -> None:
        if min(wrong, right) < 0 or wrong + right < 1 or found < 1:
            raise ValueError(
                f"DrawNeighbours(wrong={wrong}, right={right}, found={found}): at least 1 picture and 1 neighbour."
            )
        self.wrong, self.right, self.found = wrong, right, found

    def draw(self, measures: Any, data: Any, split: str, folder: Path) -> list[Path]:
        from hardneg.metrics.classification import ClassMeasures
        from hardneg.report.neighbours import write_neighbours
        from hardneg.report.thumbnails import thumbnail_of

        if not isinstance(measures, ClassMeasures):
            return []
        if thumbnail_of(data, int(measures.queries[0]), data.spaces[0]) is None:
            return []
        right = measures.voted == measures.truth
        wrongs, rights = (
            [self._shown(measures, data, row) for row in rows[spread(measures.truth[rows], most)].tolist()]
            for rows, most in (((~right).nonzero()[:, 0], self.wrong), (right.nonzero()[:, 0], self.right))
        )
        counts = int((~right).sum()), int(right.sum())
        means = measures.means
        title = (
            f"Split ‘{split}’: the neighbours are right for {counts[1]} of {len(right)} pictures ({means['kNN']:.3f}), "
        )
        title += f"a linear probe for {means['accuracy']:.3f}."
        return [write_neighbours(wrongs, rights, counts, measures.voters, folder / "neighbours.html", title)]

    def _shown(self, measures: Any, data: Any, row: int) -> Any:
        from hardneg.report.neighbours import Neighbour, ShownNeighbours
        from hardneg.report.thumbnails import thumbnail_of

        space, classes = data.spaces[0], data.classes
        names, labels, truth = data.names(space), data.labels, int(measures.truth[row])
        pairs = zip(measures.ids[row, : self.found].tolist(), measures.scores[row, : self.found].tolist(), strict=True)
        found = [
            Neighbour(
                thumbnail_of(data, i, space) or "", names[i], classes[int(labels[i])], score, int(labels[i]) == truth
            )
            for i, score in pairs
        ]
        query = int(measures.queries[row])
        return ShownNeighbours(
            thumbnail_of(data, query, space) or "",
            names[query],
            classes[truth],
            classes[int(measures.voted[row])],
            found,
        )


def spread(labels: Tensor, most: int) -> Tensor:
    """(at most ``most``,) of n things with classes ``labels`` (n,): one of each class in turn, at random, by class.

    Where classes are more than ``most``, those that are evenly spaced.
    """
    if not len(labels):
        return torch.empty(0, dtype=torch.long)
    turns = rank_in_class(labels, 0)
    order = (turns * (int(labels.max()) + 1) + labels).argsort()
    classes = int((turns == 0).sum())
    if 0 < most < classes:
        order = order[torch.linspace(0, classes - 1, most).round().long()]
    chosen = order[:most]
    return chosen[labels[chosen].argsort(stable=True)]
