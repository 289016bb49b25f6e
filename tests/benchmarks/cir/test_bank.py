"""A step's memory does not grow with the bank: the benchmark's measures, on a bank a tenth the size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.cir import bank
from benchmarks.step.measure import peak_megabytes
from miners import PositiveAware


def test_a_long_bank_costs_one_chunk() -> None:
    store = bank.random_store(20_000, 16)
    one = bank.random_store(500, 16)
    alone = peak_megabytes(bank.make_step(one, 500, 32))
    chunked = peak_megabytes(bank.make_step(store, 500, 32))
    whole = peak_megabytes(bank.make_step(store, None, 32))
    assert chunked < alone + bank.chunk_megabytes(32, 16, 500)
    assert whole > 5 * chunked


def test_judges_do_not_change_that() -> None:
    store = bank.random_store(20_000, 16)
    judged = peak_megabytes(bank.make_step(store, 500, 32, (PositiveAware(0.1),)))
    alone = peak_megabytes(bank.make_step(bank.random_store(500, 16), 500, 32, (PositiveAware(0.1),)))
    assert judged < alone + bank.chunk_megabytes(32, 16, 500)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_bank_is_not_loaded(tmp_path: Path) -> None:
    size, grown = bank.mapped_growth(tmp_path, 100_000)
    assert size > 150
    assert grown < 100
