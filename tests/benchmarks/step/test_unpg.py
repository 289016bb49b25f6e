"""UNPG's one column is the published loss, in a part of its memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.step import unpg
from benchmarks.step.measure import peak_megabytes
from benchmarks.step.unpg import batch, pooled, published


def test_values_and_gradients_are_equal() -> None:
    found = []
    for step in (partial(pooled, pairs=True), published):
        faces, centres, labels = batch(24, 40, 16, seed=1)
        value = step(faces, centres, labels)
        found.append((float(value), faces.grad, centres.grad))
    (one, faces, centres), (two, other_faces, other_centres) = found
    assert one == pytest.approx(two, abs=1e-4)
    torch.testing.assert_close(faces, other_faces, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(centres, other_centres, rtol=1e-3, atol=1e-5)
    assert float(pooled(*batch(24, 40, 16, seed=1), pairs=False)) < one


def test_memory_does_not_grow_with_pairs_times_faces() -> None:
    made = batch(96, 40, 16, seed=1)
    assert peak_megabytes(partial(pooled, *made, pairs=True)) < 0.3 * peak_megabytes(partial(published, *made))


def test_the_table(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(unpg, "FACES", 8)
    monkeypatch.setattr(unpg, "CLASSES", 12)
    monkeypatch.setattr("sys.argv", ["unpg", "--repeats", "1", "--out", str(tmp_path / "unpg.md")])
    threads = torch.get_num_threads()
    unpg.main()
    torch.set_num_threads(threads)
    assert "| UNPG, a column for each pair | " in (tmp_path / "unpg.md").read_text()
