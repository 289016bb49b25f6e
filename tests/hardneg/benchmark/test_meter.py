from __future__ import annotations

import time

import pytest

from hardneg.benchmark.meter import Meter, rate_factor, watched


def test_evaluations_are_not_counted_as_time():
    meter = Meter()
    meter.begin(None)
    time.sleep(0.02)
    meter.ready()
    meter.pause()
    before = meter.seconds
    time.sleep(0.02)
    meter.measured({"nDCG@10": 0.5})
    assert meter.seconds == before
    meter.resume()
    time.sleep(0.02)
    assert meter.seconds >= before + 0.02
    assert 0.02 <= meter.seconds_before_training <= before


def test_phases_go_on_where_the_last_one_ended():
    meter = Meter()
    for _ in range(2):
        meter.begin(None)
        for step in (1, 2):
            meter.trained(step, 8, {"loss": 1.0})
        meter.pause()
    assert [(point.step, point.samples) for point in meter.points] == [(1, 8), (2, 16), (3, 24), (4, 32)]


def test_one_step_is_measured_once():
    meter = Meter()
    meter.measured({"nDCG@10": 0.5})
    meter.measured({"nDCG@10": 0.6})
    assert [point.value for point in meter.points] == [0.5]


def test_directions_are_averaged():
    metrics = {"train/loss": 2.0, "train/a/hardness_mean": 0.2, "train/b/hardness_mean": 0.4, "val/nDCG@10": 0.1}
    assert watched(metrics) == {"loss": 2.0, "hardness_mean": pytest.approx(0.3)}


def test_the_rate_follows_the_clock_as_it_follows_steps():
    assert rate_factor(0.05, 0.1, "linear") == pytest.approx(0.5)
    assert rate_factor(0.1, 0.1, "linear") == pytest.approx(1.0)
    assert rate_factor(0.55, 0.1, "linear") == pytest.approx(0.5)
    assert rate_factor(1.0, 0.1, "linear") == 0.0
    assert rate_factor(0.9, 0.1, "constant") == 1.0
    assert rate_factor(0.0, 0.0, "constant") == 1.0
