"""What the callback hands to the pictures of a localisation; tests/hardneg/modules/test_geo.py runs it in a fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules import GeoData
from datamodules.geo_files import VIGOR
from hardneg.callbacks import DrawPlaces
from hardneg.metrics import evaluate_geo
from miners import Store
from tests.geo import write_vigor


def test_grades_ranks_and_metres(tmp_path: Path) -> None:
    folder = write_vigor(tmp_path)
    data = GeoData(test=VIGOR(str(folder), "test"), size=16)
    data.setup("test")
    split = data.split("test")
    vectors = torch.nn.functional.normalize(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    references = Store(vectors, split.references)
    semi, names = split.semi_positives, [data.names("query")[i] for i in split.queries.tolist()]
    queries = vectors[split.positives.values].clone()
    near = semi.to_lists()[0]
    queries[0] = 0.9 * vectors[near[1]] + 0.1 * queries[0]  # finds what shows a part of its place
    measures = evaluate_geo(queries, names, references, split.positives, semi)
    first = DrawPlaces(16, 3)._shown(measures, data, split)
    grades = {one.name: one.grades for one in first}
    assert grades[names[0]][0] == -1
    assert all(grades[name][0] == 1 for name in names[1:])
    assert [one.rank for one in first] == sorted(one.rank for one in first)
    assert all(one.metres is None for one in first)
    (file,) = DrawPlaces(16, 3).draw(measures, data, "test", tmp_path)
    assert all(colour in file.read_text() for colour in ("#2ca02c", "#d62728", "#ff7f0e"))
    assert DrawPlaces().draw(object(), data, "test", tmp_path) == []


@pytest.mark.parametrize("options", [{"queries": 0}, {"found": 0}])
def test_arguments(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 each"):
        DrawPlaces(**options)
