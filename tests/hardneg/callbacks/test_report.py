from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger

from hardneg.callbacks import RecordNegatives, WriteReport
from hardneg.report.evaluation import read_evaluations


def test_the_page_has_curves_negatives_and_the_last_validation(fit: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    trainer = fit(
        RecordNegatives(every_n_steps=1), WriteReport("A fit"), logger=CSVLogger(tmp_path, name=None), max_epochs=3
    )
    run = tmp_path / "version_0"
    (final,) = read_evaluations(run)
    assert (final.name, final.split, final.step) == ("final", "dev", trainer.global_step)
    assert final.means == pytest.approx(dict(trainer.lightning_module.measures.means))
    assert final.seconds is not None
    assert 0 < final.seconds < 60
    page = (run / "report.html").read_text()
    assert "<h1>A fit</h1>" in page
    for part in ("Hardness over time", "where lives the", "in-batch", "TextEncoder(model=", "InBatch()"):
        assert part in page
    assert json.loads((run / "run.json").read_text())["steps"] == str(trainer.global_step)


def test_the_last_steps_are_on_the_page(fit: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    # a logger that would write its rows later than the page is made
    fit(WriteReport(), logger=CSVLogger(tmp_path, name=None, flush_logs_every_n_steps=10_000))
    assert "Hardness over time" in (tmp_path / "version_0" / "report.html").read_text()


def test_without_a_validation_nothing_is_called_final(
    fit: Callable[..., pl.Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit(WriteReport(), val_split=None, logger=CSVLogger(tmp_path, name=None))
    assert "this fit never validated" in caplog.text
    run = tmp_path / "version_0"
    assert read_evaluations(run) == []
    assert "No evaluation.json in this folder" in (run / "report.html").read_text()


def test_a_validation_before_the_end_says_at_which_step_it_was(fit: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    trainer = fit(WriteReport(), max_epochs=3, check_val_every_n_epoch=2, logger=CSVLogger(tmp_path, name=None))
    (final,) = read_evaluations(tmp_path / "version_0")
    assert final.step == trainer.global_step * 2 // 3


def test_a_fit_without_the_loggers_file_warns_before_training(
    fit: Callable[..., pl.Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fit(WriteReport(), logger=False)
    assert "the report will have no curves" in caplog.text
    assert "No hardness in metrics.csv" in (tmp_path / "report.html").read_text()
