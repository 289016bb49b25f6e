"""Pictures of what an activity encoder takes for what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hardneg.callbacks.draw import DrawEvaluation


class DrawActivities(DrawEvaluation):
    """Write ``confusion.svg`` and ``map.svg`` of the last evaluation into the run's folder, after fit and after test.

    Args:
        map: draw the map too; t-SNE takes seconds.
    """

    def __init__(self, map: bool = True) -> None:
        self.map = map

    def draw(self, measures: Any, data: Any, split: str, folder: Path) -> list[Path]:
        from hardneg.metrics.classification import ClassMeasures
        from hardneg.report.activities import draw_confusion, draw_map

        if not isinstance(measures, ClassMeasures):
            return []
        classes: Any = data.classes
        title = f"linear probe on the split '{split}': accuracy {measures.means['accuracy']:.3f}"
        found = [draw_confusion(measures.truth, measures.predicted, classes, folder / "confusion.svg", title)]
        if self.map:
            title = f"frozen features of the split '{split}', t-SNE"
            found.append(draw_map(measures.vectors, measures.truth, classes, folder / "map.svg", title))
        return found
