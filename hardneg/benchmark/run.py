"""Running a suite: what is finished is kept, what is missing or changed is run, and all of it becomes three tables."""

from __future__ import annotations

import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardneg.benchmark.cell import CURVES, PREPARED, RUN, SCORES, check_cell, read_cell, run_cell
from hardneg.benchmark.suite import Cell, Suite
from hardneg.benchmark.tables import RUNS, TABLES, write_tables
from miners.transaction import Damaged, clean, locked_folder, recover, remove, sync

log = logging.getLogger(__name__)

CELLS = "cells"
TEST_READS = "test_reads.jsonl"
Runner = Callable[[Cell, Path, str, bool], Any]


@dataclass(frozen=True)
class Plan:
    """What a suite still has to do.

    Args:
        kept: finished cells.
        missing: cells to run.
        changed: of the missing ones, label -> what differs from the finished cell of that label.
    """

    kept: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    changed: Mapping[str, str]


def run_suite(suite: Suite, folder: Path, processes: int = 1, runner: Runner = run_cell) -> Path:
    """Run what is not finished, and write the tables.

    Trials come first, since later cells depend on what dev chooses. A cell that fails is said and skipped; the next
    call tries it again.

    Args:
        suite: what to run.
        folder: of the results; cells of an earlier call are found there.
        processes: cells at a time; 1 = in this process.
        runner: runs one cell.

    Returns:
        The folder.

    Raises:
        RuntimeError: cells that failed, all of them named with their reasons.
        InUse: another run works on this folder.
    """
    with locked_folder(folder, "choose another --folder"):
        return _run_locked(suite, folder, processes, runner)


def _run_locked(suite: Suite, folder: Path, processes: int, runner: Runner) -> Path:
    cells = folder / CELLS
    cells.mkdir(parents=True, exist_ok=True)
    _tidy(folder, cells)
    if runner is run_cell:
        _check(suite, cells)
    trials = suite.trials()
    failed = _run(suite, cells, trials, processes, runner)
    if failed:  # a choice among fewer options would be no equal chance
        raise RuntimeError(_failures(failed))
    chosen = choices(trials, read_records(cells), suite.measure)
    final = [*suite.start_cells(), *suite.runs(chosen)]
    failed = _run(suite, cells, final, processes, runner)
    done = read_records(cells)
    write_tables(folder, suite, [done[cell.key] for cell in (*trials, *final) if cell.key in done], chosen, failed)
    if failed:
        raise RuntimeError(_failures(failed))
    shutil.rmtree(folder / "shared" / PREPARED, ignore_errors=True)  # no cell is left that would begin with it
    return folder


def make_plan(cells: Sequence[Cell], folder: Path) -> Plan:
    """Compare cells with what is finished in ``folder``."""
    done = read_records(folder)
    by_label: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in done.values():
        by_label.setdefault((record["label"], record["purpose"]), []).append(record)
    missing = tuple(cell for cell in cells if cell.key not in done)
    changed = {}
    for cell in missing:
        if earlier := by_label.get((cell.label, cell.purpose)):
            differences = [list(differing(record, cell.content)) for record in earlier]
            changed[cell.label] = ", ".join(min(differences, key=len)[:4])
    return Plan(tuple(cell for cell in cells if cell.key in done), missing, changed)


def estimate(suite: Suite, plan: Plan, folder: Path) -> tuple[float, int]:
    """Seconds of one process for the missing cells, and for how many of them nobody can say.

    A cell takes what finished ones of its kind took, else what the suite expects.
    """
    took: dict[tuple[str, ...], list[float]] = {}
    for record in read_records(folder).values():
        for kind in _kinds(record):
            took.setdefault(kind, []).append(record["wall_seconds"])
    total, unknown = 0.0, 0
    for cell in plan.missing:
        known = next((took[kind] for kind in _kinds(cell.content) if kind in took), None)
        if known is not None:
            total += sum(known) / len(known)
        elif suite.expect_seconds is not None:
            total += suite.expect_seconds
        else:
            total += suite.budget.get("seconds", 0.0)
            unknown += 1
    return total, unknown


def choices(
    trials: Iterable[Cell], done: Mapping[str, Mapping[str, Any]], measure: str
) -> dict[tuple[str, str, str], int]:
    """The option with the best dev measure for each data set, model and chain; the first of equals.

    Raises:
        ValueError: the trials have no such measure.
    """
    best: dict[tuple[str, str, str], tuple[float, int]] = {}
    for trial in trials:
        means = done[trial.key]["means"]["dev"]
        if measure not in means:
            raise ValueError(f"measure '{measure}' is not among those of the runs: {', '.join(means)}.")
        kind = (trial.data, trial.model, trial.chain)
        best[kind] = max(best.get(kind, (-float("inf"), 0)), (means[measure], -trial.option))
    return {kind: -option for kind, (_, option) in best.items()}


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The finished cells of a folder by key.

    Raises:
        Damaged: a cell that is damaged; says what makes it again.
    """
    records = (read_cell(place)[0] for place in _places(folder))
    return {record["key"]: record for record in records}


def _places(folder: Path) -> list[Path]:
    """Folders of cells, without those that are being written."""
    return sorted(file.parent for file in folder.glob(f"*/{RUN}") if not file.parent.name.startswith("."))


def _tidy(folder: Path, cells: Path) -> None:
    """Finish or remove what a killed run left, and remove damaged cells, so that they are run again."""
    recover(folder / TABLES)
    clean(folder / RUNS, also=(SCORES, CURVES, TABLES))
    for half in cells.glob(".*.part"):
        shutil.rmtree(half)
    for left in cells.glob(".*.before"):
        clean(cells / left.name[1:].split(".")[0])
    unchecked = 0
    for place in _places(cells):
        try:
            unchecked += not read_cell(place)[1]
        except Damaged as error:
            log.warning("%s", error)
            remove(place)
    for left in cells.glob(".*.trash"):
        shutil.rmtree(left, ignore_errors=True)
    if unchecked:
        log.warning("%d cells in %s were written before there were checksums: read unchecked.", unchecked, cells)


def differing(before: Any, now: Any, at: str = "") -> Iterable[str]:
    """Where two plain values differ: names joined by dots. Of two mappings only the keys of the second count."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in now if not at else dict.fromkeys([*before, *now]):
            yield from differing(before.get(name), now.get(name), f"{at}.{name}" if at else str(name))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for old, new in zip(before, now, strict=True):
            yield from differing(old, new, at)
    elif before != now:
        yield at


