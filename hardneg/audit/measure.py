"""Measure a table of mined negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miners.offline import MinedNegatives
from miners.ragged import Ragged

BANDS = (
    ("beats the positive", 0.0),
    ("up to 5 % below", 0.05),
    ("5 to 20 % below", 0.2),
    ("more than 20 % below", np.inf),
)
MOST_USED = 10


def audit(mined: MinedNegatives, texts: Mapping[Any, str] | None = None) -> dict[str, Any]:
    """Measure what the table itself tells.

    Args:
        mined: the table.
        texts: documents by id; None leaves the search for equal texts out.

    Returns:
        Plain values for JSON: ``negatives``, ``queries``, ``without_negatives``, ``hardness`` (share of negatives by
        how far they score below their query's lowest positive), ``quantiles`` of scores, ``known_positives`` and
        ``equal_texts`` (negatives that are a positive by id, or by text), ``use`` (how often documents serve).
    """
    from datamodules.texts import content_hash

    table = mined.table.filter(mined.table["doc_id"].is_valid())
    score = table["score"].to_numpy()
    positive = table["positive_score"].to_numpy()
    below = (positive - score) / np.maximum(np.abs(positive), 1e-12)  # share of the positive's score
    bounds = np.array([bound for _, bound in BANDS])
    band = np.searchsorted(bounds, below, side="left")
    owner = mined.query_of[mined.table["doc_id"].is_valid().to_numpy()]
    of_positive, positive_scores, positive_ids = mined.positives
    pairs = set(zip(of_positive.tolist(), positive_ids.to_pylist(), strict=True))
    documents = table["doc_id"].to_pylist()
    equal_texts = None
    if texts is not None:
        hashes = {one: content_hash(texts[one]) for one in {*documents, *positive_ids.to_pylist()}}
        same = {(query, hashes[one]) for query, one in pairs}
        equal_texts = sum((query, hashes[one]) in same for query, one in zip(owner.tolist(), documents, strict=True))
    names, uses = np.unique(np.array(documents, dtype=object).astype(str), return_counts=True)
    order = np.argsort(-uses, kind="stable")
    found = mined.queries["found"].to_numpy()
    return {
        "negatives": len(score),
        "queries": len(found),
        "without_negatives": int((found == 0).sum()),
        "hardness": {
            name: float(np.mean(band == number)) if len(band) else 0.0 for number, (name, _) in enumerate(BANDS)
        },
        "quantiles": {"positives": quantiles(positive_scores), "negatives": quantiles(score)},
        "known_positives": sum((query, one) in pairs for query, one in zip(owner.tolist(), documents, strict=True)),
        "equal_texts": equal_texts,
        "dropped": mined.dropped(),
        "use": {
            "documents": len(names),
            "most": int(uses.max()) if len(uses) else 0,
            "share_of_most_used_percent": share_of_top(uses),
            "most_used": [[names[at], int(uses[at])] for at in order[:MOST_USED]],
        },
    }


def staleness(
    mined: MinedNegatives, queries: Tensor, corpus: Tensor, rows: tuple[Tensor, Tensor, Ragged]
) -> dict[str, Any]:
    """Score the table again with another model: a later checkpoint, or a guide.

    Args:
        mined: the table; empty slots left out by the caller's rows.
        queries: (Q, d) the other model's vectors.
        corpus: (M, d) likewise.
        rows: query (N,) and document (N,) of every negative, and the positives (Q lists) as rows of the two.

    Returns:
        ``beats_the_positive``: share that now scores above the query's lowest positive. ``correlation`` of the old and
        the new score. ``still_hard``: share within 20 % of the positive.
    """
    from miners.offline.candidates import known_products, reduce_lists
    from miners.store import Store

    query, document, known = rows
    new = torch.linalg.vecdot(queries[query].double(), corpus[document].double())
    lowest = reduce_lists(known, known_products(queries, Store(corpus), known), "lowest")[query].double()
    old = torch.tensor(mined.table["score"].drop_null().to_numpy().copy()).double()
    stacked = torch.stack([old, new])
    return {
        "beats_the_positive": float((new > lowest).double().mean()),
        "still_hard": float((new > lowest - 0.2 * lowest.abs()).double().mean()),
        "correlation": float(torch.corrcoef(stacked)[0, 1]) if len(new) > 1 else float("nan"),
    }


def hide(known: Ragged, content: Tensor, share: float, seed: int) -> tuple[Ragged, Tensor, Tensor]:
    """Take a random share of the positives away, never the last one of a query.

    Documents of equal content are one positive: they go together, or the one that stays would give the other away.

    Args:
        known: positives (rows of the corpus) of Q queries.
        content: (M,) hash of each document.
        share: of all positives, in (0, 1).
        seed: of the draw.

    Returns:
        What is left, and the query (n,) and one document (n,) of every positive that was hidden.
    """
    owner = known.row_of_value
    _, rank = content[known.values].unique(return_inverse=True)
    keys, group = (owner * (len(known.values) + 1) + rank).unique(return_inverse=True)  # one key per distinct positive
    row = torch.arange(len(owner))
    example = row.new_full((len(keys),), len(owner)).scatter_reduce(0, group, row, "amin")  # a value of each group
    draw = torch.rand(len(keys), generator=torch.Generator().manual_seed(seed))
    first = torch.full((len(known),), 2.0).scatter_reduce(0, owner[example], draw, "amin")
    may = draw > first[owner[example]]  # the one with the smallest lot stays, whatever happens
    count = min(int(may.sum()), max(1, round(share * len(keys))))
    gone = torch.zeros(len(keys), dtype=torch.bool)
    gone[draw.masked_fill(~may, -1).topk(count).indices] = True
    left = ~gone[group]
    hidden = example[gone]
    return Ragged.from_pairs(owner[left], known.values[left], len(known)), owner[hidden], known.values[hidden]


def interval(passed: int, total: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) 95 % interval of a rate; (0, 1) if nothing was tried."""
    from scipy.stats import binomtest

    if total == 0:
        return 0.0, 1.0
    found = binomtest(passed, total).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def quantiles(values: np.ndarray) -> Sequence[float]:
    """Minimum, quartiles, maximum; empty for no values."""
    return np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist() if len(values) else []


def share_of_top(uses: np.ndarray) -> float:
    """Share of all negatives that the most used hundredth of the documents gives."""
    if not len(uses):
        return 0.0
    top = np.sort(uses)[::-1][: max(1, len(uses) // 100)]
    return float(top.sum() / uses.sum())
