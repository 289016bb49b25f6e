"""Pictures of what composed queries find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hardneg.callbacks.draw import DrawEvaluation


class DrawRetrievals(DrawEvaluation):
    """Write ``retrievals.svg`` of the last evaluation into the run's folder, after fit and test.

    Args:
        queries: how many, evenly spaced over the split.
        found: pictures shown of each ranking.
    """

    def __init__(self, queries: int = 8, found: int = 5) -> None:
        if queries < 1 or found < 1:
            raise ValueError(f"DrawRetrievals(queries={queries}, found={found}): wants at least 1 of each.")
        self.queries, self.found = queries, found

    def draw(self, measures: Any, data: Any, split: str, folder: Path) -> list[Path]:
        from hardneg.metrics.cir import CIRMeasures
        from hardneg.report.composed import ShownRetrieval, draw_retrievals

        if not isinstance(measures, CIRMeasures):
            return []
        of: Any = data.split(split)
        right = of.right.to_lists()
        number = len(of.ids)
        rows = torch.linspace(0, number - 1, min(self.queries, number)).long().tolist()
        texts = data.text_of(of.ids[rows], "query")
        shown = [
            ShownRetrieval(
                data.picture(int(of.references[row])),
                text,
                [
                    (data.picture(i), score, i in right[row])
                    for i, score in zip(
                        measures.ids[row, : self.found].tolist(),
                        measures.scores[row, : self.found].tolist(),
                        strict=True,
                    )
                    if i >= 0
                ],
                data.picture(right[row][0]),
            )
            for row, text in zip(rows, texts, strict=True)
        ]
        title = f"split '{split}': " + ", ".join(
            f"{name} {measures.means[name]:.3f}" for name in list(measures.means)[:3]
        )
        return [draw_retrievals(shown, folder / "retrievals.svg", title)]
