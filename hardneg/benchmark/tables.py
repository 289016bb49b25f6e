"""The three tables of a suite: its runs, every query's scores, and curves. The report is made of them alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardneg.benchmark.cell import CURVES, SCORES
from hardneg.benchmark.suite import Suite
from miners.transaction import Damaged, Manifest, Transaction, read_published

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

RUNS, TABLES = "runs.parquet", "tables.json"
NAMES = (RUNS, SCORES, CURVES)
METADATA = b"hardneg.benchmark"
WHO = ("key", "data", "model", "chain", "seed", "purpose", "option", "weights")
COSTS = (
    "steps",
    "samples",
    "seconds",
    "seconds_before_training",
    "refresh_seconds",
    "wall_seconds",
    "cpu_seconds",
)


@dataclass(frozen=True)
class Results:
    """What a suite left behind.

    Args:
        runs: one row per cell: who it is, what it cost, means as ``dev/<measure>`` and ``test/<measure>``.
        scores: key, split, measure, query, value.
        curves: key, name (``loss``, ``hardness_mean``, ``dev/<measure>``, ...), step, seconds, samples, value.
        about: the suite's settings, choices, failures and machine.
    """

    runs: pd.DataFrame
    scores: pd.DataFrame
    curves: pd.DataFrame
    about: Mapping[str, Any]

    @property
    def split(self) -> str:
        """What is judged: test where it was read, else dev."""
        return "test" if self.about["test"] else "dev"

    def of(self, purpose: str) -> pd.DataFrame:
        """The cells of one purpose."""
        return self.runs[self.runs.purpose == purpose]


def write_tables(
    folder: Path,
    suite: Suite,
    records: Sequence[Mapping[str, Any]],
    chosen: Mapping[tuple[str, str, str], int],
    failed: Mapping[str, str],
) -> None:
    """Join the records of cells, in their order; without any there is no table.

    Args:
        folder: of the suite's results.
        suite: whose cells they are.
        records: of finished cells, with their folders.
        chosen: which option dev chose, by (data, model, chain).
        failed: label -> reason.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not records:
        return
    measures = dict.fromkeys(f"{s}/{m}" for r in records for s, means in r["means"].items() for m in means)
    columns: dict[str, list[Any]] = {name: [record[name] for record in records] for name in (*WHO, *COSTS)}
    for name in measures:
        split, measure = name.split("/", 1)
        columns[name] = [record["means"].get(split, {}).get(measure) for record in records]
    columns["chosen"] = [
        record["purpose"] != "tune"
        or chosen.get((record["data"], record["model"], record["chain"])) == record["option"]
        for record in records
    ]
    reads = folder / "test_reads.jsonl"
    about = {
        **{
            name: getattr(suite, name) for name in ("name", "baseline", "measure", "margin", "level", "test", "threads")
        },
        "budget": dict(suite.budget),
        "data": list(suite.data),
        "models": list(suite.models),
        "references": list(suite.references),
        "chains": [chain.name for chain in suite.chains],
        "options": {chain.name: [option.content for option in chain.tune] for chain in suite.chains if chain.tune},
        "queries": {record["data"]: record["queries"] for record in records if record["purpose"] != "tune"},
        "failed": dict(failed),
        "test_reads": sum(map(bool, reads.read_bytes().splitlines())) if reads.exists() else 0,
        "machines": list({json.dumps(record["machine"]): record["machine"] for record in records}.values()),
    }
    runs = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(about).encode()})
    with Transaction(folder / TABLES, {}) as tables:
        pq.write_table(runs, tables.named(RUNS, RUNS), compression="zstd")
        for name in (SCORES, CURVES):
            parts = [pq.read_table(Path(record["folder"]) / name) for record in records]
            pq.write_table(pa.concat_tables(parts), tables.named(name, name), compression="zstd")


def read_results(folder: Path) -> Results:
    """Read the three tables after they were compared with their checksums.

    Raises:
        FileNotFoundError: one is missing; says how to make it.
        Damaged: one was changed or damaged since it was written.
        ValueError: a Parquet file that is not this one's.
    """
    remedy = f"make it again: hardneg benchmark run SUITE --folder {folder}"
    if (folder / TABLES).exists():
        return read_published(folder / TABLES, remedy, lambda found: _read(_verified(found, folder, remedy), remedy))
    for name in NAMES:
        if not (folder / name).exists():
            raise _missing(folder / name, folder)
    results = _read({name: folder / name for name in NAMES}, remedy)
    log.warning("%s has no %s: its tables were written before there were checksums, read unchecked.", folder, TABLES)
    return results


def _verified(found: Manifest, folder: Path, remedy: str) -> dict[str, Path]:
    """Where the tables are, after all were compared with the manifest."""
    for entry in found.files.values():
        if not entry.now().exists():
            raise _missing(entry.path, folder)
    return {name: found.verified(name, remedy) for name in NAMES}


def _missing(file: Path, folder: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{file} does not exist. Make it: hardneg benchmark run SUITE --folder {folder}")


def _read(files: Mapping[str, Path], remedy: str) -> Results:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = {}
    for name, file in files.items():
        try:
            tables[name] = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise Damaged(f"{file} cannot be read ({' '.join(str(error).split()):.120}): {remedy}.") from None
    metadata = tables[RUNS].schema.metadata or {}
    if METADATA not in metadata:
        raise ValueError(f"{files[RUNS]} was not written by `hardneg benchmark run`.")
    runs, scores, curves = (tables[name].to_pandas() for name in NAMES)
    return Results(runs, scores, curves, json.loads(metadata[METADATA]))
