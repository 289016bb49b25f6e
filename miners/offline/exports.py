"""The mined table in other trainers' formats."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from miners.transaction import write_file

if TYPE_CHECKING:
    import pyarrow as pa

    from miners.offline.mined import Items, MinedNegatives


def to_hf(mined: MinedNegatives, format: str, queries: Items | None, corpus: Items | None, scores: bool) -> Any:
    """See `MinedNegatives.to_hf`."""
    try:
        from datasets import Dataset
    except ImportError as error:
        raise ImportError("MinedNegatives.to_hf needs datasets: run `pip install datasets`.") from error
    makers = {"triplet": triplets, "n-tuple": tuples, "labeled-pair": pairs, "labeled-list": lists}
    if format not in makers:
        raise ValueError(f"to_hf(format={format!r}): one of {', '.join(map(repr, makers))}.")
    import pyarrow as pa

    return Dataset(pa.table(makers[format](Grouped(mined, queries, corpus), scores)))


class Grouped:
    """The table as flat arrays: every (query, positive) pair, and each query's negatives as a range.

    V pairs, N negatives (empty slots left out), both ordered by query.
    """

    def __init__(self, mined: MinedNegatives, queries: Items | None, corpus: Items | None) -> None:
        import pyarrow as pa

        real = mined.table["doc_id"].is_valid().to_numpy()
        self.wanted = mined.metadata["settings"]["num_negatives"]
        self.owner = mined.query_of[real]  # (N,) query of each negative
        self.found = np.bincount(self.owner, minlength=len(mined.queries))  # (Q,)
        self.start = np.cumsum(self.found) - self.found  # (Q,) first negative of each query
        self.query, self.positive_score, positive = mined.positives  # (V,)
        self.negative_score = mined.table["score"].combine_chunks().filter(pa.array(real)).to_numpy()  # (N,)
        ids = mined.queries["query_id"].combine_chunks()
        self.queries = looked_up(ids, queries)
        documents = pa.concat_arrays([positive, mined.table["doc_id"].combine_chunks().filter(pa.array(real))])
        documents = looked_up(documents, corpus)
        self.positive = documents[: len(positive)]
        self.negative = documents[len(positive) :]

    def ranges(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For some of the (query, positive) pairs: the pair and the negative of every combination."""
        count = self.found[self.query[pairs]]
        pair = np.repeat(pairs, count)
        within = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
        return pair, self.start[self.query[pair]] + within


