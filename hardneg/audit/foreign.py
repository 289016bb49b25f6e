"""Read triplets, n-tuples and other trainers' files as a table of negatives that can be audited."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from datamodules.judgements import Judgements
from datamodules.pairs import NEGATIVE_COLUMN
from datamodules.readers import Fields, Place, read_records, text_field, texts_field
from datamodules.text_data import known_positives
from datamodules.texts import TextsBuilder
from hardneg.audit.measure import pair_products
from hardneg.mining.inputs import Inputs
from miners.offline import MinedNegatives
from miners.offline.mined import METADATA
from miners.store import Store

LAYOUTS = (
    "anchor, positive and negative, negatives or negative_1, negative_2, ... (triplets and n-tuples); query, pos and "
    "neg (FlagEmbedding); or query, positive_passages and negative_passages (Tevatron)"
)
SOURCE = "file"

Scored = dict[str, float]  # text -> score, NaN where the file has none


class Record(NamedTuple):
    """One line: an anchor with the texts that are near to it and those that are not."""

    anchor: str
    positives: Scored
    negatives: Scored


class Columns(NamedTuple):
    """Names of the columns of a file of triplets or n-tuples; None where the usual names are meant."""

    anchor: str | None = None
    positive: str | None = None
    negatives: Sequence[str] | None = None


def is_ours(path: Path) -> bool:
    """Whether `hardneg mine` or `miners.mine` wrote this file.

    Raises:
        FileNotFoundError: nothing is there.
    """
    import pyarrow.parquet as pq

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.suffix != ".parquet":
        return False
    try:
        return METADATA in (pq.read_schema(path).metadata or {})
    except pa.ArrowInvalid:
        return False  # the reader of foreign files says what is wrong with it


def read_foreign(path: Path, columns: Columns) -> tuple[MinedNegatives, Inputs]:
    """Read a file of any of the `LAYOUTS`.

    Lines with the same anchor are one query. Texts have no ids in such files: they are named by a hash. The corpus is
    every positive and negative of the file.

    Args:
        path: .jsonl, .csv, .tsv (each also .gz), .parquet, or a folder saved by `datasets`.
        columns: names that differ from the usual ones.

    Returns:
        The table, without scores where the file has none, and its texts with the known positives.

    Raises:
        ValueError: columns of no known layout, an empty anchor, a line without a positive, a file without negatives;
            file and line are named.
    """
    queries, documents = TextsBuilder("query"), TextsBuilder("document")
    positives: dict[tuple[int, int], float] = {}
    negatives: dict[tuple[int, int], float] = {}
    read: Callable[[Place, Fields, Columns], Record] | None = None
    for place, fields in read_records(path):
        read = read or layout_of(place, fields, columns)
        record = read(place, fields, columns)
        if not record.anchor or record.anchor.isspace():
            raise ValueError(f"{place}: has an empty anchor; every line needs one.")
        if not record.positives:
            raise ValueError(f"{place}: has no positive; every line needs one.")
        query = queries.add_once(place, record.anchor)
        for pairs, texts in ((positives, record.positives), (negatives, record.negatives)):
            for text, told in texts.items():
                pairs.setdefault((query, documents.add_once(place, text)), told)
    if not negatives:
        raise ValueError(f"{path}: no line has a negative, so there is nothing to audit.")
    asked, corpus = queries.build(), documents.build()
    of_query, document, score = sorted_pairs(negatives)
    near_query, near, near_score = sorted_pairs(positives)
    judged = Judgements(torch.from_numpy(near_query), torch.from_numpy(near), torch.ones(len(near), dtype=torch.long))
    known = known_positives(asked.content, corpus.content, judged)
    inputs = Inputs(asked, corpus, known, list(asked.names), list(corpus.names), corpus.content)
    found = np.bincount(of_query, minlength=len(asked))
    first = np.cumsum(found) - found
    query_names, names = pa.array(list(asked.names)), pa.array(list(corpus.names))
    table = pa.table(
        {
            "query_id": query_names.take(pa.array(of_query)),
            "doc_id": names.take(pa.array(document)),
            "rank": pa.array(np.arange(len(of_query)) - first[of_query] + 1, pa.int32()),
            **score_columns(of_query, score, near_query, near_score, len(asked)),
            "guide_score": pa.nulls(len(of_query), pa.float32()),
            "rescore": pa.nulls(len(of_query), pa.float32()),
            "source": pa.array([SOURCE]).take(pa.array(np.zeros(len(of_query), dtype=np.int64))),
            "relaxed": pa.nulls(len(of_query), pa.string()),
        }
    )
    ends = pa.array(np.concatenate([[0], np.cumsum(np.bincount(near_query, minlength=len(asked)))]), pa.int32())
    by_query = pa.table(
        {
            "query_id": query_names,
            "found": pa.array(found, pa.int32()),
            "positive_ids": pa.ListArray.from_arrays(ends, names.take(pa.array(near))),
            "positive_scores": pa.ListArray.from_arrays(ends, floats(near_score)),
        }
    )
    metadata = {"settings": {"num_negatives": int(found.max())}, "inputs": {"model": {}}}
    return MinedNegatives(table, by_query, metadata), inputs


def scored_by(mined: MinedNegatives, inputs: Inputs, queries: Store, corpus: Store) -> MinedNegatives:
    """Give a table the scores of a model: every negative's, and every positive's."""
    assert inputs.query_names is not None
    assert inputs.document_names is not None
    asked, names = pa.array(inputs.query_names), pa.array(inputs.document_names)
    of_query, document = mined.query_of, pc.index_in(mined.table["doc_id"], value_set=names).to_numpy()
    near_query, _, positive_ids = mined.positives
    near = pc.index_in(positive_ids, value_set=names).to_numpy()
    assert mined.queries["query_id"].combine_chunks().equals(asked)  # the rows of a foreign table are the inputs'

    def scores(query: np.ndarray, other: np.ndarray) -> np.ndarray:
        pairs = torch.tensor(query, dtype=torch.long), torch.tensor(other, dtype=torch.long)
        return pair_products(queries.vectors, corpus.vectors, *pairs).numpy()

    near_score = scores(near_query, near)
    columns = score_columns(of_query, scores(of_query, document), near_query, near_score, len(asked))
    table, by_query = mined.table, mined.queries
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    lists = by_query["positive_ids"].combine_chunks()
    place = by_query.column_names.index("positive_scores")
    by_query = by_query.set_column(
        place, "positive_scores", pa.ListArray.from_arrays(lists.offsets, floats(near_score))
    )
    return MinedNegatives(table, by_query, mined.metadata)


def layout_of(place: Place, fields: Fields, columns: Columns) -> Callable[[Place, Fields, Columns], Record]:
    """Choose the reader by the columns of the first line."""
    if any(columns):
        return tuples
    if {"query", "pos"} <= fields.keys():
        return flagembedding
    if {"query", "positive_passages"} <= fields.keys():
        return tevatron
    if {"anchor", "positive"} <= fields.keys() and any(NEGATIVE_COLUMN.fullmatch(name) for name in fields):
        return tuples
    raise ValueError(
        f"{place}: has the columns {', '.join(map(str, fields)) or 'none'}. Wanted: {LAYOUTS}. Name others with "
        "--anchor, --positive and --negatives."
    )


def tuples(place: Place, fields: Fields, columns: Columns) -> Record:
    """A triplet or an n-tuple; a column may hold one text, a list of texts, or nothing."""
    names = columns.negatives
    if names is None:
        names = [name for name in fields if NEGATIVE_COLUMN.fullmatch(name)]
    negatives = [text for name in names for text in texts_field(place, fields, name)]
    positives = texts_field(place, fields, columns.positive or "positive")
    anchor = text_field(place, fields, columns.anchor or "anchor")
    return Record(anchor, unscored(positives), unscored(negatives))


def flagembedding(place: Place, fields: Fields, columns: Columns) -> Record:
    """FlagEmbedding's line; ``pos_scores`` and ``neg_scores`` may stand beside the texts."""

    def side(name: str) -> Scored:
        texts, scores = fields.get(name) or [], fields.get(f"{name}_scores")
        if not isinstance(texts, list):
            raise ValueError(f"{place}: field '{name}' must be a list of texts, got {type(texts).__name__}.")
        if scores is None:
            return unscored(texts_field(place, fields, name) if texts else [])
        if not isinstance(scores, list) or len(scores) != len(texts):
            raise ValueError(f"{place}: field '{name}_scores' must hold one number for each text of '{name}'.")
        texts_field(place, fields, name)
        pairs = zip(texts, scores, strict=True)
        return {text: float(score) for text, score in pairs if text and not text.isspace()}

    return Record(text_field(place, fields, "query"), side("pos"), side("neg"))