def _check(suite: Suite, cells: Path) -> None:
    """Parse one cell of each kind that is not finished."""
    first = {(data, model, chain.name): 0 for data in suite.data for model in suite.models for chain in suite.chains}
    every = [*suite.start_cells(), *suite.trials(), *suite.runs(first)]
    kinds = {(cell.data, cell.model, cell.chain, cell.option): cell for cell in every}
    for cell in make_plan(list(kinds.values()), cells).missing:
        check_cell(cell, cells)


def _run(suite: Suite, folder: Path, cells: Sequence[Cell], processes: int, runner: Runner) -> dict[str, str]:
    """Run what is missing of some cells; the reasons of those that failed, by label."""
    plan = make_plan(cells, folder)
    if plan.kept:
        log.info("%d of %d cells are finished and kept", len(plan.kept), len(cells))
    for label, what in plan.changed.items():
        log.info("changed since it was run, so it is run again: %s (%s)", label, what)
    failed: dict[str, str] = {}
    wandb = "wandb" in suite.logging
    for number, (cell, error) in enumerate(_each(suite, folder, plan.missing, processes, runner, wandb), 1):
        if error is None:
            _note_test(folder.parent, cell)
            log.info("%d of %d: %s", number, len(plan.missing), cell.label)
        else:
            failed[cell.label] = _reason(error)
            log.error("%d of %d failed: %s: %s", number, len(plan.missing), cell.label, failed[cell.label])
            if os.environ.get("HARDNEG_TRACEBACK"):
                traceback.print_exception(error)
    return failed


def _each(
    suite: Suite, folder: Path, cells: Sequence[Cell], processes: int, runner: Runner, wandb: bool
) -> Iterable[tuple[Cell, BaseException | None]]:
    """Run cells and yield each when it is over."""
    if processes == 1:
        for cell in cells:
            try:
                runner(cell, folder, suite.name, wandb)
            except Exception as error:  # one cell's mistake must not cost the others' hours
                yield cell, error
            else:
                yield cell, None
        return
    # spawn: forked children of a process with threads may hang
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_begin_child) as pool:
        futures = {pool.submit(_in_child, runner, cell, folder, suite.name, wandb): cell for cell in cells}
        for future in as_completed(futures):
            raised = future.exception()
            if raised is not None:
                raised.__cause__ = None  # the child's traceback as text; the child has said already what went wrong
            yield futures[future], raised


def _in_child(runner: Runner, cell: Cell, folder: Path, group: str, wandb: bool) -> None:
    """Returns nothing, since the record is on disk; errors arrive as text, whatever libraries put into them."""
    try:
        runner(cell, folder, group, wandb)
    except Exception as error:
        raise RuntimeError(_reason(error)) from None


def _begin_child() -> None:
    quiet()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed suite leaves nobody behind who goes on with its cells, beside those of the suite that takes it up."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def quiet() -> None:
    """What a cell says stands in its record; only the suite speaks."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for noisy in (
        "httpx",
        "sentence_transformers",
        "fsspec",
        "pytorch_lightning",
        "lightning",
        "miners",
        "datamodules",
    ):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for ours in ("hardneg.callbacks", "hardneg.modules"):
        logging.getLogger(ours).setLevel(logging.WARNING)


def _note_test(folder: Path, cell: Cell) -> None:
    """Keep account of every look at a test split, also by cells that have been run again since."""
    if cell.test:
        file = folder / TEST_READS
        half = file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")  # a line that a kill cut off is a look too
        with file.open("a", encoding="utf-8") as out:
            out.write("\n" * half + json.dumps({"label": cell.label, "key": cell.key}) + "\n")
            out.flush()
            sync(out.fileno())


def _kinds(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What cells of about the same length have in common, the closest first."""
    budget = json.dumps(content["budget"], sort_keys=True)
    near = (content["data"], content["model"], budget)
    return [("", *near, content["chain"]), near] if budget != "{}" else [("start", *near)]


def _reason(error: BaseException) -> str:
    """One line: the innermost error that says something."""
    found = error
    while (below := found.__cause__ or (None if found.__suppress_context__ else found.__context__)) is not None:
        found = below
    return " ".join(str(found).split()) or type(found).__name__


def _failures(failed: Mapping[str, str]) -> str:
    lines = "\n".join(f"  {label}: {reason}" for label, reason in failed.items())
    return f"{len(failed)} cells failed, and the same command tries them again:\n{lines}"