def looked_up(ids: pa.Array, items: Items | None) -> pa.Array:
    """Replace ids by what they stand for, each looked up once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if items is None:
        return ids
    unique = ids.unique()
    try:
        values = pa.array([items[one] for one in unique.to_pylist()])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"The table's ids do not fit the items given ({type(items).__name__} of {len(items)}): {error!r}. Give a "
            "mapping from id to item, or a sequence where ids count from 0."
        ) from error
    return values.take(pc.index_in(ids, value_set=unique))


def triplets(grouped: Grouped, scores: bool) -> dict[str, pa.Array]:
    """anchor, positive, negative for every pair and each of its negatives."""
    pair, negative = grouped.ranges(np.arange(len(grouped.query)))
    columns = {
        "anchor": grouped.queries.take(grouped.query[pair]),
        "positive": grouped.positive.take(pair),
        "negative": grouped.negative.take(negative),
    }
    if scores:
        columns["scores"] = rows_of(np.stack([grouped.positive_score[pair], grouped.negative_score[negative]], axis=1))
    return columns


def tuples(grouped: Grouped, scores: bool) -> dict[str, pa.Array]:
    """anchor, positive, negative_1 ... negative_n for every pair whose query has all n."""
    pairs = np.flatnonzero(grouped.found[grouped.query] == grouped.wanted)
    negative = grouped.start[grouped.query[pairs]][:, None] + np.arange(grouped.wanted)  # (pairs, n)
    columns = {
        "anchor": grouped.queries.take(grouped.query[pairs]),
        "positive": grouped.positive.take(pairs),
        **{f"negative_{slot + 1}": grouped.negative.take(negative[:, slot]) for slot in range(grouped.wanted)},
    }
    if scores:
        columns["scores"] = rows_of(
            np.concatenate([grouped.positive_score[pairs, None], grouped.negative_score[negative]], axis=1)
        )
    return columns


def pairs(grouped: Grouped, scores: bool) -> dict[str, pa.Array]:
    """anchor, document, label: of each query first the positives, then the negatives."""
    import pyarrow as pa

    query = np.concatenate([grouped.query, grouped.owner])
    negative = np.arange(len(query)) >= len(grouped.query)
    order = np.lexsort((np.arange(len(query)), negative, query))
    documents = pa.concat_arrays([grouped.positive, grouped.negative])
    columns = {"anchor": grouped.queries.take(query[order]), "positive": documents.take(order)}
    if scores:
        columns["score"] = pa.array(np.concatenate([grouped.positive_score, grouped.negative_score])[order])
    else:
        columns["label"] = pa.array((~negative[order]).astype(np.int64))
    return columns


def lists(grouped: Grouped, scores: bool) -> dict[str, pa.Array]:
    """anchor, [positive, negatives ...], labels for every pair that has a negative."""
    import pyarrow as pa

    pairs = np.flatnonzero(grouped.found[grouped.query] > 0)
    _, negative = grouped.ranges(pairs)
    sizes = grouped.found[grouped.query[pairs]] + 1
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    first = np.zeros(offsets[-1], dtype=bool)
    first[offsets[:-1]] = True
    place = np.empty(offsets[-1], dtype=np.int64)  # positives stand before negatives in `documents`
    place[first], place[~first] = pairs, len(grouped.query) + negative
    documents = pa.concat_arrays([grouped.positive, grouped.negative])
    ends = pa.array(offsets, pa.int32())
    columns = {
        "anchor": grouped.queries.take(grouped.query[pairs]),
        "positive": pa.ListArray.from_arrays(ends, documents.take(place)),
    }
    if scores:
        values = np.concatenate([grouped.positive_score, grouped.negative_score])[place]
        columns["scores"] = pa.ListArray.from_arrays(ends, pa.array(values))
    else:
        columns["labels"] = pa.ListArray.from_arrays(ends, pa.array(first.astype(np.int64)))
    return columns


def rows_of(matrix: np.ndarray) -> pa.Array:
    """A list per row of a matrix."""
    import pyarrow as pa

    ends = np.arange(0, matrix.size + 1, matrix.shape[1])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(matrix.ravel()))


def to_jsonl(mined: MinedNegatives, path: Path, layout: str, queries: Items | None, corpus: Items | None) -> None:
    """See `MinedNegatives.to_jsonl`."""
    makers = {"flagembedding": flagembedding, "tevatron": tevatron, "nemo": nemo}
    if layout not in makers:
        raise ValueError(f"to_jsonl(layout={layout!r}): one of {', '.join(map(repr, makers))}.")
    with write_file(path, "w") as file:
        file.writelines(makers[layout](mined, queries, corpus))


def by_query(mined: MinedNegatives, queries: Items | None, corpus: Items | None) -> Iterator[Mapping[str, Any]]:
    """One record per query: ids, items and scores of its positives and negatives."""
    named, texts = Grouped(mined, None, None), Grouped(mined, queries, corpus)
    positives = np.bincount(named.query, minlength=len(mined.queries))
    begin = np.cumsum(positives) - positives
    for query in range(len(mined.queries)):
        pos = slice(begin[query], begin[query] + positives[query])
        neg = slice(named.start[query], named.start[query] + named.found[query])
        yield {
            "id": named.queries[query].as_py(),
            "query": texts.queries[query].as_py(),
            "pos_ids": named.positive[pos].to_pylist(),
            "neg_ids": named.negative[neg].to_pylist(),
            "pos": texts.positive[pos].to_pylist(),
            "neg": texts.negative[neg].to_pylist(),
            "pos_scores": named.positive_score[pos].tolist(),
            "neg_scores": named.negative_score[neg].tolist(),
        }


def flagembedding(mined: MinedNegatives, queries: Items | None, corpus: Items | None) -> Iterator[str]:
    """One line per query, as FlagEmbedding's fine-tuning reads them."""
    for record in by_query(mined, queries, corpus):
        keys = ("query", "pos", "neg", "pos_scores", "neg_scores")
        yield json.dumps({key: record[key] for key in keys}, ensure_ascii=False) + "\n"


def tevatron(mined: MinedNegatives, queries: Items | None, corpus: Items | None) -> Iterator[str]:
    """One line per query, as Tevatron's trainer reads them."""

    def passages(ids: list[Any], texts: list[Any]) -> list[dict[str, Any]]:
        return [{"docid": str(one), "title": "", "text": text} for one, text in zip(ids, texts, strict=True)]

    for record in by_query(mined, queries, corpus):
        line = {
            "query_id": str(record["id"]),
            "query": record["query"],
            "positive_passages": passages(record["pos_ids"], record["pos"]),
            "negative_passages": passages(record["neg_ids"], record["neg"]),
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def nemo(mined: MinedNegatives, queries: Items | None, corpus: Items | None) -> Iterator[str]:
    """One JSON object, as NeMo Automodel's retrieval recipes read it; documents stand in a corpus of their own."""

    def documents(ids: list[Any], scores: list[float]) -> list[dict[str, Any]]:
        return [{"id": str(one), "score": score} for one, score in zip(ids, scores, strict=True)]

    name = mined.metadata["inputs"]["corpus"]["space"]
    args = json.dumps(mined.metadata["settings"], ensure_ascii=False)
    yield f'{{"corpus": {json.dumps(name)}, "mining": {{"args": {args}}}, "data": [\n'
    for number, record in enumerate(by_query(mined, queries, corpus)):
        line = {
            "question_id": str(record["id"]),
            "question": record["query"],
            "corpus_id": name,
            "pos_doc": documents(record["pos_ids"], record["pos_scores"]),
            "neg_doc": documents(record["neg_ids"], record["neg_scores"]),
        }
        yield (",\n" if number else "") + json.dumps(line, ensure_ascii=False)
    yield "\n]}\n"
