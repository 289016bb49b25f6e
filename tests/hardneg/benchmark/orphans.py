"""A suite of two processes whose cells never end: python -m tests.hardneg.benchmark.orphans SUITE FOLDER."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from hardneg.benchmark.cell import find_overlay
from hardneg.benchmark.run import run_suite
from hardneg.benchmark.suite import Cell, read_suite


def beat(cell: Cell, folder: Path, group: str = "", wandb: bool = False) -> None:
    for _ in range(20_000):  # some minutes, should nobody end it
        (folder / f"{os.getpid()}.beat").write_text(str(time.monotonic()))
        time.sleep(0.02)


if __name__ == "__main__":
    run_suite(read_suite(Path(sys.argv[1]), find_overlay), Path(sys.argv[2]), processes=2, runner=beat)
