"""What an evaluation leaves behind for the report: ``evaluation.json`` in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hardneg.metrics.retrieval import RetrievalMeasures
from miners.transaction import write_text

FILE = "evaluation.json"
TOP = 5
LONGEST_TEXT = 400  # characters of a document that the page can show


@dataclass(frozen=True)
class Found:
    """One document of a ranking: its name in the files, its similarity to the query, its grade (0 = not relevant)."""

    document: str
    score: float
    grade: int


@dataclass(frozen=True)
class RankedQuery:
    """What one query found.

    Args:
        name, text: of the query.
        rank: place of the first relevant document, 1 = best; None where the first 100 hold none.
        relevant: name of that document, or of the query's best graded one where none was found.
        top: the first documents of the ranking.
    """

    name: str
    text: str
    rank: int | None
    relevant: str
    top: tuple[Found, ...]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a model on one split.

    Args:
        name: "start", "final", or what you like to call it.
        split: which judgements.
        means: measure -> mean over queries.
        by_query: measure -> the value of each query of ``query_names``, in this order.
        queries: rankings with texts, of some queries or of all.
        documents: texts by name, of every document that ``queries`` mention.
        seconds: what the training before it took; None where there was none.
        step: optimiser steps before it; None where nobody said.
    """

    name: str
    split: str
    means: Mapping[str, float]
    query_names: tuple[str, ...]
    by_query: Mapping[str, tuple[float, ...]]
    queries: tuple[RankedQuery, ...]
    documents: Mapping[str, str]
    seconds: float | None = None
    step: int | None = None


def save_evaluation(
    folder: str | Path,
    name: str,
    measures: RetrievalMeasures,
    data: Any,
    split: str,
    seconds: float | None = None,
    step: int | None = None,
    num_texts: int = 1000,
) -> Path:
    """Add an evaluation to ``evaluation.json`` of a run's folder, in place of one of the same name.

    Args:
        folder: the run's folder; made if it is missing.
        name: "start" before training and "final" after it are what the report compares.
        measures: what `evaluate_retrieval` returned for ``data.queries(split)``; a module keeps them as ``measures``.
        data: the data module, for names, texts and judgements.
        split: the split that was evaluated.
        seconds: training time before this evaluation; None = not trained.
        step: optimiser steps before it.
        num_texts: queries whose ranking is kept as text, evenly spaced over the split; measures are kept of all.

    Returns:
        The file.

    Raises:
        ValueError: the measures are not of this split's queries.
    """
    ids, texts = data.queries(split)
    names = data.names("query")
    query_names = tuple(names[i] for i in ids.tolist())
    # other measures are not of queries: those of pairs, of which the page shows the mean
    by_query = {measure: of for measure, of in measures.by_query.items() if set(of) == set(query_names)}
    if len(measures.ids) != len(query_names) or (query_names and not by_query):
        raise ValueError(
            f"save_evaluation('{name}'): the measures are not those of the {len(query_names)} queries of the split "
            f"'{split}' of {data}; pass the split that was evaluated."
        )
    kept = [at * len(query_names) // num_texts for at in range(num_texts)] if num_texts < len(query_names) else None
    documents = data.names("document")
    qrels = data.qrels(split)
    queries: list[RankedQuery] = []
    shown: dict[str, str] = {}  # documents that some ranking mentions
    for row in range(len(query_names)) if kept is None else kept:
        grades = qrels[query_names[row]]
        ranking = [documents[i] for i in measures.ids[row].tolist() if i >= 0]  # lists of re-rankers may be short
        rank = next((place for place, found in enumerate(ranking, 1) if grades.get(found, 0) >= 1), None)
        relevant = ranking[rank - 1] if rank else max(grades, key=lambda found: grades[found])
        scores = measures.scores[row, : min(TOP, len(ranking))].tolist()
        top = tuple(
            Found(found, score, grades.get(found, 0)) for found, score in zip(ranking[:TOP], scores, strict=True)
        )
        queries.append(RankedQuery(query_names[row], texts[row], rank, relevant, top))
        shown |= dict.fromkeys([relevant, *ranking[:TOP]], "")
    id_of = {document: i for i, document in enumerate(documents) if document in shown}
    for document, text in zip(shown, data.text_of([id_of[document] for document in shown], "document"), strict=True):
        shown[document] = text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT].rstrip() + " …"
    evaluation = Evaluation(
        name=name,
        split=split,
        means={measure: float(mean) for measure, mean in measures.means.items()},
        query_names=query_names,
        by_query={measure: tuple(of[query] for query in query_names) for measure, of in by_query.items()},
        queries=tuple(queries),
        documents=shown,
        seconds=seconds,
        step=step,
    )
    file = Path(folder) / FILE
    others = [other for other in read_evaluations(folder) if other.name != name]
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {"evaluations": [asdict(each) for each in (*others, evaluation)]}
    write_text(file, json.dumps(record, ensure_ascii=False))
    return file


def read_evaluations(folder: str | Path) -> list[Evaluation]:
    """Read ``evaluation.json`` of a folder; none where there is no such file.

    Raises:
        ValueError: the file is no JSON or not of the form that `save_evaluation` writes; says where.
    """
    file = Path(folder) / FILE
    if not file.exists():
        return []
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}, line {error.lineno}: no JSON ({error.msg}). Remove the file and evaluate again."
        ) from None
    try:
        return [_evaluation(each) for each in record["evaluations"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{file}: not as hardneg.report.save_evaluation writes it ({what}). Remove the file and evaluate again."
        ) from None


def _evaluation(record: Mapping[str, Any]) -> Evaluation:
    names = tuple(str(name) for name in record["query_names"])
    by_query = {str(measure): tuple(map(float, values)) for measure, values in record["by_query"].items()}
    for measure, values in by_query.items():
        if len(values) != len(names):
            raise ValueError(f"evaluation '{record['name']}': {len(values)} values of {measure}, {len(names)} queries")
    queries = tuple(
        RankedQuery(
            str(query["name"]),
            str(query["text"]),
            None if query["rank"] is None else int(query["rank"]),
            str(query["relevant"]),
            tuple(Found(str(f["document"]), float(f["score"]), int(f["grade"])) for f in query["top"]),
        )
        for query in record["queries"]
    )
    documents = {str(name): str(text) for name, text in record["documents"].items()}
    for query in queries:
        for name in (query.relevant, *(found.document for found in query.top)):
            if name not in documents:
                raise ValueError(f"evaluation '{record['name']}': no text of document '{name}' of query '{query.name}'")
    return Evaluation(
        name=str(record["name"]),
        split=str(record["split"]),
        means={str(measure): float(mean) for measure, mean in record["means"].items()},
        query_names=names,
        by_query=by_query,
        queries=queries,
        documents=documents,
        seconds=None if record["seconds"] is None else float(record["seconds"]),
        step=None if record["step"] is None else int(record["step"]),
    )
