"""Where things are: coordinates, what is far from what, and what is too far to compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

EARTH = 6_371_008.8
"""Mean radius of the earth in metres (IUGG)."""

Units = Literal["degrees", "metres"]


@dataclass(frozen=True)
class Places:
    """Coordinates of N things.

    Args:
        coordinates: (N, 2) latitude and longitude in degrees; or (N, 1 to 3) metres in a plane or in space. Kept in
            float64: a float32 degree of longitude is known to some metres only.
        units: "degrees" or "metres".
        areas: (N,) int64: coordinates of two areas have nothing to do with each other (scenes with an origin each,
            walks through a house). None = one area.

    Raises:
        ValueError: coordinates that are no numbers, latitudes beyond 90 or longitudes beyond 180 degrees; names the
            row, and says so where the two seem to be swapped.

    Example:
        >>> places = Places(torch.tensor([[40.0, -75.0], [40.001, -75.0]]))
        >>> round(float(places.distances(torch.tensor([0]), places, torch.tensor([1]))), 2)
        111.2
    """

    coordinates: Tensor
    units: Units = "degrees"
    areas: Tensor | None = None

    def __post_init__(self) -> None:
        given = self.coordinates
        widths = {"degrees": (2,), "metres": (1, 2, 3)}
        if self.units not in widths:
            raise ValueError(f"Places(units='{self.units}'): wants 'degrees' or 'metres'.")
        if given.ndim != 2 or given.shape[1] not in widths[self.units]:
            raise ValueError(f"Places wants coordinates (N, {widths[self.units]}), got {tuple(given.shape)}.")
        if self.areas is not None and self.areas.shape != given.shape[:1]:
            raise ValueError(f"Places got {len(given)} coordinates and areas of shape {tuple(self.areas.shape)}.")
        object.__setattr__(self, "coordinates", given.double())
        for row in self._wrong().nonzero()[:1, 0].tolist():
            raise ValueError(f"row {row}: {what_is_wrong(self.coordinates[row].tolist(), self.units)}")

    def __len__(self) -> int:
        return len(self.coordinates)

    def take(self, rows: Tensor) -> Places:
        """The places of ``rows`` (n,), in that order."""
        return Places(self.coordinates[rows], self.units, None if self.areas is None else self.areas[rows])

    def points(self) -> Tensor:
        """(N, 1 to 3) metres: straight lines between them rank things as distances on the ground do.

        Degrees become points of a sphere: what is near through the ground is near on it, at the date line too.
        """
        return sphere(self.coordinates) if self.units == "degrees" else self.coordinates

    def separated(self) -> tuple[Tensor, float]:
        """Points with one more axis, on which areas lie apart, and a length that nothing within an area exceeds.

        A tree of them that is asked for what is nearer than that length never looks into another area.
        """
        points = self.points()
        if self.areas is None or not len(points):
            return points, float("inf")
        limit = 2 * float((points.max(0).values - points.min(0).values).norm()) + 1
        code = self.areas.unique(return_inverse=True)[1]
        return torch.cat([points, 2 * limit * code[:, None].double()], dim=1), limit

    def distances(self, rows: Tensor, others: Places, other_rows: Tensor) -> Tensor:
        """(n,) float64 metres between ``rows`` (n,) and ``other_rows`` (n,) of ``others``; infinite between areas."""
        here, there = self.coordinates[rows], others.coordinates[other_rows]
        metres = haversine(here, there) if self.units == "degrees" else (here - there).norm(dim=1)
        if self.areas is None or others.areas is None:
            return metres
        return metres.where(self.areas[rows] == others.areas[other_rows], float("inf"))

    def _wrong(self) -> Tensor:
        """(N,) bool."""
        wrong = ~torch.isfinite(self.coordinates).all(1)
        if self.units == "degrees":
            wrong |= (self.coordinates.abs() > torch.tensor([90.0, 180.0])).any(1)
        return wrong


def what_is_wrong(coordinates: list[float], units: Units) -> str | None:
    """Why these are no coordinates; None where they are."""
    if not all(abs(value) < float("inf") for value in coordinates):  # NaN too
        return f"coordinates {coordinates} are no numbers."
    if units == "metres" or (abs(coordinates[0]) <= 90 and abs(coordinates[1]) <= 180):
        return None
    latitude, longitude = coordinates
    said = f"latitude {latitude:g}, longitude {longitude:g}: wants -90 to 90 and -180 to 180 degrees."
    if max(map(abs, coordinates)) > 360:
        return f"{said} Coordinates in metres (UTM) want units: metres."
    return f"{said} Are the two swapped?" if abs(longitude) <= 90 and abs(latitude) <= 180 else said


def haversine(here: Tensor, there: Tensor) -> Tensor:
    """(n,) metres on the sphere between latitudes and longitudes (n, 2) in degrees; sines are of radians."""
    one, other = torch.deg2rad(here.double()), torch.deg2rad(there.double())
    half = torch.sin((other - one) / 2) ** 2  # (n, 2)
    inside = half[:, 0] + one[:, 0].cos() * other[:, 0].cos() * half[:, 1]
    return 2 * EARTH * inside.clamp(0, 1).sqrt().asin()


def sphere(degrees: Tensor) -> Tensor:
    """(N, 3) metres from the centre of the earth, of latitudes and longitudes (N, 2) in degrees."""
    latitude, longitude = torch.deg2rad(degrees.double()).unbind(1)
    flat = latitude.cos()
    return EARTH * torch.stack([flat * longitude.cos(), flat * longitude.sin(), latitude.sin()], dim=1)
