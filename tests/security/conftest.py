"""Fixtures of payloads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The file that a payload touches; the test fails if it is there at its end."""
    place = tmp_path / "the payload ran"
    yield place
    assert not place.exists(), "the payload ran"
