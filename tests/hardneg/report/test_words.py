from __future__ import annotations

import pytest

from hardneg.report.words import Scale, duration, signed, spoken


def test_scales_hold_their_values() -> None:
    scale = Scale.of([-0.31, 0.55, float("nan")], 0.2)
    assert (scale.low, scale.high) == pytest.approx((-0.4, 0.6))
    assert scale.at(0.1) == "50.00%"
    assert Scale.of([0.4, 0.4], 0.2).high > 0.4
    assert Scale.of([], 0.2).ticks == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_numbers_read_well() -> None:
    assert [duration(seconds) for seconds in (None, 0.2, 59, 420, 442, 7290)] == [
        "–",
        "0 s",
        "59 s",
        "7 min",
        "7 min 22 s",
        "2 h 1 min",
    ]
    assert [signed(value) for value in (0.1234, -0.1234, 0.0001, -0.0001)] == ["+0.123", "−0.123", "0.000", "0.000"]
    assert [spoken(word) for word in ("in_batch", "query_to_document")] == ["in-batch", "query to document"]