def tevatron(place: Place, fields: Fields, columns: Columns) -> Record:
    """Tevatron's line: passages are objects with a title and a text, joined by a space as its trainer does."""

    def side(name: str) -> Scored:
        texts = []
        for passage in fields.get(name) or []:
            if not isinstance(passage, Mapping):
                raise ValueError(f"{place}: field '{name}' must hold objects with a text, got {passage!r:.60}.")
            text = text_field(place, passage, "text")
            title = text_field(place, passage, "title") if "title" in passage else ""
            texts.append(f"{title} {text}".strip())
        return unscored(text for text in texts if text)

    return Record(text_field(place, fields, "query"), side("positive_passages"), side("negative_passages"))


def unscored(texts: Any) -> Scored:
    """Texts without scores, each once, in their order."""
    return dict.fromkeys(texts, float("nan"))


def sorted_pairs(pairs: Mapping[tuple[int, int], float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, document and score (V,) each, ordered by query; the pairs of one query keep their order."""
    rows = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    order = np.argsort(rows[:, 0], kind="stable")
    return rows[order, 0], rows[order, 1], np.array(list(pairs.values()), dtype=np.float32)[order]


def score_columns(
    of_query: np.ndarray, score: np.ndarray, near_query: np.ndarray, near_score: np.ndarray, queries: int
) -> dict[str, pa.Array]:
    """The columns ``score`` and ``positive_score`` (the query's lowest); null where a score is not known."""
    lowest = np.full(queries, np.inf, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        np.minimum.at(lowest, near_query, near_score)  # NaN stays NaN: a query with an unknown score has no lowest
    return {"score": floats(score), "positive_score": floats(lowest[of_query])}


def floats(values: np.ndarray) -> pa.Array:
    """float32, null for NaN."""
    return pa.array(values, pa.float32(), from_pandas=True)
