"""Pictures of whom a face encoder takes for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hardneg.callbacks.draw import DrawEvaluation


class DrawFaces(DrawEvaluation):
    """Write ``roc.svg`` and ``hardest_pairs.svg`` of the last evaluation into the run's folder, after fit and test.

    Args:
        pairs: how many impostor pairs that look alike are shown, and as many genuine ones that do not.
    """

    def __init__(self, pairs: int = 6) -> None:
        if pairs < 1:
            raise ValueError(f"DrawFaces(pairs={pairs}): wants at least 1.")
        self.pairs = pairs

    def draw(self, measures: Any, data: Any, split: str, folder: Path) -> list[Path]:
        from hardneg.metrics.verification import FaceMeasures, hardest_pairs
        from hardneg.report.faces import ShownPair, draw_pairs, draw_roc

        if not isinstance(measures, FaceMeasures):
            return []

        def shown(rows: Tensor) -> list[ShownPair]:
            names = data.names("image")
            return [
                ShownPair(data.picture(a), data.picture(b), (names[a], names[b]), float(measures.similarity[row]))
                for row, (a, b) in zip(rows.tolist(), measures.pairs[rows].tolist(), strict=True)
            ]

        similarity, same = measures.similarity, measures.same
        title = f"split '{split}': accuracy {measures.means['accuracy']:.3f}, AUC {measures.means['AUC']:.3f}"
        found = [draw_roc(similarity, same, folder / "roc.svg", title)]
        impostors = shown(hardest_pairs(similarity, same, self.pairs))
        genuine = shown(hardest_pairs(similarity, same, self.pairs, impostors=False))
        found.append(draw_pairs(impostors, genuine, folder / "hardest_pairs.svg", f"most wrong of the {title}"))
        return found
