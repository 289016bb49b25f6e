"""Mined tables as data of the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from miners.offline import MinedNegatives
from miners.offline.exports import Grouped


def training_rows(
    mined: MinedNegatives,
    queries: Mapping[Any, str] | Sequence[str] | None = None,
    corpus: Mapping[Any, str] | Sequence[str] | None = None,
    num_negatives: int | None = None,
) -> Dataset:
    """A mined table as the trainer's data: anchor, positive, negative_1 ... negative_n, a row for every positive.

    Lists shorter than n are filled with the row's own positive, which `ChainLoss` takes for an empty slot.
    ``MinedNegatives.to_hf`` makes the other layouts, for the library's own losses.

    Args:
        queries, corpus: texts by id, as in `MinedNegatives.to_hf`.
        num_negatives: n, the first of each list; None = as many as were asked for in mining.
    """
    grouped = Grouped(mined, queries, corpus)
    wanted = grouped.wanted if num_negatives is None else num_negatives
    pair = np.arange(len(grouped.query))  # (V,)
    documents = pa.concat_arrays([grouped.positive, grouped.negative])
    columns = {"anchor": grouped.queries.take(pa.array(grouped.query)), "positive": grouped.positive}
    for slot in range(wanted):
        there = slot < grouped.found[grouped.query]
        place = np.where(there, len(pair) + grouped.start[grouped.query] + slot, pair)
        columns[f"negative_{slot + 1}"] = documents.take(pa.array(place))
    return Dataset(pa.table(columns))
