"""A run's folder as training leaves it, small and made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

HEAD = "epoch,step,train/loss,train/hardness_mean,train/hardness_max,train/dropped/positive,train/dropped/gist"


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """Write metrics.csv, negatives.jsonl and run.json into a folder."""

    def make(folder: Path, text: str = "a text", steps: int = 6, directions: Sequence[str] = ()) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        head = HEAD + ",train/dropped_share,train/empty_rows,val/nDCG@10"
        for direction in directions:  # two directions: their columns stand under their names
            head += "".join(f",train/{direction}/{name}" for name in ("hardness_mean", "hardness_max", "empty_rows"))
        rows = [f"0,{s},{2 / (s + 1)},{0.3 - s / 50},{0.6 - s / 30},4,{s % 3},0.1,0," for s in range(steps)]
        rows = [row + ",0.2,0.5,1" * len(directions) for row in rows]
        (folder / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")
        records = [
            {
                "step": step,
                "epoch": 0,
                "direction": (directions or ("query_to_document",))[0],
                "anchor": f"{text}, anchor {number}",
                "positive": {"text": f"{text}, right", "score": 0.5 + step / 100},
                "negatives": [
                    {"text": f"{text}, wrong {n}", "score": 0.6 - n / 10, "origin": "in_batch"} for n in (0, 1)
                ],
            }
            for step in range(0, steps, 2)
            for number in (step, step + 1)
        ]
        (folder / "negatives.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / "run.json").write_text(json.dumps({"loss": f"InfoNCE({text})"}))
        return folder

    return make


@pytest.fixture
def make_evaluation() -> Callable[..., dict[str, Any]]:
    """One evaluation of three queries as evaluation.json holds it, from the rank of each query's right document."""

    def make(name: str, ranks: Sequence[int | None], text: str = "a text", **changes: Any) -> dict[str, Any]:
        values = [0.0 if rank is None else 1.0 / rank for rank in ranks]
        names = [f"q{at}" for at in range(len(ranks))]
        queries = [
            {
                "name": query,
                "text": f"{text}, {query}",
                "rank": rank,
                "relevant": "right",
                "top": [
                    {
                        "document": "right" if rank == place else "wrong",
                        "score": 1 - place / 10,
                        "grade": int(rank == place),
                    }
                    for place in range(1, 6)
                ],
            }
            for query, rank in zip(names, ranks, strict=True)
        ]
        return {
            "name": name,
            "split": "dev",
            "means": {"MRR@10": sum(values) / len(values)},
            "query_names": names,
            "by_query": {"MRR@10": values},
            "queries": queries,
            "documents": {"right": f"{text}, the right document", "wrong": f"{text}, a wrong document"},
            "seconds": None,
            "step": None,
        } | changes

    return make


@pytest.fixture
def write_evaluations() -> Callable[..., None]:
    """Write evaluations into a folder's evaluation.json."""

    def write(folder: Path, *evaluations: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps({"evaluations": evaluations}))

    return write
