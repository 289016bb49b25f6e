"""A run's folder, read: curves, recorded negatives, evaluations and settings."""

from __future__ import annotations

import csv
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardneg.report.evaluation import FILE as EVALUATIONS
from hardneg.report.evaluation import Evaluation, read_evaluations
from hardneg.report.thumbnails import Thumbnails, read_thumbnails
from miners.transaction import write_text

CURVES, NEGATIVES, FACTS = "metrics.csv", "negatives.jsonl", "run.json"
SETTINGS = ("config.yaml", "hparams.yaml")  # the CLI's file, and a logger's


@dataclass(frozen=True)
class Curve:
    """A logged column: optimiser steps (n,) and values (n,), in the order of the file."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """A text, its similarity to the anchor, the block it came from ("" for a positive), and the thing as SPACE/ID."""

    text: str
    score: float
    origin: str = ""
    thing: str = ""


@dataclass(frozen=True)
class Record:
    """An anchor of a training step with its positive and its hardest negatives, hardest first."""

    step: int
    direction: str
    anchor: str
    positive: Scored
    negatives: tuple[Scored, ...]
    thing: str = ""


@dataclass(frozen=True)
class Run:
    """What one training left behind. Everything but the name may be empty."""

    name: str
    curves: Mapping[str, Curve]
    records: tuple[Record, ...]
    evaluations: tuple[Evaluation, ...]
    facts: Mapping[str, str]
    settings: str
    thumbnails: Thumbnails

    @property
    def directions(self) -> tuple[str, ...]:
        """Directions whose columns are logged; ("",) where there is one alone, whose columns have no prefix."""
        found = [name.split("/")[1] for name in self.curves if name.endswith("/hardness_mean") and name.count("/") == 2]
        return tuple(sorted(dict.fromkeys(found), key=lambda name: not name.startswith("query"))) or ("",)

    def curve(self, name: str, direction: str = "") -> Curve | None:
        """A column ``train/<direction>/<name>``; None where it was not logged."""
        return self.curves.get(f"train/{direction}/{name}" if direction else f"train/{name}")

    def reasons(self) -> tuple[str, ...]:
        """Why candidates were dropped, over all directions."""
        return tuple(sorted({name.split("/dropped/", 1)[1] for name in self.curves if "/dropped/" in name}))


def read_runs(folder: Path) -> list[Run]:
    """The run in a folder, or, where it holds none itself, all runs below it in the order of their names.

    Raises:
        FileNotFoundError: no such folder, or no run in it or below it; says what to do.
        ValueError: a file that is not of the form its writer gives it; names file and line.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"'{folder}' is no folder. Give the folder of a run, such as lightning_logs/version_0.")
    found = [folder] if _is_run(folder) else sorted({f.parent for f in _below(folder)}, key=_natural)
    if not found and (folder / EVALUATIONS).exists():
        found = [folder]
    if not found:
        raise FileNotFoundError(
            f"'{folder}' holds no run: neither {CURVES} nor {NEGATIVES} nor {EVALUATIONS} is in it or below it. Train "
            "first ('hardneg fit --config ...'), with CSVLogger as the first logger and the callbacks RecordNegatives "
            "and WriteReport, and give the folder that the logger made."
        )
    if found == [folder]:
        return [read_run(folder, folder.resolve().name)]
    return [read_run(each, name) for each, name in zip(found, _names(found), strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Read one run's folder; files that are not there give empty parts."""
    settings = next((folder / file for file in SETTINGS if _filled(folder / file)), None)
    return Run(
        name=name,
        curves=read_curves(folder / CURVES),
        records=tuple(read_records(folder / NEGATIVES)),
        evaluations=tuple(read_evaluations(folder)),
        facts=_read_facts(folder / FACTS),
        settings="" if settings is None else settings.read_text(encoding="utf-8"),
        thumbnails=read_thumbnails(folder),
    )


def read_curves(file: Path) -> dict[str, Curve]:
    """Columns of a CSVLogger's file; cells of other rows are blank and left out.

    Raises:
        ValueError: no column "step", or a cell that is no number; names the line.
    """
    if not file.exists():
        return {}
    cells: dict[str, list[tuple[float, float]]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if "step" not in (reader.fieldnames or ()):
            raise ValueError(f"{file}: no column 'step' in its first line; this is not the file of a CSVLogger.")
        for row in reader:
            for name, cell in row.items():
                if name in ("step", "epoch") or not cell:
                    continue
                try:
                    cells.setdefault(name, []).append((float(row["step"]), float(cell)))
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{file}, line {reader.line_num}, column '{name}': {error}.") from None
    return {name: Curve(*np.array(pairs, dtype=np.float64).T) for name, pairs in cells.items()}


def read_records(file: Path) -> list[Record]:
    """What `RecordNegatives` wrote.

    Raises:
        ValueError: a line that is no JSON or lacks something; names the line.
    """
    if not file.exists():
        return []
    records = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                records.append(_record(json.loads(line)))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{file}, line {number}: not a record of RecordNegatives ({what}).") from None
    return records


def write_facts(folder: str | Path, facts: Mapping[str, str]) -> None:
    """Leave short facts about a run for the head of its page: name -> text."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_text(Path(folder) / FACTS, json.dumps(dict(facts), ensure_ascii=False, indent=1))


def describe(module: Any, data: Any) -> dict[str, str]:
    """Short facts about a module and its data: what was trained, on what, against which negatives."""
    chains = {direction: list(chain) for direction, chain in module.chains.items()}
    parts: dict[str, Iterable[Any]] = {
        "encoder": [module.encoder] if hasattr(module, "encoder") else [],
        "data": [data],
        "loss": [module.loss],
        "chain of miners": next(iter(chains.values()), []),
        "batches": [data.batch_miner] if hasattr(data, "batch_miner") else [],
        "sources of negatives": getattr(data, "sources", ()),
    }
    facts = {name: " → ".join(_call(part) for part in each) for name, each in parts.items()}
    facts["directions"] = ", ".join(chains)
    facts["peak learning rate"] = f"{module.learning_rate:g}"
    return {name: text for name, text in facts.items() if text}


def _call(part: Any) -> str:
    """A part as the call that makes it: constructor arguments with plain values, where they are not the default."""
    shown = []
    for name, parameter in inspect.signature(type(part)).parameters.items():
        value = getattr(part, name, None)
        if isinstance(value, torch.Tensor) and value.ndim == 0:
            value = round(float(value), 6)
        plain = isinstance(value, (bool, int, float, str)) or (
            isinstance(value, (tuple, list)) and all(isinstance(each, (bool, int, float, str)) for each in value)
        )
        if plain and value != parameter.default:
            shown.append(f"{name}={value!r}")
    return f"{type(part).__name__}({', '.join(shown)})"


def _record(record: Any) -> Record:
    def scored(entry: Mapping[str, Any], origin: str) -> Scored:
        return Scored(_text(entry["text"]), float(entry["score"]), origin, str(entry.get("thing", "")))

    return Record(
        step=int(record["step"]),
        direction=str(record["direction"]),
        anchor=_text(record["anchor"]),
        positive=scored(record["positive"], ""),
        negatives=tuple(scored(entry, str(entry["origin"])) for entry in record["negatives"]),
        thing=str(record.get("thing", "")),
    )


def _text(text: str | None) -> str:
    return "(no text)" if text is None else str(text)


def _read_facts(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    try:
        return {str(name): str(text) for name, text in json.loads(file.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not an object of texts as WriteReport writes it ({error}).") from None


def _is_run(folder: Path) -> bool:
    return (folder / CURVES).exists() or (folder / NEGATIVES).exists()


def _below(folder: Path) -> Iterable[Path]:
    for file in (CURVES, NEGATIVES):
        for path in folder.rglob(file):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path


def _names(folders: Sequence[Path]) -> list[str]:
    """Paths without what all have in common: of seed_0/plain/version_0 and seed_0/mined/version_0, plain and mined."""
    parts = [list(folder.parts) for folder in folders]
    for end in (0, -1):
        while all(len(each) > 1 for each in parts) and len({each[end] for each in parts}) == 1:
            for each in parts:
                each.pop(end)
    return ["/".join(each) for each in parts]


def _natural(path: Path) -> list[Any]:
    """Sort version_2 before version_10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.as_posix())]


def _filled(file: Path) -> bool:
    return file.exists() and file.read_text(encoding="utf-8").strip() not in ("", "{}")
