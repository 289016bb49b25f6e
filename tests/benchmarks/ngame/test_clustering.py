"""The forms that are timed against each other find the same clusters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ngame import clustering


@pytest.mark.parametrize(("rows", "clusters"), [(600, 64), (97, 8), (5, 4)])
def test_all_forms_find_the_same_clusters(rows: int, clusters: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((rows, 12))
    clustering.check(vectors, clusters, seed=1)


def test_clusters_too_large_for_the_cache_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miners.ngame.BLOCK_BYTES", 4 * 12 * 100)  # rows of 12 numbers: 100 of them fit
    clustering.check(np.random.default_rng(0).standard_normal((1001, 12)), 64, seed=1)


def test_another_clustering_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "ours", lambda vectors, *_: torch.arange(len(vectors)))
    with pytest.raises(SystemExit, match=r"balanced_clusters: [\d.]+ % of 50 rows"):
        clustering.check(np.random.default_rng(0).standard_normal((50, 4)), 8, seed=1)


def test_a_small_run_writes_its_table(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    out = tmp_path / "clustering.md"
    small = ["--compared", "500", "--rows", "300", "--dim", "8", "--threads", "1", "--repeats", "1", "--out", str(out)]
    clustering.main(small)
    page = out.read_text()
    assert page.count("| 500 x 8, K = 8 |") == 4
    assert "| 300 x 8, K = 4 | balanced_clusters |" in page
