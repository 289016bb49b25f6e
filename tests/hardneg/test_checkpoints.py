"""Checkpoints: whole after any kill, and refused by name when they are not."""

from __future__ import annotations

import errno
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hardneg.checkpoints import NEEDED, WholeCheckpointIO
from hardneg.lightning_cli import HardnegCLI
from miners.transaction import Damaged
from tests.faults import crashes, failing, steps
from tests.security.payloads import Pickled

IO = WholeCheckpointIO()


def content(step: int) -> dict[str, Any]:
    return dict.fromkeys(NEEDED, 0) | {"global_step": step, "state_dict": {"weight": torch.full((500,), float(step))}}


def test_a_kill_at_any_step_leaves_the_checkpoint_of_before_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(content(1), path)
    found = set()
    for _ in crashes(lambda: IO.save_checkpoint(content(2), path)):
        loaded = IO.load_checkpoint(path)
        assert bool((loaded["state_dict"]["weight"] == loaded["global_step"]).all())
        found.add(loaded["global_step"])
    assert found == {1, 2}
    assert [name for name in os.listdir(tmp_path) if name.startswith(".last")]  # of killed writers
    old = time.time() - 700
    for left in tmp_path.glob(".last*"):
        os.utime(left, (old, old))
    IO.load_checkpoint(path)
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_nothing_is_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    IO.save_checkpoint(content(1), tmp_path / "a" / "last.ckpt")
    assert IO.load_checkpoint(tmp_path / "a" / "last.ckpt")["global_step"] == 1


def test_a_full_disk_keeps_the_checkpoint_of_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(content(1), path)
    for at in range(1, steps(lambda: IO.save_checkpoint(content(1), path)) + 1):
        try:
            with failing(at, errno.ENOSPC):
                IO.save_checkpoint(content(2), path)
        except OSError as error:
            assert "last.ckpt" in str(error)  # noqa: PT017
            assert "no room on the disk" in str(error)  # noqa: PT017
        assert IO.load_checkpoint(path)["global_step"] in (1, 2)
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_broken_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    good, path = tmp_path / "before.ckpt", tmp_path / "last.ckpt"
    IO.save_checkpoint(content(1), good)
    whole = good.read_bytes()
    at = whole.index(torch.ones(500).numpy().tobytes())
    flipped = bytearray(whole)
    flipped[at + 77] ^= 1
    for broken, message in (
        (b"", "is empty"),
        (os.urandom(500), "is cut off, or no checkpoint"),
        (whole[: len(whole) // 2], "is cut off, or no checkpoint"),
        (bytes(flipped), "was changed or damaged: the checksum of '.*' in it does not fit"),
    ):
        path.write_bytes(broken)
        with pytest.raises(Damaged, match=rf"last.ckpt {message}.*--ckpt_path .*before.ckpt"):
            IO.load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(Damaged, match=r"last.ckpt is no checkpoint of a training: it lacks epoch"):
        IO.load_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(Damaged, match="it lacks state_dict"):
        IO.load_checkpoint(path)
    good.unlink()
    path.write_bytes(b"")
    with pytest.raises(Damaged, match="there is no whole checkpoint beside it"):
        IO.load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"none.ckpt: there is no such checkpoint"):
        IO.load_checkpoint(tmp_path / "none.ckpt")


def test_flips_are_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(content(1), path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            loaded = IO.load_checkpoint(path)
        except Damaged as error:
            assert "last.ckpt" in str(error)  # noqa: PT017
        else:
            assert bool((loaded["state_dict"]["weight"] == 1).all())
            assert loaded.keys() == content(1).keys()


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save(content(1) | {"state_dict": Pickled(mark)}, tmp_path / "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Pickled(mark)))
    with pytest.raises(Damaged, match=r"evil.ckpt holds more than data, of which nothing was run"):
        IO.load_checkpoint(tmp_path / "evil.ckpt")
    with pytest.raises(Damaged, match=r"plain.ckpt is cut off, or no checkpoint"):
        IO.load_checkpoint(tmp_path / "plain.ckpt")
    assert not mark.exists()


def test_every_fit_has_it(sample_folder: Path, tmp_path: Path) -> None:
    model = "--model=hardneg.modules.RetrievalModule", "--model.encoder=tests.distributed.tiny.TinyEncoder"
    data = "--data=datamodules.RetrievalData", f"--data.folder={sample_folder}"
    command = ["fit", *model, *data, "--trainer.accelerator=cpu", f"--folder={tmp_path}"]
    trainer = HardnegCLI.start(command[1:], run=False).trainer
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpointIO)
