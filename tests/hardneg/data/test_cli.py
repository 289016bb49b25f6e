"""`hardneg data make-triplets` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hardneg.cli import main
from tests.composed import write_words

NAMES = [f"{i}.png" for i in range(12)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = ["file,caption", *(f"{name},a thing with number {name[:-4]}" for name in NAMES)]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).standard_normal((12, 4), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMAND = ["data", "make-triplets", "--captions=captions.csv", "--features=vectors.npy", "--out=made.jsonl"]
WINDOW = ["--first-rank=2", "--last-rank=5"]


def made(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "made.jsonl").read_text().splitlines()]


def test_one_for_each_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, *WINDOW]) == 0
    assert "12 triplets, targets of ranks 2 to 5" in capsys.readouterr().out
    assert [each["reference"] for each in made(folder)] == NAMES
    assert all(len(each["text"]) == 2 and each["target"] != each["reference"] for each in made(folder))


def test_real_references_other_templates_and_names(folder: Path) -> None:
    (folder / "train.csv").write_text("reference,target\n3.png,4.png\n5.png,6.png\n")
    (folder / "names.csv").write_text("\n".join(["file", *reversed(NAMES)]) + "\n")
    options = ["--references=train.csv", "--template={target}", "--names=names.csv"]
    assert main([*COMMAND, *WINDOW, *options]) == 0
    assert [each["reference"] for each in made(folder)] == ["5.png", "3.png"]
    assert all(each["text"] == [f"a thing with number {each['target'][:-4]}"] for each in made(folder))


def test_long_texts_become_the_targets_caption(folder: Path) -> None:
    write_words(folder / "words")
    assert main([*COMMAND, *WINDOW, "--tokenizer=words", "--max-tokens=12"]) == 0
    assert all(len(each["text"]) == 2 for each in made(folder))  # "b instead of a": 12 words; "Unlike a, I want b": 14
    assert all(each["text"][1] == f"a thing with number {each['target'][:-4]}" for each in made(folder))


def test_a_window_that_is_too_wide_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(COMMAND) == 1
    assert "last_rank below the 12 pictures there are" in capsys.readouterr().err
    assert not (folder / "made.jsonl").exists()
