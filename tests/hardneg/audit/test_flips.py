"""`hardneg audit --against` counts what a new model breaks, guards a pipeline, and shows the worst."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from hardneg.audit.cli import add_arguments, run
from hardneg.audit.flips import as_html
from hardneg.encoders import ImageEncoder, IRResNet, TextEncoder
from hardneg.mining.inputs import read_beir
from tests.faces import write_table


def hardneg_audit(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(one) for one in arguments]))


@pytest.fixture
def models(tiny_model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints of one model, whose words lie elsewhere."""
    from safetensors.torch import load_file, save_file

    new = tmp_path / "new_model"
    shutil.copytree(tiny_model, new)
    for folder, seed in ((tiny_model, 3), (new, 0)):
        (weights,) = folder.rglob("*.safetensors")
        draw = torch.Generator().manual_seed(seed)
        drawn = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in load_file(weights).items()}
        save_file(drawn, weights)
    return tiny_model, new


def ranks_by_hand(model: Path, folder: Path, split: str) -> Mapping[str, int]:
    """Rank of each query's best known document, one query at a time."""
    encoder, data = TextEncoder(str(model)), read_beir(str(folder), split)
    vectors = [normalize(encoder.embed(list(of), "query"), dim=1) for of in (data.queries, data.corpus)]
    scores = vectors[0] @ vectors[1].T
    found = {}
    for name, row, known in zip(data.query_names, scores, data.known.to_lists(), strict=True):
        best = max(float(row[one]) for one in known)
        found[name] = 1 + sum(float(score) > best for at, score in enumerate(row) if at not in known)
    return found


def test_flips_of_two_checkpoints(models, sample_folder: Path, tmp_path: Path, capsys) -> None:
    old, new = models
    report = tmp_path / "flips.json"
    common = ("--checkpoint", new, "--against", old, "--folder", sample_folder, "--split", "train")
    common = (*common, "--cache", tmp_path / "cache", "--cutoffs", 1, 3, "--json", report)
    assert hardneg_audit(*common, "--html", tmp_path / "flips.html") == 0
    found = json.loads(report.read_text())
    before, after = (ranks_by_hand(model, sample_folder, "train") for model in models)
    assert found["things"] == len(before) == 6
    for k in (1, 3):
        measure = found["flips"][f"found@{k}"]
        assert measure["old"] == pytest.approx(sum(rank <= k for rank in before.values()) / 6)
        assert measure["new"] == pytest.approx(sum(rank <= k for rank in after.values()) / 6)
        assert measure["rate"] == pytest.approx(sum(before[q] <= k < after[q] for q in before) / 6)
        assert measure["low"] <= measure["rate"] <= measure["high"]
    rate = found["flips"]["found@1"]["rate"]
    assert rate > 0, "the fixture must flip something, or this test tells nothing"
    assert 0 <= found["cross"]["found@1"] <= 1
    text = capsys.readouterr().out
    assert f"negative flips {rate:.1%}" in text
    assert "new queries against the old index: found@1" in text
    page = (tmp_path / "flips.html").read_text()
    assert "where lives the" in page
    assert "http" not in page.replace("http-equiv", "")
    assert hardneg_audit(*common, "--max-negative-flip-rate", rate / 2) == 1
    assert f"FAILED: the negative flip rate of found@1 {rate:.3f} is above" in capsys.readouterr().out
    assert hardneg_audit(*common, "--max-negative-flip-rate", 1) == 0


def test_flips_of_faces(tmp_path: Path, capsys) -> None:
    faces = write_table(tmp_path / "faces")
    for seed, name in enumerate(("old", "new")):
        torch.manual_seed(seed)
        ImageEncoder(IRResNet(18, 16, 1, width=4), dim=8).save_pretrained(tmp_path / name)
    report = tmp_path / "flips.json"
    common = ("--checkpoint", tmp_path / "new", "--against", tmp_path / "old", "--folder", faces, "--far", 0.25)
    common = (*common, "--size", 16, "--pairs", faces / "pairs_test.csv", "--cache", tmp_path / "cache")
    assert hardneg_audit(*common, "--json", report, "--html", tmp_path / "flips.html") == 0
    found = json.loads(report.read_text())
    assert (found["kind"], found["things"]) == ("pairs", 28)
    genuine, impostor = (found["flips"][f"{kind} pairs, FAR 0.25"] for kind in ("genuine", "impostor"))
    assert impostor["old"] >= 0.75
    assert impostor["new"] >= 0.75
    assert genuine["new"] - genuine["old"] == pytest.approx(genuine["mended"] - genuine["rate"])
    assert found["cross"] is None
    assert "genuine pairs, FAR 0.25: right" in capsys.readouterr().out
    if genuine["rate"] + impostor["rate"]:
        assert "similarity" in (tmp_path / "flips.html").read_text()


def test_hostile_text_is_escaped() -> None:
    measure = {"old": 1.0, "new": 0.0, "rate": 1.0, "mended": 0.0, "relative": None, "low": 0.1, "high": 1.0}
    report = {"old": "<b>", "new": "b", "things": 1, "kind": "queries", "folder": "f", "cross": None}
    example = dict.fromkeys(("asked", "wanted", "instead", "change"), "<script>alert(1)</script>")
    page = as_html(report | {"flips": {"found@1": measure}}, [example])
    assert "<script" not in page
    assert "&lt;b&gt;" in page


def test_wrong_uses_are_told(models, sample_folder: Path, tmp_path: Path) -> None:
    old, new = models
    with pytest.raises(ValueError, match="Give a table of negatives, or two models: --checkpoint NEW --against OLD"):
        hardneg_audit()
    with pytest.raises(ValueError, match="wants --checkpoint NEW and --folder"):
        hardneg_audit("--against", old)
    with pytest.raises(ValueError, match=r"not a table; leave t\.parquet out"):
        hardneg_audit("t.parquet", "--against", old)
    with pytest.raises(ValueError, match="--max-negative-flip-rate and --far compare two models: give --against"):
        hardneg_audit("t.parquet", "--far", 0.1)
    both = ("--checkpoint", new, "--against", old, "--folder", sample_folder)
    with pytest.raises(ValueError, match="--guide is about a table of negatives"):
        hardneg_audit(*both, "--guide", old)
    with pytest.raises(ValueError, match=r"--cutoffs \[0\]: ranks, so at least 1"):
        hardneg_audit(*both, "--cutoffs", 0)
    with pytest.raises(ValueError, match="has the weights of --checkpoint: nothing can flip"):
        hardneg_audit("--checkpoint", old, "--against", old, "--folder", sample_folder)
