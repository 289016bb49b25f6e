"""The commands of the page name configs and options that exist, and its python runs."""

from __future__ import annotations

import argparse
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from hardneg import encoders
from hardneg.audit.cli import add_arguments
from hardneg.audit.flips import check_arguments
from hardneg.cli import configs_folder
from tests.distributed.tiny import TinyEncoder

PAGE = Path(__file__).parents[2] / "docs" / "upgrading.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_commands_name_what_exists() -> None:
    commands = [shlex.split(line) for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]
    kinds = [command[1] for command in commands]
    assert kinds.count("audit") == 3
    assert kinds.count("fit") == 3
    for command in commands:
        assert command[0] == "hardneg"
        if command[1] == "audit":
            parser = argparse.ArgumentParser(exit_on_error=False)
            add_arguments(parser)
            check_arguments(parser.parse_args(command[2:]))
        else:
            named = [value for option, value in pairwise(command) if option == "--config"]
            assert named
            assert all((configs_folder() / name).exists() for name in named)


def test_weights_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(encoders, "TextEncoder", lambda folder: TinyEncoder(seed=int("new" in folder)))
    monkeypatch.setattr(TinyEncoder, "save_pretrained", lambda self, folder: saved.append((self, folder)))
    (code,) = blocks("python")
    exec(compile(code, "docs/upgrading.md", "exec"), {})
    ((half, folder),) = saved
    assert folder == "runs/half"
    first, second = (TinyEncoder(seed=seed).out.bias.detach() for seed in (0, 1))
    torch.testing.assert_close(half.out.bias.detach(), (first + second) / 2)
