"""A run that is killed and goes on is the run that was never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hardneg.modules import RetrievalModule
from tests.hardneg.modules.runs import fit, logs, newest_checkpoint, write_data

STEPS_AN_EPOCH = 7


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Every tensor and number of nested states, by path."""
    if isinstance(state, dict):
        return {key: value for name, part in state.items() for key, value in flat(part, f"{prefix}/{name}").items()}
    return {prefix: state}


def assert_same(first: RetrievalModule | dict[str, Any], second: RetrievalModule | dict[str, Any]) -> None:
    states = [flat(one if isinstance(one, dict) else one.state_dict()) for one in (first, second)]
    assert set(states[0]) == set(states[1])
    for name, value in states[0].items():
        same = torch.equal(value, states[1][name]) if isinstance(value, Tensor) else value == states[1][name]
        assert same, f"{name} differs"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "beir")


def start(**order: Any) -> int:
    """Fit in a process of its own; its exit status."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    text = json.dumps({name: str(value) if isinstance(value, Path) else value for name, value in order.items()})
    done = subprocess.run(
        [sys.executable, "-m", "tests.hardneg.modules.runs", text],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_a_killed_run_goes_on_exactly(data: Path, tmp_path: Path) -> None:
    """SIGKILL twice at random steps, with two loader workers drawing ahead: weights and logs are equal to the digit."""
    whole = fit(data, tmp_path / "whole", workers=2, every=None)
    broken = tmp_path / "broken"
    kills = sorted(random.Random(os.environ.get("HARDNEG_TEST_SEED")).sample(range(4, 3 * STEPS_AN_EPOCH), 2))
    for kill_at in (*kills, None):
        status = start(data=data, folder=broken, workers=2, kill_at=kill_at, resume=newest_checkpoint(broken))
        assert status == (0 if kill_at is None else -signal.SIGKILL), kills
    assert_same(torch.load(broken / "final.pt", weights_only=True), whole.state_dict())
    expected, found = logs(tmp_path / "whole"), logs(broken)
    assert {name for name, _ in expected} >= {"train/query_to_document/hardness_mean", "train/loss", "val/nDCG@10"}
    assert found == expected, f"killed at {kills}"


CLOCKS: dict[str, dict[str, Any]] = {
    "steps": {"every_n_steps": 5},
    "epochs": {"every_n_steps": None, "every_n_epochs": 2},
    "staleness": {
        "every_n_epochs": None,
        "every_n_steps": None,
        "min_overlap": 0.95,
        "check_every_n_steps": 2,
        "probe": 40,
    },
    "asynchronous": {"every_n_steps": 5, "asynchronous_steps": 3},
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_step_is_a_place_to_go_on(data: Path, tmp_path: Path, workers: int, clock: str) -> None:
    """Inside the first epoch, at its end, at the start of the second, inside that, while a refresh is being built."""
    options: dict[str, Any] = {"workers": workers, "epochs": 2, "refresh": CLOCKS[clock]}
    quiet = {"limit_val_batches": 0}
    whole = fit(data, tmp_path / "whole", **options, every=1, trainer=quiet)
    for step in (1, 6, 7, 8, 12):
        resume = tmp_path / "whole" / "checkpoints" / f"step={step}.ckpt"
        found = fit(data, tmp_path / f"{step}", **options, resume=resume, every=None, trainer=quiet)
        assert_same(found, whole)


def test_accumulated_gradients_go_on_between_steps(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 2, "trainer": {"accumulate_grad_batches": 2, "limit_val_batches": 0}}
    whole = fit(data, tmp_path / "whole", **options, every=1)
    assert whole.batches_trained == 2 * STEPS_AN_EPOCH
    for step in (2, 4, 5):
        resume = tmp_path / "whole" / "checkpoints" / f"step={step}.ckpt"
        assert_same(fit(data, tmp_path / f"{step}", **options, resume=resume, every=None), whole)


def test_versions_in_a_folder(data: Path, tmp_path: Path) -> None:
    refresh = {"every_n_steps": 5, "every_n_epochs": None, "folder": str(tmp_path / "stores")}
    options: dict[str, Any] = {"epochs": 1, "refresh": refresh}
    whole = fit(data, tmp_path / "whole", **options, every=1)
    checkpoints = tmp_path / "whole" / "checkpoints"
    assert (tmp_path / "stores" / "query" / "store.json").exists()
    state = torch.load(checkpoints / "step=6.ckpt", weights_only=True)["callbacks"]["RefreshNegatives"]
    assert "stores" not in state
    assert_same(fit(data, tmp_path / "6", **options, resume=checkpoints / "step=6.ckpt", every=None), whole)
    with pytest.raises(
        ValueError, match=r"holds the version of step 5 and the checkpoint was trained with that of step 0"
    ):
        fit(data, tmp_path / "3", **options, resume=checkpoints / "step=3.ckpt", every=None)


def test_lightning_does_not_warn_of_a_loader_that_cannot_be_resumed(
    data: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    fit(data, tmp_path / "whole", epochs=1, every=3)
    fit(data, tmp_path / "rest", epochs=1, resume=tmp_path / "whole" / "checkpoints" / "step=3.ckpt", every=None)
    assert not [warning for warning in recwarn if "not resumable" in str(warning.message)]
