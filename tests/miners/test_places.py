"""Distances on the ground, and coordinates that are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from miners import Places
from miners.places import EARTH, haversine, sphere
from tests.oracles import geo


def test_t6_radians_and_as_released() -> None:
    points = torch.tensor([[40, -75], [40, -75.001], [40.001, -75]], dtype=torch.float64)
    places = Places(points)
    found = places.distances(torch.tensor([0, 0]), places, torch.tensor([1, 2]))
    # the spec's metres are of a radius of 6,371,000
    assert (found * 6_371_000 / EARTH).tolist() == pytest.approx([85.180, 111.195], abs=5e-4)
    released = [geo.haversine(points[0].numpy(), points[i].numpy()) for i in (1, 2)]
    assert released == pytest.approx([0.000667, 0.001000], abs=5e-7)


def test_haversine_is_the_arc_over_the_chord() -> None:
    rows = [[0, 179.9], [0, -179.9], [90, 0], [-90, 0], [51.5, -0.1], [51.5, 0.1]]
    degrees = torch.tensor(rows, dtype=torch.float64)
    one, other = torch.triu_indices(len(degrees), len(degrees), 1)
    chord = (sphere(degrees)[one] - sphere(degrees)[other]).norm(dim=1)
    arc = 2 * EARTH * (chord / 2 / EARTH).clamp(max=1).asin()
    assert torch.allclose(haversine(degrees[one], degrees[other]), arc, rtol=0, atol=0.2)  # at antipodes asin is blunt
    assert float(arc[0]) == pytest.approx(math.radians(0.2) * EARTH, rel=1e-6)  # across the date line


def test_planes_and_areas() -> None:
    places = Places(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]), "metres", torch.tensor([0, 0, 1]))
    rows = torch.tensor([0, 0])
    assert places.distances(rows, places, torch.tensor([1, 2])).tolist() == [5.0, math.inf]
    assert places.take(torch.tensor([2])).areas.tolist() == [1]
    walk = Places(torch.tensor([[1.0], [4.0]]), "metres")
    assert walk.distances(torch.tensor([0]), walk, torch.tensor([1])).tolist() == [3.0]
    assert walk.coordinates.dtype == torch.float64


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([100.0, 40.0], r"row 1: latitude 100, longitude 40.*Are the two swapped\?"),
        ([40.0, 181.0], r"row 1: latitude 40, longitude 181: wants -90 to 90 and -180 to 180 degrees"),
        ([math.nan, 0.0], "row 1: coordinates .* are no numbers"),
        ([5_800_000.0, 300_000.0], r"Coordinates in metres \(UTM\) want units: metres"),
    ],
)
def test_wrong_ranges_name_the_row(row: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Places(torch.tensor([[0.0, 0.0], row]))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="wants 'degrees' or 'metres'"):
        Places(torch.zeros(1, 2), "feet")
    with pytest.raises(ValueError, match=r"wants coordinates \(N, \(2,\)\), got \(1, 3\)"):
        Places(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"2 coordinates and areas of shape \(1,\)"):
        Places(torch.zeros(2, 2), "metres", torch.zeros(1))
    assert np.isfinite(Places(torch.zeros(0, 2)).points()).all()
