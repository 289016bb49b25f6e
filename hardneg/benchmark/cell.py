"""One cell of a suite: trained, evaluated, and left behind as one folder that is whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hardneg.benchmark.meter import Meter
from hardneg.benchmark.peer import make_peer
from hardneg.benchmark.suite import SHARED, WORK, Cell, Phase
from hardneg.callbacks import WriteStores
from hardneg.cli import find_configs, make_loggers
from hardneg.encoders.base import hash_weights
from hardneg.lightning_cli import HardnegCLI
from miners.transaction import (
    Damaged,
    Transaction,
    aside_of,
    checksum,
    locked,
    publish_folder,
    read_manifest,
    remove,
)

log = logging.getLogger(__name__)

RUN, SCORES, CURVES = "run.json", "scores.parquet", "curves.parquet"
PREPARED, SPENT = "prepared", "spent.json"  # what chains begin with, below the shared folder of a run; its cost
NEEDED = (
    *("key", "label", "data", "model", "chain", "seed", "purpose", "option", "budget", "weights", "queries", "machine"),
    *("steps", "samples", "seconds", "seconds_before_training", "refresh_seconds", "wall_seconds", "cpu_seconds"),
)  # in every run.json
FOREVER = 10**9  # steps, where seconds end a fit


class _Checked(HardnegCLI):
    """Parses and checks types and class paths; makes nothing."""

    def instantiate_classes(self) -> None:
        """Nothing."""


def find_overlay(name: str) -> Path:
    """A YAML file here, or among those that ship with hardneg.

    Raises:
        FileNotFoundError: neither.
    """
    return Path(find_configs([f"--config={name}"])[0].removeprefix("--config="))


def check_cell(cell: Cell, folder: Path) -> None:
    """Read the overlays of a cell as its run will, so that a misspelt key shows before hours of other cells.

    Raises:
        ValueError: what jsonargparse says, with the name of the cell.
    """
    for phase in cell.phases:
        with _work(folder / f".{cell.key}.check.part") as work:
            _parse(_Checked, cell, phase, folder, work)
    if cell.peer is not None:
        make_peer(cell.peer)
        if "seconds" in cell.budget:
            raise ValueError(f"{cell.label}: peers count steps; give the suite a budget of steps.")


def run_cell(cell: Cell, folder: Path, group: str = "", wandb: bool = False) -> dict[str, Any]:
    """Train and evaluate a cell; its folder appears when everything is in it.

    Args:
        cell: what to run.
        folder: where cells are; the cell's own is named by its key.
        group: of the W&B run.
        wandb: whether to log to W&B too.

    Returns:
        What stands in its run.json.

    Raises:
        ValueError, OSError, ImportError: overlays that do not go together, data that are not there, ...
    """
    began, cpu = time.perf_counter(), time.process_time()
    threads = torch.get_num_threads()
    torch.set_num_threads(cell.threads)
    part = folder / f".{cell.key}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    meter, environment = Meter(), dict(os.environ)
    os.environ |= {"WANDB_RUN_GROUP": group, "WANDB_NAME": cell.label}
    try:
        with _work(part / "work") as work:
            cli, weights = _train(cell, meter, folder, work, wandb)
            scores = _evaluate(cell, cli, meter)
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
    record = cell.content | {
        "key": cell.key,
        "label": cell.label,
        "weights": weights,
        "steps": meter.steps,
        "samples": meter.samples,
        "seconds": meter.seconds,
        "seconds_before_training": meter.seconds_before_training,
        "refresh_seconds": meter.refresh_seconds,
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "queries": {split: len(next(iter(by_query.values()))) for split, by_query in scores.items()},
        "means": {split: {m: math.fsum(of.values()) / len(of) for m, of in s.items()} for split, s in scores.items()},
        "machine": machine(),
    }
    _write(part, cell.key, meter, scores, record)
    publish_folder(part, folder / cell.key)
    return record


def read_cell(folder: Path) -> tuple[dict[str, Any], bool]:
    """Read a finished cell after its files were compared with their checksums; means are those of its scores.

    Returns:
        What its run.json holds, and whether there were checksums to compare.

    Raises:
        Damaged: changed or damaged since it was written, or no cell; says what makes it again.
    """
    remedy = f"`hardneg benchmark run SUITE --folder {folder.parent.parent}` runs this cell again"
    file = folder / RUN
    try:
        found = read_manifest(file, remedy)
        record = {name: value for name, value in found.record.items() if name not in ("files", "checksum")}
        scores = found.verified("scores", remedy) if found.checked else folder / SCORES
        if found.checked:
            found.verified("curves", remedy)
        record["means"] = _means(scores)
    except Damaged:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(f"{folder}: no whole cell ({' '.join(str(error).split()):.160}): {remedy}.") from None
    missing = [name for name in NEEDED if name not in record]
    if missing or record["key"] != folder.name or not (folder / CURVES).is_file():
        what = f"lacks {', '.join(missing)}" if missing else "is not the record of this cell"
        raise Damaged(f"{file} {what}: {remedy}.")
    return record | {"folder": str(folder)}, found.checked


def _means(scores: Path) -> dict[str, dict[str, float]]:
    """Mean of each measure over its queries, by split."""
    import pyarrow.parquet as pq

    table = pq.read_table(scores, columns=["split", "measure", "value"]).to_pandas()
    means: dict[str, dict[str, float]] = {}
    for (split, measure), values in table.groupby(["split", "measure"], sort=False)["value"]:
        means.setdefault(split, {})[measure] = math.fsum(values) / len(values)
    return means


def weights_of(module: torch.nn.Module) -> str:
    """A hash of all weights, by name."""
    digest = hashlib.sha256()
    hash_weights(digest, module)
    return digest.hexdigest()[:16]


def machine() -> dict[str, Any]:
    """What results depend on besides the cell."""
    packages = ("hardneg", "torch", "pytorch-lightning", "sentence-transformers")
    versions = {name: _version(name) for name in packages}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _train(cell: Cell, meter: Meter, folder: Path, work: Path, wandb: bool) -> tuple[HardnegCLI, str]:
    """Go through the phases; the last one's module is evaluated. Also a hash of the weights that all began with."""
    *before, last = cell.phases
    weights = _begin(cell, before, meter, folder, work, wandb) if before else ""
    cli = _parse(HardnegCLI, cell, last, folder, work)
    weights = weights or weights_of(getattr(cli.model, "encoder", cli.model))
    _run_phase(cell, last, cli, meter, work, wandb)
    return cli, weights


