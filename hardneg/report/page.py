"""The page: tables, pictures and texts of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardneg.report import measures
from hardneg.report.evaluation import Evaluation, read_evaluations, write_whole
from hardneg.report.run import Record, Run, read_runs
from hardneg.report.selection import changes, early_and_late
from hardneg.report.words import Scale, count, duration, signed, spoken

HERE = Path(__file__).parent


def write_report(folder: str | Path, title: str | None = None, out: str | Path | None = None) -> Path:
    """Write a self-contained ``report.html`` of a run's folder: no network, no script, no other file.

    The folder holds metrics.csv (a CSVLogger's), negatives.jsonl (`RecordNegatives`) and evaluation.json
    (`save_evaluation`); the page says how to get what is missing. A folder that holds no run itself is read as a
    comparison of all runs below it; its own evaluation.json may hold the start that they share.

    Args:
        folder: of the run, or of several.
        title: heading; None = the folder's name.
        out: file to write; None = report.html in the folder.

    Returns:
        The file.

    Raises:
        FileNotFoundError: no folder, or no run in it.
        ValueError: a file of the run is broken; names file and line.
        ImportError: the extra "train" is not installed.
    """
    folder = Path(folder)
    runs = read_runs(folder)
    page = render(runs, read_evaluations(folder), title or folder.resolve().name)
    file = Path(out) if out is not None else folder / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, page)
    return file


def render(runs: Sequence[Run], shared: Sequence[Evaluation], title: str) -> str:
    """The page of runs as HTML; ``shared`` are evaluations of the folder above several runs."""
    try:
        import jinja2
        from markupsafe import Markup

        from hardneg.report import curves
    except ImportError as error:
        raise ImportError(f"the report needs {error.name}: pip install 'hardneg[train]'") from None
    columns = measures.evaluation_columns(runs, shared)
    base = columns[0] if columns and columns[0].evaluation.name == measures.START else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "duration": duration, "spoken": spoken, "count": count}
    return environment.get_template("page.html").render(
        title=title,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        runs=runs,
        facts=facts(runs),
        columns=columns,
        base=base,
        table=measures.table(columns, base),
        versus=measures.versus(columns, base),
        ruler=measures.ruler(columns),
        hardness=curves.hardness_picture(runs),
        hardness_rows=curves.hardness_rows(runs),
        progress=curves.progress_pictures(runs),
        reasons=curves.reasons(runs),
        dropped=curves.dropped_picture(runs),
        shares=[curves.mean_of(run, "dropped_share") for run in runs],
        empty=[curves.mean_of(run, "empty_rows") for run in runs],
        empty_picture=curves.empty_picture(runs),
        lessons=lessons(runs),
        moved=[
            (column, changes(base.evaluation, column.evaluation))
            for column in columns
            if base is not None and column is not base and measures.comparable(base, column)
        ],
        text_of=lambda evaluation, name: evaluation.documents[name],
    )


def facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Facts by row, one value per run; a single one where all runs agree."""
    names = dict.fromkeys(name for run in runs for name in run.facts)
    rows = []
    for name in names:
        values = [run.facts.get(name, "–") for run in runs]
        rows.append((name, values[:1] if len(set(values)) == 1 else values))
    return rows


def lessons(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run with records: anchors early and late, on one scale of similarity."""
    out = []
    for run in runs:
        rows = early_and_late(run.records)
        shown = [record for row in rows for record in row if record is not None]
        scores = [scored.score for record in shown for scored in (record.positive, *record.negatives)]
        if shown:
            out.append({"run": run, "rows": rows, "scale": Scale.of(scores, 0.2), "shares": _above(run.records)})
    return out


def _above(records: Sequence[Record]) -> Mapping[str, float]:
    """Share of recorded anchors whose hardest negative scored above the positive, in the first and last third."""
    first, last = min(record.step for record in records), max(record.step for record in records)
    third = (last - first) / 3
    thirds = {
        "first": [record for record in records if record.step <= first + third],
        "last": [record for record in records if record.step >= last - third],
    }
    above = {
        name: [any(n.score > record.positive.score for n in record.negatives) for record in of]
        for name, of in thirds.items()
    }
    return {name: sum(of) / len(of) for name, of in above.items()}
