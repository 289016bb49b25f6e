"""A suite in a process that is killed at its N-th step: python -m tests.hardneg.benchmark.killed SUITE FOLDER N."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from hardneg.benchmark.cell import find_overlay
from hardneg.benchmark.meter import Meter
from hardneg.benchmark.run import run_suite
from hardneg.benchmark.suite import read_suite

if __name__ == "__main__":
    torch.set_num_threads(1)
    suite, folder, left = Path(sys.argv[1]), Path(sys.argv[2]), [int(sys.argv[3])]
    count = Meter.trained

    def counted(self: Meter, *args: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        count(self, *args)

    Meter.trained = counted  # type: ignore[method-assign]
    run_suite(read_suite(suite, find_overlay), folder)
