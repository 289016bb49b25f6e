"""The upgrade benchmark: its differences by hand, and a tiny run that can be taken up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.upgrade import run as benchmark
from tests.distributed.tiny import TinyEncoder
from tests.hardneg.modules.runs import write_data


class Kept(TinyEncoder):
    """A tiny encoder that can be written."""

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), Path(folder) / "weights.pt")


def kept(model: str, layers: int | None) -> TinyEncoder:
    encoder = Kept()
    if model != benchmark.MODEL:
        encoder.load_state_dict(torch.load(Path(model) / "weights.pt", weights_only=True))
    return encoder


def ranks(**of: list[int]) -> dict[tuple[int, str], np.ndarray]:
    """The same ranks for two seeds."""
    return {(seed, name): np.array(values) for seed in range(2) for name, values in of.items()}


def test_fewer_flips_and_recall_are_told_apart() -> None:
    rows = ranks(old=[1, 1, 1, 5], plain=[1, 5, 5, 1], distilled=[1, 1, 5, 1], unfocused=[1, 5, 5, 1])
    found = benchmark.differences(rows, [1])
    assert found["fewer flips", "distilled", 1].estimate.mean == pytest.approx(0.25)
    assert found["found", "distilled", 1].estimate.mean == pytest.approx(0.25)
    assert found["fewer flips", "unfocused", 1].estimate.mean == 0
    text = "\n".join(benchmark.table(rows, dict.fromkeys(benchmark.METHODS, 1.0), [1]))
    assert "| plain | 0.5000 | 0.5000 | 0.2500 | 1.33 | 1 |" in text
    assert "- distilled, flips@1: -0.2500" in text
    assert "- distilled, found@1: +0.2500" in text


def test_a_tiny_run_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(benchmark, "encoder", kept)
    monkeypatch.setattr(benchmark, "audited", lambda options: "said")
    arguments = ["--folder", str(write_data(tmp_path / "set")), "--steps", "6", "--batch-size", "8", "--seeds", "2"]
    arguments += ["--learning-rate", "0.02"]
    arguments += ["--threads", str(torch.get_num_threads()), "--work", str(tmp_path / "work"), "--out", str(tmp_path)]
    assert benchmark.main([*arguments, "--minutes", "0"]) == 0
    assert "8 runs are left" in capsys.readouterr().out
    assert benchmark.main(arguments) == 0
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")}
    assert set(rows) == {f"{seed}-{method}" for seed in range(2) for method in benchmark.METHODS}
    assert rows["0-old"]["ranks"] != rows["0-plain"]["ranks"]
    assert rows["0-distilled"]["ranks"] != rows["0-plain"]["ranks"]
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {method} | " in text for method in benchmark.METHODS)
    assert "said" in text
    capsys.readouterr()
    assert benchmark.main(arguments) == 0
    assert "seed 0," not in capsys.readouterr().out  # nothing was left to do
    with pytest.raises(ValueError, match=r"0-distilled.json was made with random=False, and True is asked for"):
        benchmark.main([*arguments, "--random"])
    with pytest.raises(ValueError, match=r"0-distilled.json was made with focus=5.0, and 2.0 is asked for"):
        benchmark.main([*arguments, "--focus", "2"])
    arguments += ["--random", "--out", str(tmp_path / "other"), "--work", str(tmp_path / "work other")]
    assert benchmark.main(arguments) == 0
    capsys.readouterr()
    (tmp_path / "other" / "runs" / "1-distilled.json").unlink()
    shutil.rmtree(tmp_path / "work other" / "1")  # the models are gone: the old one is trained again for its guide
    assert benchmark.main(arguments) == 0
    said = capsys.readouterr().out
    assert "seed 1, old" in said
    assert "seed 1, distilled" in said
    assert "seed 1, plain" not in said
