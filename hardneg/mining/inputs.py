"""What is mined, read from the files that people have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miners.ragged import Ragged


@dataclass
class Inputs:
    """What is mined: raw items or ready vectors, and who is whose positive."""

    queries: Any  # texts, or an (Q, ...) array
    corpus: Any  # texts, or an (M, ...) array
    known: Ragged
    query_names: Sequence[str] | None = None
    document_names: Sequence[str] | None = None
    content: Tensor | None = None  # (M,) hash of each document

    @property
    def texts(self) -> bool:
        """Whether texts are mined, not arrays."""
        return not isinstance(self.corpus, np.ndarray)

    def queries_by_name(self) -> dict[str, str] | None:
        """The queries' texts by external id; None for arrays."""
        return dict(zip(self.query_names, self.queries, strict=True)) if self.query_names else None

    def documents_by_name(self) -> dict[str, str] | None:
        """The documents' texts by external id; None for arrays."""
        return dict(zip(self.document_names, self.corpus, strict=True)) if self.document_names else None


def read_beir(folder: str, split: str) -> Inputs:
    """Read a BEIR folder; only queries with a positive in the split are mined."""
    from datamodules.beir import open_folder, read_corpus, read_qrels, read_queries
    from datamodules.text_data import known_positives

    path = open_folder(folder)
    corpus, queries = read_corpus(path), read_queries(path)
    positives = read_qrels(path, split, queries, corpus).at_least(1)
    rows = positives.queries.unique()
    if not len(rows):
        raise ValueError(f"{path}: no query has a positive in the split '{split}'.")
    known = known_positives(queries.content, corpus.content, positives).select(rows)
    names = [queries.names[row] for row in rows.tolist()]
    documents = [corpus.names[row] for row in range(len(corpus))]
    return Inputs(queries.take(rows), corpus, known, names, documents, corpus.content)


def read_known(path: Path, queries: int, documents: int) -> Ragged:
    """Read pairs of rows from a table."""
    from datamodules.readers import read_records

    pairs = []
    for place, row in read_records(path):
        try:
            query, document = int(row["query-id"]), int(row["corpus-id"])
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{place}: wants whole numbers in the columns query-id and corpus-id.") from error
        if not (0 <= query < queries and 0 <= document < documents):
            raise ValueError(f"{place}: row ({query}, {document}); there are {queries} queries, {documents} documents.")
        pairs.append((query, document))
    columns = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return Ragged.from_pairs(columns[:, 0], columns[:, 1], queries)


def load_array(path: Path) -> np.ndarray:
    """Memory-map an array; pickled ones are refused."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is no .npy array of numbers: {error}") from error
