"""Retrieval measures over the whole corpus, by trec_eval's own code (through ir-measures)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from miners.index import TorchIndex
from miners.pool import among
from miners.ragged import Ragged
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
    rp_cutoffs: Sequence[int] = (),
) -> RetrievalMeasures:
    """Rank the corpus exactly for every query and compare with graded judgements.

    Args:
        queries: (Q, d) in the corpus' geometry (both normalised for cosine).
        query_names: external name of each query.
        corpus: all documents.
        document_names: external name by document id.
        qrels: query name -> document name -> grade; unjudged documents count as irrelevant.
        rp_cutoffs: adds "RP@k" for each k, see `r_precision`.

    Returns:
        nDCG@10 (linear gains, trec_eval's), MRR@10, Recall@10, Recall@100, MAP over the first 100.

    Raises:
        ValueError: a query without judgements, named: its measures would be undefined.
    """
    scores, ids = TorchIndex(corpus, device=str(device)).search(queries, min(DEPTH, len(corpus)))
    return measure_ranking(scores.cpu(), ids.cpu(), query_names, document_names, qrels, rp_cutoffs)


def measure_ranking(
    scores: Tensor,
    ids: Tensor,
    query_names: Sequence[str],
    document_names: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    rp_cutoffs: Sequence[int] = (),
) -> RetrievalMeasures:
    """Compare a finished ranking with graded judgements.

    Args:
        scores, ids: (Q, k) each query's documents, best first; ids below 0 are empty slots, at the end of a row.
        query_names, document_names, qrels, rp_cutoffs: as in `evaluate_retrieval`.

    Raises:
        ValueError: a query without judgements, named: its measures would be undefined.
    """
    import ir_measures

    for name in query_names:
        if name not in qrels:
            raise ValueError(f"query '{name}' has no judgements in this split; leave it out of the evaluation.")
    names = list(document_names)
    # ranks instead of scores: trec_eval re-sorts, and would break fp32 ties by name
    run = {
        query: {names[document]: float(-rank) for rank, document in enumerate(row) if document >= 0}
        for query, row in zip(query_names, ids.tolist(), strict=True)
    }
    ours = {ir_measures.parse_measure(theirs): name for name, theirs in MEASURES.items()}
    wanted = {query: dict(qrels[query]) for query in query_names}
    by_query: dict[str, dict[str, float]] = {name: {} for name in MEASURES}
    for value in ir_measures.iter_calc(list(ours), wanted, run):
        by_query[ours[value.measure]][value.query_id] = float(value.value)
    if rp_cutoffs:
        id_of = {name: i for i, name in enumerate(names)}
        gold = [[id_of[name] for name, grade in wanted[query].items() if grade >= 1] for query in query_names]
        for k in rp_cutoffs:
            values = r_precision(ids, Ragged.from_lists(gold), k).tolist()
            by_query[f"RP@{k}"] = dict(zip(query_names, values, strict=True))
    means = {name: sum(values.values()) / max(len(values), 1) for name, values in by_query.items()}
    return RetrievalMeasures(means, by_query, scores, ids)


def r_precision(ids: Tensor, relevant: Ragged, k: int, denominator: Literal["set", "rows"] = "set") -> Tensor:
    """(Q,) relevant documents among each query's first k, over ``min(k, how many there are)``.

    Args:
        ids: (Q, at least k or as many as there are) each query's documents, best first, each once; -1 = empty slot.
        relevant: Q lists of ids.
        k: cutoff.
        denominator: "set" counts each relevant id once; "rows" as often as its list holds it, as WorkRB does on
            benchmark files that name a skill once per span, where a perfect ranking then scores below 1.

    Example:
        >>> gold = Ragged.from_lists([[0, 0, 1]])
        >>> [float(r_precision(torch.tensor([[0, 7, 8]]), gold, 5, by)) for by in ("set", "rows")]
        [0.5, 0.3333333333333333]
    """
    rows = relevant.row_of_value
    once = torch.stack([rows, relevant.values], dim=1).unique(dim=0)
    number = relevant.lengths if denominator == "rows" else torch.bincount(once[:, 0], minlength=len(relevant))
    found = among(ids[:, :k], Ragged.from_pairs(once[:, 0], once[:, 1], len(relevant))) & (ids[:, :k] >= 0)
    return found.sum(1).double() / number.clamp(1, k)