def _begin(cell: Cell, phases: Sequence[Phase], meter: Meter, folder: Path, work: Path, wandb: bool) -> str:
    """Lay what the chain prepares into ``work``: made once for all chains that begin alike, and counted for each."""
    place = folder.parent / "shared" / PREPARED / cell.beginning
    with locked(place, "wait for it", wait=True):
        if place.exists() and not _is_whole(place):
            log.warning("%s is damaged, so it is made again", place)
            remove(place)
        if not place.exists():
            part = aside_of(place)
            part.mkdir()
            spent, weights = Meter(), ""
            for phase in phases:
                cli = _parse(HardnegCLI, cell, phase, folder, part)
                weights = weights or weights_of(getattr(cli.model, "encoder", cli.model))
                _run_phase(cell, phase, cli, spent, part, wandb)
                if phase.command == "fit":
                    cli.model.save_pretrained(str(part / "model"))
            record = {"weights": weights, "meter": spent.state(), "digests": _digests(part)}
            Transaction(part / SPENT, record).commit()  # no files of its own: the digests reach into folders
            publish_folder(part, place)
    for name in ("model", "stores"):
        if (place / name).exists():
            (work / name).symlink_to((place / name).resolve(), target_is_directory=True)
    record = json.loads((place / SPENT).read_text())
    meter.restore(record["meter"])
    return record["weights"]


def _digests(folder: Path) -> dict[str, str]:
    """Checksums of all files below a folder, but for its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SPENT)
    return {path.relative_to(folder).as_posix(): checksum(path) for path in files}


def _is_whole(place: Path) -> bool:
    """Whether all that a chain begins with is as it was written."""
    try:
        return read_manifest(place / SPENT, "make it again").record.get("digests") == _digests(place)
    except (OSError, ValueError):
        return False


def _run_phase(cell: Cell, phase: Phase, cli: HardnegCLI, meter: Meter, work: Path, wandb: bool) -> None:
    if wandb:
        cli.trainer.loggers = make_loggers(["wandb"], str(work))
    cli.trainer.callbacks.append(meter)  # type: ignore[attr-defined]
    if phase.command == "predict":
        cli.trainer.callbacks.append(WriteStores(str(work / "stores")))  # type: ignore[attr-defined]
        meter.begin(None)
        cli.trainer.predict(cli.model, cli.datamodule, return_predictions=False)
        meter.ready()
        meter.pause()
    elif phase.share:
        steps, seconds = _share(cell, phase)
        meter.begin(seconds)
        if cell.peer is not None and phase is cell.phases[-1]:
            _fit_peer(cell, cli, meter, steps)
        else:
            cli.trainer.fit(cli.model, cli.datamodule)
        meter.pause()


def _fit_peer(cell: Cell, cli: HardnegCLI, meter: Meter, steps: int) -> None:
    every = math.ceil(steps / cell.points)

    def evaluate() -> None:
        if meter.steps % every == 0:
            meter.pause()
            cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
            meter.resume()

    assert cell.peer is not None
    cli.datamodule.setup("fit")
    make_peer(cell.peer).fit(cli.model, cli.datamodule, steps, cell.seed, meter, evaluate)


def _evaluate(cell: Cell, cli: HardnegCLI, meter: Meter) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """Each query's measures, by split: dev as it was measured after the last step, test once."""
    scores: dict[str, Mapping[str, Mapping[str, float]]] = {}
    model: Any = cli.model
    if meter.measured_at != meter.steps:
        cli.trainer.validate(model, cli.datamodule, verbose=False)
    scores["dev"] = model.measures.by_query
    if cell.test:
        cli.trainer.test(model, cli.datamodule, verbose=False)
        scores["test"] = model.measures.by_query
    return scores


