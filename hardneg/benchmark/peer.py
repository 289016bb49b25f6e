"""Other people's trainers in a suite: the same model, data, budget and evaluation, another fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from hardneg.benchmark.meter import Meter
from hardneg.instantiate import instantiate


class Peer(ABC):
    """Trains a module's encoder in place, where our own trainer would.

    The cell has instantiated module and data from the same overlays, seeded everything, and evaluates afterwards.
    """

    @abstractmethod
    def fit(self, module: Any, data: Any, steps: int, seed: int, meter: Meter, evaluate: Callable[[], None]) -> None:
        """Train ``steps`` optimiser steps.

        The meter's clock runs already. Call ``meter.ready()`` before the first step, ``meter.trained(step, anchors,
        {"loss": ...})`` after each, and ``evaluate()``, which stops the clock for its time, whenever a fit of ours
        would: it measures dev where a point is due and does nothing elsewhere, so after each step is right.

        Args:
            module: its ``encoder`` is trained, its ``loss`` and ``learning_rate`` say how.
            data: set up for "fit".
            steps: of the whole fit.
            seed: of orders and draws.
        """


def make_peer(spec: Mapping[str, Any]) -> Peer:
    """The peer that a chain names.

    Raises:
        ValueError: no such class, wrong arguments, or a class that is no `Peer`.
    """
    path, arguments = str(spec.get("class_path", "")), spec.get("init_args") or {}
    return instantiate(path, arguments, Peer, "peer")  # type: ignore[type-abstract]
