"""`python -m tests.fuzz --minutes 30`, or `--count 10000`: fuzz every target, and say what came of it."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.targets import TARGETS, Fuzzer, quiet


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="go on for so long")
    parser.add_argument("--count", type=int, default=1000, help="mutations of all targets together (default: 1000)")
    parser.add_argument("--seed", type=int, help="of the first mutation (default: from the clock)")
    parser.add_argument("--only", nargs="*", default=sorted(TARGETS), choices=sorted(TARGETS), help="targets")
    options = parser.parse_args()
    seed = int(time.time()) if options.seed is None else options.seed
    counts: dict[str, Counter[str]] = {name: Counter() for name in options.only}
    failures = []
    ends = time.monotonic() + 60 * options.minutes if options.minutes else None
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),  # a progress bar for each mutation
        quiet(),
    ):
        fuzzers = {name: Fuzzer(name, Path(folder) / f"fuzzed-{number}") for number, name in enumerate(options.only)}
        number = 0
        while time.monotonic() < ends if ends else number < options.count:
            name = options.only[number % len(options.only)]
            try:
                counts[name][fuzzers[name].try_one(random.Random(f"{seed}-{number}"))] += 1
            except AssertionError as error:
                counts[name]["FAILED"] += 1
                failures.append(f"{name}, mutation {number} of --seed {seed}: {error}")
                print(failures[-1], flush=True)
            number += 1
    print(f"{number} mutations, --seed {seed}\n")
    print("| target | refused by name | harmless | made again, or right | failed |\n|---|---:|---:|---:|---:|")
    for name, count in counts.items():
        cells = " | ".join(str(count[one]) for one in ("refused", "harmless", "right", "FAILED"))
        print(f"| {name} | {cells} |")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
