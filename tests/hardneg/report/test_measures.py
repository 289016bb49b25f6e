from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardneg.report.evaluation import read_evaluations
from hardneg.report.measures import Difference, difference


def test_differences_are_paired_by_query(
    tmp_path: Path, make_evaluation: Callable[..., dict[str, Any]], write_evaluations: Callable[..., None]
) -> None:
    after = make_evaluation("final", [1, 2, 4])
    after["query_names"], after["by_query"] = ["q2", "q1", "q0"], {"MRR@10": [0.25, 0.5, 1.0]}
    write_evaluations(tmp_path, make_evaluation("start", [2, 2, 2]), after)
    start, final = read_evaluations(tmp_path)
    found = difference(start, final, "MRR@10")
    assert found is not None
    assert found.mean == pytest.approx((0.5 + 0 - 0.25) / 3)
    assert found.half_width == pytest.approx(1.96 * 0.38188130791 / 3**0.5)  # sd of (0.5, 0, -0.25)
    assert found.verdict == ""


def test_a_difference_within_its_interval_is_no_news() -> None:
    assert [Difference(*pair).verdict for pair in ((0.1, 0.05), (-0.1, 0.05), (0.1, 0.1), (0.1, None))] == [
        "up",
        "down",
        "",
        "",
    ]
