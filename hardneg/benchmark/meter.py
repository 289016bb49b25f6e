"""What a training cost and how it went, step by step; and the end of a budget in seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import pytorch_lightning as pl

WATCHED = ("loss", "hardness_mean", "hardness_max", "dropped_share", "empty_rows", "waiting_share")
"""Logged under ``train/`` by every module of ours, for each direction by itself where there are two; the last one by
the callback `MeasureWaiting`, where a suite has it."""

COUNTED = ("steps", "samples", "seconds_before_training", "refresh_seconds", "measured_at", "means")


@dataclass(frozen=True)
class Point:
    """One value of a curve: optimiser steps, seconds of training and anchors seen before it."""

    step: int
    seconds: float
    samples: int
    name: str
    value: float


class Meter(pl.Callback):
    """Counts steps, seconds and anchors of the fits of a cell, without its evaluations.

    The clock runs from the moment a fit is set up, so that what a guide, a store or a refresh costs before and between
    steps is in it. With a budget in seconds the learning rate follows the clock instead of the steps: it rises and
    falls over the share of the budget that is spent, as it would over steps.
    """

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.steps = 0
        self.samples = 0
        self.seconds_before_training = 0.0
        self.refresh_seconds = 0.0
        self.measured_at = -1  # step of the last evaluation on dev
        self.means: Mapping[str, float] = {}
        self._seconds = 0.0
        self._since: float | None = None
        self._phase = _Phase()

    # ---- for whoever trains ------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def begin(self, seconds: float | None) -> None:
        """Start the clock of a phase; with a budget of ``seconds`` of its own."""
        self._phase = _Phase(self.steps, self.seconds, seconds)
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock: what follows is not training."""
        self._seconds, self._since = self.seconds, None

    def resume(self) -> None:
        """Go on counting."""
        if self._since is None:
            self._since = time.perf_counter()

    def ready(self) -> None:
        """Before a phase's first step: what came until now was preparation."""
        if not self._phase.training:
            self._phase.training = True
            self.seconds_before_training += self.seconds - self._phase.began

    def trained(self, step: int, samples: int, values: Mapping[str, float]) -> None:
        """Count a batch: optimiser steps of this phase, anchors of the batch, and what was logged."""
        self.steps = self._phase.steps + step
        self.samples += samples
        now = self.seconds
        self.points += [Point(self.steps, now, self.samples, name, value) for name, value in values.items()]

    def state(self) -> dict[str, Any]:
        """All that was counted, as plain values; the clock must stand."""
        plain = {name: getattr(self, name) for name in COUNTED}
        return plain | {"seconds": self.seconds, "points": [list(astuple(point)) for point in self.points]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Count on from another meter's `state`."""
        for name in COUNTED:
            setattr(self, name, state[name])
        self._seconds = state["seconds"]
        self.points = [Point(*values) for values in state["points"]]

    def measured(self, means: Mapping[str, float]) -> None:
        """Remember an evaluation on dev; the clock must stand."""
        if self.measured_at == self.steps:
            return
        self.measured_at, self.means = self.steps, dict(means)
        now = self.seconds
        self.points += [Point(self.steps, now, self.samples, f"dev/{name}", value) for name, value in means.items()]

    @property
    def spent(self) -> float:
        """Share of this phase's budget in seconds that is gone; 0 where it has none."""
        budget = self._phase.seconds
        return 0.0 if budget is None else min((self.seconds - self._phase.began) / budget, 1.0)

    # ---- as Lightning's callback ---------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._phase.training:  # what another cell spent on the guide's vectors was spent on this one too
            self._seconds += float(getattr(pl_module, "guide_seconds_saved", 0.0))
        self.ready()
        if self._phase.seconds is not None:
            factor = rate_factor(
                self.spent, getattr(pl_module, "warmup_share", 0.0), getattr(pl_module, "schedule", "")
            )
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group.get("initial_lr", group["lr"]) * factor

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained(trainer.global_step, len(batch), watched(trainer.callback_metrics))
        if self.spent >= 1:
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.measured(pl_module.measures.means)  # type: ignore[union-attr, arg-type]
        if trainer.state.fn == "fit":
            self.resume()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.pause()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if callback is not self:
                self.refresh_seconds += float(getattr(callback, "seconds", 0.0))


@dataclass
class _Phase:
    steps: int = 0
    began: float = 0.0
    seconds: float | None = None
    training: bool = False


def watched(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The values of `WATCHED` among what a trainer logged, means over directions."""
    found: dict[str, list[float]] = {}
    for name, value in metrics.items():
        parts = name.split("/")
        if parts[0] == "train" and parts[-1] in WATCHED:
            found.setdefault(parts[-1], []).append(float(value))
    return {name: sum(values) / len(values) for name, values in found.items()}


def rate_factor(spent: float, warmup_share: float, schedule: str) -> float:
    """What the learning rate is multiplied with when ``spent``, in [0, 1], of the budget is gone."""
    if spent < warmup_share:
        return max(spent, 1e-3) / warmup_share
    return 1.0 if schedule == "constant" else (1.0 - spent) / max(1.0 - warmup_share, 1e-9)
