"""Measure a table of mined negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miners.index.torch_index import pair_scores
from miners.offline import MinedNegatives
from miners.ragged import Ragged

BANDS = (
    ("beats the positive", 0.0),
    ("up to 5 % below", 0.05),
    ("5 to 20 % below", 0.2),
    ("more than 20 % below", np.inf),
)
MOST_USED = 10
PAIRS_AT_ONCE = 1 << 16  # pairs whose vectors are gathered together: at 1,024 dims 256 MB


def audit(mined: MinedNegatives, content: Mapping[Any, int] | None = None) -> dict[str, Any]:
    """Measure what the table itself tells.

    Args:
        mined: the table.
        content: hash of each document by id, such as `datamodules.texts.content_hash` of its text: equal = the same
            thing. None leaves the search for equal contents out.

    Returns:
        Plain values for JSON: ``negatives``, ``queries``, ``without_negatives``, ``hardness`` (share of negatives by
        how far they score below their query's lowest positive; None for a table without scores), ``quantiles`` of
        scores, ``known_positives`` and ``equal_contents`` (negatives that are a positive by id, or by content),
        ``use`` (how often documents serve).
    """
    valid = mined.table["doc_id"].is_valid()
    table = mined.table.filter(valid)
    score, positive = table["score"].to_numpy(), table["positive_score"].to_numpy()
    scored = ~np.isnan(score + positive)
    owner = mined.query_of[valid.to_numpy()]
    of_positive, positive_scores, positive_ids = mined.positives
    pairs = set(zip(of_positive.tolist(), positive_ids.to_pylist(), strict=True))
    documents = table["doc_id"].to_pylist()
    equal_contents = None
    if content is not None:
        same = {(query, content[one]) for query, one in pairs}
        equal_contents = sum(
            (query, content[one]) in same for query, one in zip(owner.tolist(), documents, strict=True)
        )
    names, uses = np.unique(np.array(documents, dtype=object).astype(str), return_counts=True)
    order = np.argsort(-uses, kind="stable")
    found = mined.queries["found"].to_numpy()
    return {
        "negatives": len(score),
        "queries": len(found),
        "without_negatives": int((found == 0).sum()),
        "hardness": hardness(score[scored], positive[scored]) if scored.any() or not len(score) else None,
        "quantiles": {
            "positives": quantiles(positive_scores[~np.isnan(positive_scores)]),
            "negatives": quantiles(score[scored]),
        },
        "known_positives": sum((query, one) in pairs for query, one in zip(owner.tolist(), documents, strict=True)),
        "equal_contents": equal_contents,
        "dropped": mined.dropped(),
        "use": {
            "documents": len(names),
            "most": int(uses.max()) if len(uses) else 0,
            "share_of_most_used_percent": share_of_top(uses),
            "most_used": [[names[at], int(uses[at])] for at in order[:MOST_USED]],
        },
    }


def hardness(score: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Share of negatives in each band of `BANDS`, by how far they score below their positive; 0 for no negatives.

    Args:
        score: (N,) of the negatives.
        positive: (N,) of the positive of the same query; "5 % below" is 5 % of its absolute value.
    """
    below = (positive - score) / np.maximum(np.abs(positive), 1e-12)
    band = np.searchsorted([bound for _, bound in BANDS], below, side="left")
    return {name: float(np.mean(band == number)) if len(band) else 0.0 for number, (name, _) in enumerate(BANDS)}


def opinion(
    queries: Tensor, corpus: Tensor, pairs: tuple[Tensor, Tensor], known: Ragged, old: Tensor | None = None
) -> dict[str, Any]:
    """Ask another model about negatives: a later checkpoint (how stale are they?), or a guide.

    Args:
        queries: (Q, d) the model's vectors.
        corpus: (M, d) likewise.
        pairs: query (N,) and document (N,) of every negative, as rows of the two.
        known: positives of the Q queries, as rows of ``corpus``.
        old: (N,) the scores that the negatives were chosen by; None if there are none.

    Returns:
        ``hardness`` in this model's scores, against the query's lowest positive. ``beats_the_positive``: share that
        scores above it. ``still_hard``: share within 20 % of it. ``correlation`` with the old scores (None without).
    """
    from miners.offline.candidates import known_products, reduce_lists
    from miners.store import Store

    query, document = pairs
    lowest = reduce_lists(known, known_products(queries, Store(corpus), known), "lowest")[query].double()
    new = pair_products(queries, corpus, query, document).double()
    told = old is not None and len(new) > 1
    return {
        "hardness": hardness(new.numpy(), lowest.numpy()),
        "beats_the_positive": float((new > lowest).double().mean()) if len(new) else 0.0,
        "still_hard": float((new > lowest - 0.2 * lowest.abs()).double().mean()) if len(new) else 0.0,
        "correlation": float(torch.corrcoef(torch.stack([old.double(), new]))[0, 1]) if told else None,  # type: ignore[union-attr]
    }


def pair_products(queries: Tensor, corpus: Tensor, query: Tensor, document: Tensor) -> Tensor:
    """Score N pairs of rows: (N,) float64 products rounded to float32."""
    parts = [
        pair_scores(queries[one].float(), corpus, other[:, None])[:, 0]
        for one, other in zip(query.split(PAIRS_AT_ONCE), document.split(PAIRS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts).cpu() if parts else torch.empty(0)


def came_back(mined: MinedNegatives, hidden: Sequence[tuple[Any, Any]], seed: int) -> dict[str, Any]:
    """The false-negative rate: how many hidden positives does a table, mined without them, hold as negatives?

    Args:
        mined: mined with the positives that `hide` left.
        hidden: query id and document id of the positives that it took away.
        seed: of the draw, for the record.

    Returns:
        ``hidden``, ``passed``, ``rate`` (None if nothing could be hidden), and its exact 95 % interval ``low`` to
        ``high``.
    """
    pairs = set(zip(mined.table["query_id"].to_pylist(), mined.table["doc_id"].to_pylist(), strict=True))
    passed, total = sum(pair in pairs for pair in hidden), len(hidden)
    low, high = interval(passed, total)
    rate = passed / total if total else None
    return {"hidden": total, "passed": passed, "rate": rate, "low": low, "high": high, "seed": seed}


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
