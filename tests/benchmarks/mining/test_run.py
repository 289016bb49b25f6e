"""The mining benchmark keeps what it has measured, asks for what is missing, and counts agreement right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.mining import run

CASE = {"queries": 100, "rows": 3000, "dim": 16, "threads": 1}
HNSW = "FaissIndex HNSW32"


def line(seconds: dict[str, float], here: str = "here", **more: Any) -> dict[str, Any]:
    agreement = dict.fromkeys(seconds, 1.0)
    return {"setup": here, "case": CASE, "load": 0.5, "seconds": seconds, "agreement": agreement, **more}


def test_only_missing_turns_are_run() -> None:
    names = [run.RAW, "mine", HNSW]
    assert run.turns_left([], CASE, names, 3) == [names, [run.RAW, "mine"], [run.RAW, "mine"]]
    lines = [line({run.RAW: 1.0, "mine": 0.5}), line({run.RAW: 1.0})]
    assert run.turns_left(lines, CASE, names, 3) == [names, ["mine"]]
    assert run.turns_left(lines, {**CASE, "dim": 32}, names, 1) == [names]
    done = [*lines, line({run.RAW: 2.0, "mine": 0.5, HNSW: 9.0}), line({run.RAW: 2.0, "mine": 0.5})]
    assert run.turns_left(done, CASE, names, 3) == []


def test_factors_are_taken_within_a_turn_and_other_machines_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "setup", lambda threads: "here")
    lines = [
        line({run.RAW: 1.0, "mine": 0.5}),
        line({run.RAW: 10.0, "mine": 7.0}),  # a disturbed turn disturbs both
        line({run.RAW: 2.0}),
        line({run.RAW: 100.0, "mine": 1.0}, here="elsewhere"),
        {"setup": "here", "case": CASE, "load": 3.0, "megabytes": {"mine": 91.4}},
        {"setup": "here", "case": CASE, "load": 3.0, "failed": {HNSW: "no memory"}},
    ]
    text = run.table(lines, 1)
    assert "| 100 | 3,000 | 16 | mine | 2 | 3.75 | 0.60 | 91 | 1.00000 |" in text
    assert "| 100 | 3,000 | 16 | faiss.IndexFlatIP | 3 | 2.00 | 1.00 |  | 1.00000 |" in text
    assert f"| {HNSW} | 0 | not run: no memory | | | |" in text
    assert "Load meanwhile: 0.5 to 3.0" in text


def test_a_line_that_was_cut_off_is_left_out_and_forgetting_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "turns.jsonl"
    path.write_text(json.dumps(line({run.RAW: 1.0, "mine": 0.5})) + '\n{"setup": "here", "ca')
    assert len(run.read(path)) == 1
    run.forget(path, "here", [CASE], ["mine"])
    assert [one["seconds"] for one in run.read(path)] == [{run.RAW: 1.0}]
    run.forget(path, "here", [CASE], [run.RAW])
    assert run.read(path) == []


def test_a_peer_that_would_not_fit_is_skipped_with_its_reason() -> None:
    huge = {**CASE, "queries": 10**6, "rows": 10**9}
    assert run.too_large("mine", huge) is None
    assert "GB for all scores at once" in (run.too_large("sentence-transformers", huge) or "")
    assert run.too_large("sentence-transformers", CASE) is None


def test_all_exact_methods_agree_and_a_wrong_answer_does_not() -> None:
    pytest.importorskip("faiss")
    queries, corpus = run.embeddings(100, 3000, 16)
    exact = run.faiss_flat(queries, corpus)
    for name in ("torch.matmul + topk", "TorchIndex", "mine", "FlagEmbedding's way"):
        assert run.agreement(name, run.METHODS[name](queries, corpus), queries, corpus, exact) == 1.0
    wrong = exact.copy()
    wrong[:, 0] = 2999 - np.arange(100)
    assert run.agreement("TorchIndex", wrong, queries, corpus, exact) == pytest.approx(1 - 1 / run.K)
    mined = run.our_mine(queries, corpus[np.arange(3000)[::-1]])
    assert run.agreement("mine", mined, queries, corpus, exact) < 0.5
