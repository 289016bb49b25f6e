"""Retrieval measures over the whole corpus, by trec_eval's own code (through ir-measures)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from miners.index import TorchIndex
from miners.store import Store

MEASURES = {"nDCG@10": "nDCG@10", "MRR@10": "RR@10", "Recall@10": "R@10", "Recall@100": "R@100", "MAP": "AP@100"}
"""What is reported, and what ir-measures calls it. MAP looks at the first 100 results, as all of them do at most."""

DEPTH = 100


@dataclass(frozen=True)
class RetrievalMeasures:
    """Means over queries, each query's own values, and the ranking they were computed from.

    Args:
        means: measure -> mean.
        by_query: measure -> query name -> value.
        scores, ids: (Q, 100) the ranking.
    """

    means: Mapping[str, float]
    by_query: Mapping[str, Mapping[str, float]]
    scores: Tensor
    ids: Tensor


def evaluate_retrieval(
    queries: Tensor,
    query_names: Sequence[str],
    corpus: Store,
    document_names: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    device: torch.device | str = "cpu",
) -> RetrievalMeasures:
    """Rank the corpus exactly for every query and compare with graded judgements.

    Args:
        queries: (Q, d) in the corpus' geometry (both normalised for cosine).
        query_names: external name of each query.
        corpus: all documents.
        document_names: external name by document id.
        qrels: query name -> document name -> grade; unjudged documents count as irrelevant.

    Returns:
        nDCG@10 (linear gains, trec_eval's), MRR@10, Recall@10, Recall@100, MAP over the first 100.

    Raises:
        ValueError: a query without judgements, named: its measures would be undefined.
    """
    import ir_measures

    for name in query_names:
        if name not in qrels:
            raise ValueError(f"query '{name}' has no judgements in this split; leave it out of the evaluation.")
    scores, ids = TorchIndex(corpus, device=str(device)).search(queries, min(DEPTH, len(corpus)))
    names = list(document_names)
    # ranks instead of scores: trec_eval re-sorts, and would break fp32 ties by name
    run = {
        query: {names[document]: float(-rank) for rank, document in enumerate(row)}
        for query, row in zip(query_names, ids.tolist(), strict=True)
    }
    ours = {ir_measures.parse_measure(theirs): name for name, theirs in MEASURES.items()}
    wanted = {query: dict(qrels[query]) for query in query_names}
    by_query: dict[str, dict[str, float]] = {name: {} for name in MEASURES}
    for value in ir_measures.iter_calc(list(ours), wanted, run):
        by_query[ours[value.measure]][value.query_id] = float(value.value)
    means = {name: sum(values.values()) / max(len(values), 1) for name, values in by_query.items()}
    return RetrievalMeasures(means, by_query, scores.cpu(), ids.cpu())
