"""The share of an epoch that is spent waiting, by a clock that a test winds."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from hardneg.callbacks import waiting
from hardneg.callbacks.waiting import MeasureWaiting


def test_share_without_the_first_batch_and_without_validation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # start, end; start 2 s later, end; validation until 20; start 1 s later, end
    clock = iter([0.0, 3.0, 5.0, 8.0, 20.0, 21.0, 24.0])
    monkeypatch.setattr(waiting, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    logged: dict[str, Any] = {}
    module: Any = SimpleNamespace(log=lambda name, value, **how: logged.update({name: value}))
    trainer: Any = SimpleNamespace(world_size=1)
    measure = MeasureWaiting()
    with caplog.at_level(logging.WARNING):
        measure.on_train_epoch_start(trainer, module)
        for number in range(3):
            measure.on_train_batch_start(trainer, module, None, number)
            measure.on_train_batch_end(trainer, module, None, None, number)
            if number == 1:
                measure.on_validation_end(trainer, module)
        measure.on_train_epoch_end(trainer, module)
        measure.on_train_epoch_end(trainer, module)
    assert logged == {"train/waiting_share": pytest.approx(3 / 12)}
    (message,) = caplog.messages
    assert "25 %" in message
    assert "num_workers" in message
