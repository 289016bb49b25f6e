"""The how-to works: its files and commands, in its order, on csv files that it has never seen."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hardneg.cli import main
from tests.recordings import write_sensor_files

PAGE = Path(__file__).parents[2] / "docs" / "bring_your_own_sensors.md"
QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_a_folder_of_csv_files_becomes_an_encoder_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sensor_files(tmp_path / "sensors", trials=1, frames=400)
    (settings,) = blocks("yaml")
    (tmp_path / settings.splitlines()[0].removeprefix("# ")).write_text(settings)
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert [command.split()[:2] for command in commands] == [
        ["hardneg", "fit"],
        ["hardneg", "fit"],
        ["hardneg", "test"],
    ]
    for command in commands:
        (_, *arguments) = shlex.split(command)
        if arguments[0] == "fit":
            arguments += ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
        else:
            arguments = [str(next(Path().glob(part))) if "*" in part else part for part in arguments]
        assert main([*arguments, *QUICK]) == 0, command
    assert "test/accuracy" in capsys.readouterr().out
    for version in ("version_0", "version_1"):
        run = tmp_path / "runs" / "sensors" / version
        wanted = {"report.html", "confusion.svg", "map.svg", "model", "checkpoints"}
        assert wanted <= {path.name for path in run.iterdir()}
    (code,) = blocks("python")
    exec(compile(code, "docs/bring_your_own_sensors.md", "exec"), {})
