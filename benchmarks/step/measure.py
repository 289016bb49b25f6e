"""How a step is measured: seconds of the whole step, and the most memory that its tensors hold at once."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], torch.Tensor]


def seconds(step: Step, repeats: int) -> float:
    """Median seconds of a step, after one that is not counted."""
    step()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def seconds_together(steps: Mapping[str, Step], repeats: int) -> dict[str, float]:
    """Median seconds of each step, taken in turns, so that what disturbs one disturbs all; for ratios."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first is not counted
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def peak_megabytes(step: Step) -> float:
    """Most bytes / 1e6 that live at once among the tensors that a step makes; its inputs existed before.

    Every allocation of torch's CPU allocator is added up as the profiler reports it, so that neither the process'
    other memory nor what malloc keeps back is counted.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    assert record.profiler is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


def arguments(description: str | None, threads: int = 1, repeats: int = 10) -> argparse.Namespace:
    """Options that all step benchmarks share; sets the number of threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=threads, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=repeats, help="steps that are timed")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random embeddings")
    parser.add_argument("--out", type=Path, help="Markdown file to write; default: beside the benchmark")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def write_table(
    path: Path,
    title: str,
    command: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    packages: Sequence[str] = (),
) -> None:
    """Write a Markdown page with one table and what is needed to make it again; print it too.

    Args:
        packages: whose versions matter beside torch's.
    """
    lines = [f"# {title}", "", f"`{command}`", "", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {note}" for note in notes), f"- {environment('torch', *packages)}", ""]
    path.write_text("\n".join(lines))
    print("\n".join(lines))


def environment(*packages: str) -> str:
    """Machine, versions and commit."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{_processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}; {_commit()}."


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().split("model name") if cpuinfo.exists() else []
    return names[1].split("\n")[0].strip(" \t:") if len(names) > 1 else platform.machine()


def _commit() -> str:
    here = Path(__file__).parent
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return f"commit {found.stdout.strip()}" if found.returncode == 0 else "no git commit"
