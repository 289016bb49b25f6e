"""Are two pictures of one person? Verification of pairs and identification against a gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hardneg.metrics.retrieval import DEPTH, RetrievalMeasures
from miners.index import TorchIndex
from miners.store import Store

FARS = (0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
FEWEST = 10  # impostor pairs that must be allowed by a rate, or its digits mean nothing
RANKS = (1, 5, 10)
STEPS = 400  # thresholds on the squared distance: 0, 0.01, ..., 3.99
_BLOCK = 4096


@dataclass(frozen=True)
class FaceMeasures(RetrievalMeasures):
    """What pairs and a gallery say of a split.

    Args:
        means: "accuracy" (mean over folds), "AUC", "TAR@FAR=..." for every rate with enough impostor pairs behind it,
            "rank-1", "rank-5", "rank-10".
        by_query: "rank-k" by probe; "accuracy" by pair, and "TAR@FAR=..." by genuine pair ("first | second").
        scores, ids: (Q, up to 100) the nearest of the gallery.
        similarity, same: (P,) of each pair.
        pairs: (P, 2) ids of pictures.
        accuracy_std: of the accuracy over folds (population).
    """

    similarity: Tensor
    same: Tensor
    pairs: Tensor
    accuracy_std: float


@dataclass(frozen=True)
class FoldAccuracy:
    """Accuracy with a threshold chosen on the other folds.

    Args:
        mean, std: over folds (population).
        by_fold: (F,).
        correct: (P,) bool.
        threshold: (F,) squared distance below which a pair is taken for one person.
    """

    mean: float
    std: float
    by_fold: Tensor
    correct: Tensor
    threshold: Tensor


def fold_accuracy(similarity: Tensor, same: Tensor, fold: Tensor) -> FoldAccuracy:
    """The verification protocol of LFW.

    Thresholds 0, 0.01, ..., 3.99 on the squared distance of unit vectors, 2 - 2 cos; "same" where it is strictly below.
    For each fold the first threshold that is best on all other folds.

    Args:
        similarity: (P,) cosines.
        same: (P,) bool.
        fold: (P,) int64 from 0; `in_folds` makes ten of pairs in the order of a file.

    Raises:
        ValueError: fewer than two folds, or a fold without pairs.

    Source:
        Huang et al., LFW, 2007, as in insightface's ``verification.py``. Not the single best threshold on all pairs,
        which the code of UNPG reports and which is optimistic.
    """
    folds = int(fold.max()) + 1 if len(fold) else 0
    sizes = torch.bincount(fold, minlength=folds)
    if folds < 2 or bool((sizes == 0).any()):
        raise ValueError(f"verification wants two folds or more with pairs in each; pairs per fold: {sizes.tolist()}.")
    thresholds = torch.from_numpy(np.arange(STEPS) * 0.01)
    distance = 2 - 2 * similarity.double()
    first = torch.searchsorted(thresholds, distance, right=True)  # thresholds from here on say "same"
    counts = torch.zeros(2, folds, STEPS + 1, dtype=torch.long)
    counts.index_put_((same.long(), fold, first), torch.ones_like(first), accumulate=True)
    said_same = counts.cumsum(2)[:, :, :STEPS]  # (2, folds, thresholds)
    right = said_same[1] + (counts[0].sum(1, keepdim=True) - said_same[0])
    chosen = (right.sum(0) - right).double().argmax(1)  # the first of the best
    by_fold = right.gather(1, chosen[:, None])[:, 0].double() / sizes
    correct = (first <= chosen[fold]) == same
    mean, std = float(by_fold.mean()), float(by_fold.std(correction=0))
    return FoldAccuracy(mean, std, by_fold, correct, thresholds[chosen])


def in_folds(pairs: int, folds: int = 10) -> Tensor:
    """(P,) consecutive folds whose sizes differ by one at most, larger ones first: scikit-learn's unshuffled KFold."""
    sizes = torch.full((folds,), pairs // folds)
    sizes[: pairs % folds] += 1
    return torch.arange(folds).repeat_interleave(sizes)


def tar_at_far(
    similarity: Tensor, same: Tensor, far: float, rule: Literal["conservative", "nearest"] = "conservative"
) -> tuple[float, float, float]:
    """Share of genuine pairs that are accepted where at most ``far`` of the impostor pairs are.

    Args:
        similarity, same: (P,).
        far: rate of impostors, in [0, 1].
        rule: "conservative": the largest share with a rate of at most ``far``. "nearest": at the rate nearest to it,
            which may exceed it, as the scripts for IJB do.

    Returns:
        Share, the rate that it has in truth, and the similarity from which pairs are accepted (inf: none is).

    Raises:
        ValueError: no genuine or no impostor pair.
    """
    from sklearn.metrics import roc_curve

    _both_kinds(same)
    impostors, genuine, threshold = roc_curve(same.numpy(), similarity.double().numpy(), drop_intermediate=False)
    if rule == "conservative":
        at = int(np.searchsorted(impostors, far, side="right")) - 1
    elif rule == "nearest":
        at = len(impostors) - 1 - int(np.abs(impostors - far)[::-1].argmin())
    else:
        raise ValueError(f"tar_at_far(rule='{rule}'): wants 'conservative' or 'nearest'.")
    return float(genuine[at]), float(impostors[at]), float(threshold[at])


def identification_ranks(probes: Tensor, probe_labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> Tensor:
    """(Q,) place of each probe's identity in the gallery, 1 = best.

    Its best picture counts; others of other identities with the same similarity stand before it (pessimistic).

    Args:
        probes, gallery: (Q, d), (M, d) unit vectors.
        probe_labels, gallery_labels: (Q,), (M,).

    Raises:
        ValueError: a probe whose identity is not in the gallery.
    """
    ranks = []
    for start in range(0, len(probes), _BLOCK):
        rows = slice(start, start + _BLOCK)
        scores = probes[rows] @ gallery.T  # (block, M)
        mates = probe_labels[rows, None] == gallery_labels[None]
        if not bool(mates.any(1).all()):
            row = start + int((~mates.any(1)).nonzero()[0])
            raise ValueError(f"probe {row} has no picture of its identity in the gallery; leave it out.")
        own = scores.where(mates, -2.0).amax(1, keepdim=True)  # cosines end at -1
        ranks.append(1 + ((scores >= own) & ~mates).sum(1))
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.long)


def evaluate_faces(
    vectors: Store,
    pairs: Tensor,
    same: Tensor,
    fold: Tensor,
    names: Sequence[str],
    labels: Tensor | None = None,
    probes: Tensor | None = None,
    gallery: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> FaceMeasures:
    """Verify pairs, and identify probes where there are some.

    Args:
        vectors: unit vectors of all pictures that are named below.
        pairs, same, fold: (P, 2) ids, (P,) bool, (P,) int64.
        names: name by id.
        labels: (N,) identity by id.
        probes, gallery: (Q,), (M,) ids.
    """
    _both_kinds(same)
    first, second = (vectors.rows(of) for of in pairs.T.contiguous())
    similarity = (first.double() * second.double()).sum(1)
    folds = fold_accuracy(similarity, same, fold)
    means: dict[str, float] = {"accuracy": folds.mean, "AUC": _auc(similarity, same)}
    called = [f"{names[a]} | {names[b]}" for a, b in pairs.tolist()]
    by_query: dict[str, Mapping[str, float]] = {
        "accuracy": dict(zip(called, folds.correct.double().tolist(), strict=True))
    }
    genuine = [name for name, is_same in zip(called, same.tolist(), strict=True) if is_same]
    for far in FARS:
        if far * int((~same).sum()) >= FEWEST - 1e-9:
            share, _, threshold = tar_at_far(similarity, same, far)
            means[name := f"TAR@FAR={far:g}"] = share
            accepted = similarity[same] >= threshold
            by_query[name] = dict(zip(genuine, accepted.double().tolist(), strict=True))
    scores, ids = torch.empty(0, 1), torch.empty(0, 1, dtype=torch.long)
    if labels is not None and probes is not None and gallery is not None and len(probes):
        known = Store(vectors.rows(gallery), gallery, vectors.space)
        wanted = vectors.rows(probes)
        ranks = identification_ranks(wanted, labels[probes], vectors.rows(gallery), labels[gallery])
        asked = [names[i] for i in probes.tolist()]
        for k in RANKS:
            if k < len(labels[gallery].unique()):
                values = (ranks <= k).double()
                means[f"rank-{k}"] = float(values.mean())
                by_query[f"rank-{k}"] = dict(zip(asked, values.tolist(), strict=True))
        scores, ids = TorchIndex(known, device=str(device)).search(wanted, min(DEPTH, len(known)))
    return FaceMeasures(means, by_query, scores.cpu(), ids.cpu(), similarity, same, pairs, folds.std)


def hardest_pairs(similarity: Tensor, same: Tensor, k: int, impostors: bool = True) -> Tensor:
    """(k,) pairs that are most wrong: impostors that look alike, most alike first, or genuine ones that do not."""
    rows = (same != impostors).nonzero()[:, 0]
    return rows[similarity[rows].argsort(descending=impostors, stable=True)[:k]]


def _auc(similarity: Tensor, same: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(same.numpy(), similarity.numpy()))


def _both_kinds(same: Tensor) -> None:
    if not bool(same.any()) or bool(same.all()):
        raise ValueError(
            f"verification wants genuine and impostor pairs; got {int(same.sum())} and {int((~same).sum())}."
        )
