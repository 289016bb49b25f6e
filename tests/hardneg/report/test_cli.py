from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from hardneg.report import cli


def test_writes_the_page_and_says_where(
    tmp_path: Path, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    run = make_run(tmp_path / "run")
    cli.run(parser.parse_args([str(run), "--title", "My run", "--out", str(tmp_path / "page.html")]))
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert "<h1>My run</h1>" in (tmp_path / "page.html").read_text()


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    with pytest.raises(
        FileNotFoundError, match=r"is no folder. Give the folder of a run, such as lightning_logs/version_0."
    ):
        cli.run(parser.parse_args([str(tmp_path / "nowhere")]))
