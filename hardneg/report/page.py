"""The page: tables, pictures and texts of one run, or of several side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hardneg.report import measures
from hardneg.report.evaluation import Evaluation, read_evaluations
from hardneg.report.run import Record, Run, read_run, read_runs
from hardneg.report.selection import MOST_NEGATIVES, base_of, early_and_late, moved, top_of
from hardneg.report.thumbnails import FILE as THUMBNAILS
from hardneg.report.thumbnails import Thumbnails, thumbnail_of
from hardneg.report.words import Scale, count, duration, signed, spoken
from miners.transaction import write_text

HERE = Path(__file__).parent


def write_report(folder: str | Path, title: str | None = None, out: str | Path | None = None) -> Path:
    """Write a self-contained ``report.html`` of a run's folder: no network, no script, no other file.

    The folder holds metrics.csv (a CSVLogger's), negatives.jsonl (`RecordNegatives`), evaluation.json
    (`save_evaluation`) and, where things have pictures, thumbnails.json (`save_thumbnails`, which `WriteReport` calls);
    the page says how to get what is missing. A folder that holds no run itself is read as a
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
    write_text(file, page)
    return file


def render(runs: Sequence[Run], shared: Sequence[Evaluation], title: str) -> str:
    """The page of runs as HTML; ``shared`` are evaluations of the folder above several runs."""
    try:
        environment = make_environment()
        from hardneg.report import curves
    except ImportError as error:
        raise ImportError(f"the report needs {error.name}: pip install 'hardneg[train]'") from None
    columns = measures.evaluation_columns(runs, shared)
    base = base_of(columns)
    return environment.get_template("page.html").render(
        title=title,
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
        moved=moved(columns),
        most_negatives=MOST_NEGATIVES,
        top_of=top_of,
        text_of=lambda evaluation, name: evaluation.documents[name],
    )


def make_environment() -> Any:
    """Templates of this folder, with the style and the words of its pages."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "duration": duration, "spoken": spoken, "count": count}
    environment.globals["css"] = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return environment


def save_thumbnails(folder: str | Path, data: Any) -> Path | None:
    """Keep small pictures of what the page of a run's folder shows, as ``thumbnails.json`` in it.

    Args:
        folder: of one run, with everything else that its page is made of.
        data: the data module, set up; its ``depict(i, space)`` says what a thing looks like.

    Returns:
        The file; None where nothing that is shown has a picture.
    """
    run = read_run(Path(folder), "")
    records = [record for row in early_and_late(run.records) for record in row if record is not None]
    recorded = [r.thing for r in records]
    recorded += [scored.thing for r in records for scored in (r.positive, *r.negatives[:MOST_NEGATIVES])]
    changed = [found for _, found in moved(measures.evaluation_columns([run], ()))]
    rankings = [
        ranking
        for found in changed
        for change in (*found.better, *found.worse)
        for ranking in (change.before, change.after)
    ]
    documents = {name for r in rankings for name in (r.relevant, *(found.document for found in top_of(r)))}

    def named(names: set[str], space: str) -> dict[str, tuple[int, str]]:
        return {name: (i, space) for i, name in enumerate(data.names(space)) if name in names} if names else {}

    def pictures(asked: Mapping[str, tuple[int, str]]) -> dict[str, str]:
        found = {key: thumbnail_of(data, i, space) for key, (i, space) in asked.items()}
        return {key: picture for key, picture in found.items() if picture is not None}

    thumbnails = Thumbnails(
        things=pictures(
            {thing: (int(thing.partition("/")[2]), thing.partition("/")[0]) for thing in recorded if thing}
        ),
        queries=pictures(named({ranking.name for ranking in rankings}, "query")),
        documents=pictures(named(documents, "document")),
    )
    if thumbnails == Thumbnails():
        return None
    file = Path(folder) / THUMBNAILS
    write_text(file, json.dumps(asdict(thumbnails)))
    return file


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