def _share(cell: Cell, phase: Phase) -> tuple[int, float | None]:
    """Steps and seconds of a fit."""
    if "seconds" in cell.budget:
        return FOREVER, cell.budget["seconds"] * phase.share
    return max(round(cell.budget["steps"] * phase.share), 1), None


def _parse(kind: type[HardnegCLI], cell: Cell, phase: Phase, folder: Path, work: Path) -> HardnegCLI:
    """Read the overlays as `hardneg fit` does, the suite's own settings last, and (with ``HardnegCLI``) make all parts.

    Args:
        folder: where all cells are; what they share is beside it.
        work: the cell's own.

    Raises:
        ValueError: what the parser says.
    """
    arguments = []
    for number, overlay in enumerate(phase.overlays):
        file = work / f"{number}.yaml"
        text = overlay.text.replace(WORK, str(work)).replace(SHARED, str(folder.parent / "shared"))
        file.write_text(text, encoding="utf-8")
        arguments += ["--config", str(file)]
    own = work / "suite.yaml"
    own.write_text(json.dumps({"trainer": _trainer(cell, phase)}), encoding="utf-8")
    arguments += ["--config", str(own), f"--seed_everything={cell.seed}", f"--folder={work}"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said) if kind is _Checked else contextlib.nullcontext():
            return kind.start(arguments, run=False)
    except SystemExit:
        message = said.getvalue().partition("error: ")[2].strip() or "its overlays cannot be read; see above"
        for number, overlay in enumerate(phase.overlays):
            message = message.replace(str(work / f"{number}.yaml"), overlay.name)
        raise ValueError(f"{cell.label}: {message}") from None


def _trainer(cell: Cell, phase: Phase) -> dict[str, Any]:
    """What every cell of a suite has alike, whatever an overlay says."""
    steps, seconds = _share(cell, phase) if cell.budget else (1, None)
    points = max(cell.points, 1)
    validate: Any = math.ceil(steps / points)
    if seconds is not None:
        validate = {"milliseconds": math.ceil(1000 * seconds / points)}
    return {
        "max_steps": steps,
        "max_epochs": None,
        "max_time": None,
        "limit_val_batches": None,
        "val_check_interval": validate,
        "check_val_every_n_epoch": None,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def _write(
    part: Path,
    key: str,
    meter: Meter,
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    record: Mapping[str, Any],
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        (key, split, measure, query, value)
        for split, by_measure in scores.items()
        for measure, by_query in by_measure.items()
        for query, value in by_query.items()
    ]
    points = [(key, p.name, p.step, p.seconds, p.samples, p.value) for p in meter.points]
    curves = _table(points, ("key", "name", "step", "seconds", "samples", "value"), pa.float64())
    with Transaction(part / RUN, record) as cell:
        pq.write_table(
            _table(rows, ("key", "split", "measure", "query", "value"), pa.float64()), cell.named("scores", SCORES)
        )
        pq.write_table(curves, cell.named("curves", CURVES))


def _table(rows: list[Any], names: tuple[str, ...], number: Any) -> Any:
    """Rows as an Arrow table whose column types do not depend on the values."""
    import pyarrow as pa

    kinds = {"step": pa.int64(), "samples": pa.int64(), "seconds": number, "value": number}
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    arrays = [pa.array(list(c), kinds.get(name, pa.string())) for name, c in zip(names, columns, strict=True)]
    return pa.table(dict(zip(names, arrays, strict=True)))


@contextlib.contextmanager
def _work(folder: Path) -> Iterator[Path]:
    """A folder for as long as it is needed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
