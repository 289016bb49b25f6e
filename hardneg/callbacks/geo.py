"""Pictures of where queries are taken to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hardneg.callbacks.draw import DrawEvaluation


class DrawPlaces(DrawEvaluation):
    """Write ``retrieved.svg`` and, where places are known, ``errors.svg`` of the last evaluation, after fit and test.

    Args:
        queries: how many are shown, evenly spaced by rank from the best to the worst.
        found: how many references of each.
    """

    def __init__(self, queries: int = 6, found: int = 5) -> None:
        if queries < 1 or found < 1:
            raise ValueError(f"DrawPlaces(queries={queries}, found={found}): at least 1 each.")
        self.queries, self.found = queries, found

    def draw(self, measures: Any, data: Any, split: str, folder: Path) -> list[Path]:
        from datamodules.geo import places_of
        from hardneg.metrics.geo import GeoMeasures
        from hardneg.report.geo import draw_errors, draw_retrieved

        if not isinstance(measures, GeoMeasures):
            return []
        of = data.split(split)
        title = ", ".join(
            f"{name} {measures.means[name]:.3f}" for name in ("R@1", "R@5", "R@1%") if name in measures.means
        )
        title = f"split '{split}': {title} of {measures.references:,} references"
        found = [draw_retrieved(self._shown(measures, data, of), folder / "retrieved.svg", title)]
        if (places := places_of(of)) is not None and measures.errors is not None:
            queries, references = places
            first = torch.searchsorted(of.references, measures.ids[:, 0].contiguous())
            there, degrees = references.coordinates[first], queries.units == "degrees"
            file = folder / "errors.svg"
            found.append(draw_errors(queries.coordinates, there, measures.errors, queries.areas, degrees, file, title))
        return found

    def _shown(self, measures: Any, data: Any, of: Any) -> list[Any]:
        from hardneg.report.geo import ShownQuery

        order = measures.ranks.argsort(stable=True)
        spaced = torch.linspace(0, len(order) - 1, min(self.queries, len(order))).round().long()
        names, positives, semi = data.names("query"), of.positives.to_lists(), of.semi_positives.to_lists()
        out = []
        for row in order[spaced].tolist():
            listed = [i for i in measures.ids[row, : self.found].tolist() if i >= 0]
            grades = [1 if i in positives[row] else -1 if i in semi[row] else 0 for i in listed]
            query = int(of.queries[row])
            out.append(
                ShownQuery(
                    data.picture(query, "query"),
                    data.picture(positives[row][0], "document"),
                    [data.picture(i, "document") for i in listed],
                    grades,
                    names[query],
                    1 + int(measures.ranks[row]),
                    None if measures.errors is None else float(measures.errors[row]),
                )
            )
        return out
