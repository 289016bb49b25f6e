"""Sample4Geo as published: its shuffle with Python's generator, its haversine of degrees, its University-1652 junk."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def shuffle(
    ids: Sequence[int], near: Mapping[int, Sequence[int]] | None, size: int, select: int, span: int, seed: int
) -> list[list[int]]:
    """Batches of distinct ids, as CVACT's data set makes them; what fills no batch is lost."""
    random.seed(seed)
    pool = list(ids)
    random.shuffle(pool)
    used: set[int] = set()
    batches: list[list[int]] = []
    batch: list[int] = []
    fails = 0
    while pool and fails < 1024:
        anchor = pool.pop(0)
        if anchor in used:
            fails += 1
            continue
        used.add(anchor)
        batch.append(anchor)
        fails = 0
        if near is not None and len(batch) < size:
            listed = list(near[anchor][:span])
            far = listed[select // 2 :]
            random.shuffle(far)
            for other in listed[: select // 2] + far[: select // 2]:
                if len(batch) >= size:
                    break
                if other not in used:
                    used.add(other)
                    batch.append(other)
        if len(batch) >= size:
            batches.append(batch)
            batch = []
    return batches


def haversine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """On the unit sphere, of whatever is handed in: the released code hands in degrees."""
    half = np.sin((other - one) / 2) ** 2
    return float(2 * np.arcsin(np.sqrt(half[0] + np.cos(one[0]) * np.cos(other[0]) * half[1])))


def nearest(points: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """(N, k) by all N x N distances on the ground, itself left out; latitudes and longitudes in degrees."""
    radians = np.radians(points)
    distances = np.array([[haversine(one, other) for other in radians] for one in radians])
    np.fill_diagonal(distances, np.inf)
    return distances.argsort(axis=1, kind="stable")[:, :k]
