"""Composed image retrieval: recall over galleries and over subsets, and mean average precision, by each set's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.cir import CIRProtocol, CIRSplit
from miners.index import TorchIndex
from miners.pool import among
from miners.store import Store

DEPTH = 100


@dataclass(frozen=True)
class CIRMeasures:
    """Means, each query's own values, and the ranking they were computed from.

    Args:
        means: measure -> mean; groups apart as "R@10 (dress)".
        by_query: measure -> query name -> value, of the queries that it is a measure of.
        scores, ids: (Q, at most 100) each query's ranking, best first, without what the protocol drops; -1 = none.
    """

    means: Mapping[str, float]
    by_query: Mapping[str, Mapping[str, float]]
    scores: Tensor
    ids: Tensor


def evaluate_cir(
    queries: Tensor,
    names: Sequence[str],
    split: CIRSplit,
    pictures: Store,
    protocol: CIRProtocol,
    device: torch.device | str = "cpu",
) -> CIRMeasures:
    """Rank each query's gallery, ties in the order of the gallery's file, and compare with its right answers.

    Args:
        queries: (Q, d) in the pictures' geometry.
        names: Q.
        split: who asks for what among whom.
        pictures: vectors of all pictures of the galleries, by id.
        protocol: what is measured.

    Returns:
        R@K: share of queries with a right answer among the first K of the gallery; Rsubset@K: the same where only the
        query's subset is ranked, without its reference; mAP@K: precision at the right answers among the first K, summed
        and divided by min(K, number of right answers). With groups also each of them alone, as "R@K (group)".

    Source:
        FashionIQ: CLIP4Cir's ``validate.py``; CIRR: its repository's ``compute_recall``; CIRCO: arXiv 2303.15247.
    """
    depth = max(DEPTH, *protocol.recalls, *protocol.average_precisions)
    scores, ids = rank_galleries(queries, split, pictures, depth, protocol.drop_reference, device)
    found = among(ids, split.right) & (ids >= 0)  # (Q, depth)
    by_query: dict[str, Tensor] = {f"R@{k}": found[:, :k].any(1).double() for k in protocol.recalls}
    if protocol.subset_recalls:
        rank = subset_ranks(queries, split, pictures)
        by_query |= {f"Rsubset@{k}": (rank <= k).double() for k in protocol.subset_recalls}
    by_query |= {f"mAP@{k}": average_precision(found, split.right.lengths, k) for k in protocol.average_precisions}
    return CIRMeasures(*_summed(by_query, names, split.groups, protocol), scores, ids)


def rank_galleries(
    queries: Tensor, split: CIRSplit, pictures: Store, depth: int, drop_reference: bool, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Scores and ids (Q, depth) of each query's gallery, best first.

    Slots that it does not fill hold the lowest float32 and -1.
    """
    scores = torch.full((len(queries), depth), torch.finfo(torch.float32).min)
    ids = torch.full((len(queries), depth), -1)
    by_gallery: dict[str, list[int]] = {}
    for row, group in enumerate(split.groups):
        by_gallery.setdefault(group if group in split.galleries else "", []).append(row)
    for name, rows in by_gallery.items():
        gallery = split.galleries[name]
        store = Store(pictures.rows(gallery), gallery, pictures.space)
        at = torch.tensor(rows)
        wanted = min(depth + drop_reference, len(store))
        best, who = (part.cpu() for part in TorchIndex(store, str(device)).search(queries[at], wanted))
        if drop_reference:
            own = who == split.references[at, None]
            # what stays keeps its order, the reference goes behind it
            order = own.to(torch.int8).argsort(dim=1, stable=True)
            best, who = best.gather(1, order), who.where(~own, -1).gather(1, order)
        width = min(depth, wanted)
        scores[at, :width], ids[at, :width] = best[:, :width], who[:, :width]
    return scores, ids


def subset_ranks(queries: Tensor, split: CIRSplit, pictures: Store) -> Tensor:
    """(Q,) rank of the best right answer in each query's subset without its reference, 1 = best.

    Raises:
        ValueError: a query whose subset holds no right answer.
    """
    members = split.subsets.padded()  # (Q, most)
    there = (members >= 0) & (members != split.references[:, None])
    vectors = pictures.rows(members.where(members >= 0, int(pictures.ids[0])).flatten())
    scores = torch.einsum("qd,qmd->qm", queries.double(), vectors.view(*members.shape, -1).double())
    right = among(members, split.right) & there
    if bool((~right.any(1)).any()):
        query = int((~right.any(1)).nonzero()[0])
        raise ValueError(f"query {query} of this split has no right answer in its subset; leave Rsubset out.")
    lowest = torch.finfo(scores.dtype).min
    best, place = scores.where(right, lowest).max(1, keepdim=True)
    position = pictures.positions(members.where(members >= 0, int(pictures.ids[0])))  # ties: in the file's order
    before = (scores > best) | ((scores == best) & (position < position.gather(1, place)))
    return 1 + (before & there).sum(1)


def average_precision(found: Tensor, number: Tensor, k: int) -> Tensor:
    """(Q,) average precision at k of rankings (Q, at least k or all) with ``number`` (Q,) right answers.

    Example:
        >>> average_precision(torch.tensor([[True, False, True]]), torch.tensor([2]), 3).item()
        0.8333333333333333
    """
    right = found[:, :k].double()
    precision = right.cumsum(1) / torch.arange(1, right.shape[1] + 1, device=right.device)
    return (precision * right).sum(1) / number.clamp(1, k)


def _summed(
    by_query: Mapping[str, Tensor], names: Sequence[str], groups: Sequence[str], protocol: CIRProtocol
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Means and values by name, over all queries and over each group."""
    kinds = [group for group in dict.fromkeys(groups) if group]
    members = {group: [row for row, of in enumerate(groups) if of == group] for group in kinds}
    means: dict[str, float] = {}
    values: dict[str, dict[str, float]] = {}
    for measure, of in by_query.items():
        values[measure] = dict(zip(names, of.tolist(), strict=True))
        means[measure] = float(of.mean())
        for group, rows in members.items():
            label = f"{measure} ({group})"
            values[label] = {names[row]: float(of[row]) for row in rows}
            means[label] = float(of[rows].mean())
    if protocol.summary == "fashioniq":  # each category counts alike, however many queries it has
        for k in protocol.recalls:
            means[f"R@{k} (average)"] = sum(means[f"R@{k} ({group})"] for group in kinds) / len(kinds)
        means["Rmean"] = sum(means[f"R@{k} (average)"] for k in protocol.recalls) / len(protocol.recalls)
    if protocol.summary == "cirr":
        means["mean"] = (means["R@5"] + means["Rsubset@1"]) / 2
    return means, values
