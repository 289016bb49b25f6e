"""The benchmark of perpendicular negatives: its pairs, and a tiny run that can be taken up."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from benchmarks.perpendicular import run as benchmark


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Questions of three intents in the layout of BANKING77."""
    words = (["card", "lost", "block"], ["rate", "euro", "exchange"], ["pin", "forgot", "reset"])
    for split, number in (("train", 30), ("test", 12)):
        with gzip.open(tmp_path / f"{split}.jsonl.gz", "wt") as out:
            for row in range(number):
                text = " ".join([*words[row % 3][: 2 + row % 2], f"extra{row}", "please"])
                out.write(json.dumps({"uid": f"{split}-{row}", "text": text, "target_ind": [row % 3]}) + "\n")
    return tmp_path


def test_halves_share_no_word_and_lose_none() -> None:
    counts = torch.tensor([[1.0, 2, 0, 1, 3], [0, 0, 4, 0, 0]])
    first, second = benchmark.halves(counts, torch.Generator().manual_seed(1))
    assert torch.equal(first[0] + second[0], counts[0])
    assert not bool((first[0] * second[0]).any())
    assert torch.equal(first[1], counts[1])  # one word alone goes to both
    assert torch.equal(second[1], counts[1])


def test_a_tiny_run_is_taken_up(folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--folder", str(folder), "--steps", "3", "--batch-size", "8", "--dim", "4", "--seeds", "2"]
    arguments += ["--threads", str(torch.get_num_threads()), "--out", str(tmp_path / "out")]
    assert benchmark.main([*arguments, "--minutes", "0"]) == 0
    assert "20 runs are left" in capsys.readouterr().out
    assert benchmark.main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(benchmark.TEMPERATURES) * len(benchmark.CHAINS)
    assert all(0 <= row[name] <= 1 for row in rows for name in benchmark.MEASURES)
    text = (tmp_path / "out" / "table.md").read_text()
    assert all(text.count(f"| {chain} | ") == 2 for chain in benchmark.CHAINS)
    capsys.readouterr()
    assert benchmark.main(arguments) == 0
    assert "'seed':" not in capsys.readouterr().out  # nothing was left to do
    assert benchmark.main([*arguments, "--steps", "2", "--minutes", "0"]) == 0
    assert "20 runs are left" in capsys.readouterr().out  # those of three steps are others
    assert (tmp_path / "out" / "table.md").read_text() == text
    assert benchmark.main([*arguments, "--seeds", "1"]) == 0
    assert ", 1 seed(s)," in (tmp_path / "out" / "table.md").read_text()


def test_the_published_runs_are_those_of_the_defaults(tmp_path: Path, capsys) -> None:
    kept = Path(benchmark.__file__).parent
    (tmp_path / "runs.jsonl").write_text((kept / "runs.jsonl").read_text())
    assert benchmark.main(["--out", str(tmp_path), "--minutes", "0"]) == 0
    assert "runs are left" not in capsys.readouterr().out
    rows = [[line for line in (at / "table.md").read_text().splitlines() if "|" in line] for at in (kept, tmp_path)]
    assert rows[0] == rows[1]
