"""Where was this picture taken? Ranks of the right references, and metres to the first."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hardneg.metrics.retrieval import DEPTH, RetrievalMeasures
from miners.index import TorchIndex
from miners.places import Places
from miners.pool import among
from miners.ragged import Ragged
from miners.store import Store

log = logging.getLogger(__name__)

RANKS = (1, 5, 10)
ERROR = "error_m"
AGAINST = "R@1 (ties against)"
_SCORES = 1 << 24  # similarities in memory at one time


@dataclass(frozen=True)
class GeoMeasures(RetrievalMeasures):
    """What a gallery says of a split's queries.

    Args:
        means: "R@1", "R@5", "R@10", "R@1%" (of 100 references or more), "AP", "R@1 (ties against)"; "hit_rate" where
            there are semi-positives; "error_m" and "median_error_m" where places are known and comparable.
        by_query: the same by query.
        scores, ids: (Q, up to 100) the nearest references.
        ranks: (Q,) references of higher similarity than the best right one: 0 = it is the first.
        errors: (Q,) metres to the first reference, infinite in another area; None = places are not known.
        references, distractors: how many there are, and how many of them are nobody's.
    """

    ranks: Tensor
    errors: Tensor | None
    references: int
    distractors: int


@dataclass(frozen=True)
class GeoRanks:
    """(Q,) each: ranks with ties in favour and against, average precision (empty where nobody asked for it)."""

    ranks: Tensor
    against: Tensor
    precision: Tensor


def rank_references(
    queries: Tensor,
    references: Tensor,
    positives: Ragged,
    left_out: Ragged | None = None,
    precision: bool = True,
) -> GeoRanks:
    """Where each query's best right reference stands, and the average precision of all of them.

    A rank counts references of strictly higher similarity, as published; ``against`` counts equal ones too, other right
    ones never. Average precision is the area under the curve by trapezoids, as University-1652 computes it: for each
    right reference the mean of the precision at it and just before it (1 before the first place), over their number.

    Args:
        queries, references: (Q, d), (M, d) unit vectors.
        positives: Q lists of rows of ``references``, none empty.
        left_out: Q lists of rows that do not exist for a query; None = all exist.
        precision: whether average precision is wanted too.

    Raises:
        ValueError: a query without a right reference, or all of whose right references are left out.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    step = max(1, _SCORES // max(len(references), 1))
    everything = torch.arange(len(references), device=references.device)
    for start in range(0, len(queries), step):
        rows = torch.arange(start, min(start + step, len(queries)))
        scores = queries[rows] @ references.T  # (b, M)
        right = among(everything, positives.select(rows))
        gone = torch.zeros_like(right) if left_out is None else among(everything, left_out.select(rows))
        right, scores = right & ~gone, scores.masked_fill(gone, -torch.inf)
        if not bool(right.any(1).all()):
            row = start + int((~right.any(1)).nonzero()[0])
            raise ValueError(f"query {row} has no right reference in the gallery; leave it out.")
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        others = ~right & ~gone
        areas = _precision(scores, right) if precision else queries.new_empty(0)
        parts.append((((scores > best) & others).sum(1), ((scores >= best) & others).sum(1), areas))
    if not parts:
        nothing = torch.empty(0, dtype=torch.long)
        return GeoRanks(nothing, nothing, nothing.double())
    return GeoRanks(*(torch.cat(column) for column in zip(*parts, strict=True)))


def top_percent(references: int, rule: Literal["floor", "round"] = "floor") -> int:
    """How many places R@1% counts: 1 % of the references.

    Args:
        references: M.
        rule: "floor" as for CVUSA, CVACT and VIGOR; "round": University-1652's script looks at the place after the
            rounded percentage.

    Example:
        >>> top_percent(8884), top_percent(951, "round")
        (88, 11)
    """
    return references // 100 if rule == "floor" else round(0.01 * references) + 1


def evaluate_geo(
    queries: Tensor,
    query_names: Sequence[str],
    references: Store,
    positives: Ragged,
    semi_positives: Ragged | None = None,
    places: tuple[Places, Places] | None = None,
    percent_rule: Literal["floor", "round"] = "floor",
    device: torch.device | str = "cpu",
) -> GeoMeasures:
    """Rank all references for every query, exactly. References that are nobody's count as wrong ones.

    Args:
        queries: (Q, d) unit vectors.
        query_names: Q names.
        references: all of them, unit vectors.
        positives: Q lists of ids of right references.
        semi_positives: Q lists of ids: wrong in R@k, left out of the gallery in "hit_rate".
        places: of the queries and of the references, in their order.
        percent_rule: see `top_percent`.

    Raises:
        ValueError: a query without a right reference.
    """
    right = Ragged(positives.offsets, references.positions(positives.values))
    vectors, queries = references.rows(references.ids).to(device), queries.float().to(device)
    right = right.to(device)
    found = rank_references(queries, vectors, right)
    number = len(references)
    values = {f"R@{k}": found.ranks < k for k in RANKS if k < number}
    if (percent := top_percent(number, percent_rule)) >= 1 and number >= 100:
        values["R@1%"] = found.ranks < percent
    values |= {"AP": found.precision, AGAINST: found.against < 1}
    if semi_positives is not None and len(semi_positives.values):
        near = Ragged(semi_positives.offsets, references.positions(semi_positives.values)).to(device)
        values["hit_rate"] = rank_references(queries, vectors, right, near, precision=False).ranks < 1
    scores, ids = TorchIndex(references, device=str(device)).search(queries, min(DEPTH, number))
    errors = None
    if places is not None:
        at = references.positions(ids[:, 0].cpu().contiguous())
        errors = places[0].distances(torch.arange(len(queries)), places[1], at)
        if bool(torch.isfinite(errors).all()):
            values[ERROR] = errors
    columns = {name: value.double().cpu() for name, value in values.items()}
    means = {name: float(value.mean()) for name, value in columns.items()}
    if errors is not None and bool(torch.isfinite(middle := errors.median())):
        means["median_error_m"] = float(middle)
    if means.get("R@1", 0.0) - means[AGAINST] > 0.01:
        log.warning(
            "R@1 is %.3f, and %.3f where ties count against a query: many similarities are equal, as those of "
            "collapsed embeddings are.",
            means["R@1"],
            means[AGAINST],
        )
    by_query = {name: dict(zip(query_names, value.tolist(), strict=True)) for name, value in columns.items()}
    distractors = number - len(right.values.unique())
    ranks = found.ranks.cpu()
    return GeoMeasures(means, by_query, scores.cpu(), ids.cpu(), ranks, errors, number, distractors)


def _precision(scores: Tensor, right: Tensor) -> Tensor:
    """(b,) average precision; of equal similarities, the earlier reference stands first.

    The gallery (b, M) is not sorted: each similarity is looked for among those of the right references, which are few.
    """
    size = scores.shape[1]
    query, column = right.nonzero(as_tuple=True)  # (V,) each
    lists = Ragged.from_pairs(query, column, len(scores))
    nth = torch.arange(len(query), device=query.device) - lists.offsets[query]  # of the query's right ones
    own = scores.new_full((len(scores), int(lists.lengths.max())), torch.inf)
    own[query, nth] = scores[query, column]
    own = own.sort(dim=1).values  # (b, P)
    below = torch.searchsorted(own, scores)  # (b, M) how many right ones are less similar
    above = torch.zeros(len(own), own.shape[1] + 1, dtype=torch.long, device=scores.device)
    above = above.scatter_add(1, below, torch.ones_like(below)).flip(1).cumsum(1).flip(1)  # of at least so many
    # those as similar as a right one, itself among them, and how many such stand earlier
    row, at = (own.gather(1, below.clamp(max=own.shape[1] - 1)) == scores).nonzero(as_tuple=True)
    alike = row * size + below[row, at]
    ordered, order = alike.sort(stable=True)
    earlier = torch.empty_like(alike)
    earlier[order] = torch.arange(len(alike), device=alike.device) - torch.searchsorted(ordered, ordered)
    place = above[query, below[query, column] + 1] + earlier[right[row, at]]  # (V,) from 0
    place = ((query * size + place).sort().values % size).double()
    area = ((nth + 1) / (place + 1) + torch.where(place > 0, nth / place.clamp(min=1), 1.0)) / 2
    return torch.zeros(len(scores), dtype=torch.double, device=scores.device).index_add(0, query, area) / lists.lengths
