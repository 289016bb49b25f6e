"""How the page says things: names, numbers, times and colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A common axis for dots: where a value lies on it, in per cent."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], step: float) -> Scale:
        """The range of the values, widened to whole steps."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = math.floor(min(finite) / step) * step, math.ceil(max(finite) / step) * step
        return cls(low, high if high > low else low + step)

    def at(self, value: float) -> str:
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%" if math.isfinite(value) else "0%"

    @property
    def ticks(self) -> list[float]:
        return [self.low + (self.high - self.low) * quarter / 4 for quarter in range(5)]


def run_colour(number: int) -> str:
    return f"run-{(number - 1) % 6 + 1}"


def signed(value: float, digits: int = 3) -> str:
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest if hours == 0 else 0, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


def count(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def spoken(word: str) -> str:
    """A name of the code as words: query_to_document -> query to document."""
    return "in-batch" if word == "in_batch" else word.replace("_", " ")
