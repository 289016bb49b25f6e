"""Whether rows of classes that nobody trained on are told from those of the one class that was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hardneg.metrics.retrieval import RetrievalMeasures
from hardneg.metrics.verification import tar_at_far

FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class AnomalyMeasures(RetrievalMeasures):
    """Of a split.

    Args:
        means: "AUROC" of all anomalies against all benign rows, "AUROC by class" (the mean over classes, each alone
            against the benign rows), "AUROC <class>", "detected at 1 % false alarms".
        by_query: of each anomaly, such that their means are those of ``means``.
        scores, ids: empty; there is no ranking.
        benign, anomalous: (N,), (A,) anomaly scores, higher = stranger.
    """

    benign: Tensor
    anomalous: Tensor


def evaluate_anomalies(
    benign: Tensor, anomalous: Tensor, labels: Tensor, classes: Sequence[str], names: Sequence[str]
) -> AnomalyMeasures:
    """Areas under the ROC curve (scikit-learn's) of anomaly scores, signed: below 0.5 means the wrong way round.

    Args:
        benign: (N,) scores of benign rows, higher = stranger.
        anomalous: (A,) scores of the others.
        labels: (A,) their classes.
        classes: names of classes.
        names: (A,) names of the anomalous rows.

    Raises:
        ValueError: no benign or no anomalous row; a score that is not finite.

    Source:
        CLAN's tables are of max(a, 1 - a), with which a detector that is wrong throughout is a good one. Not so here.
    """
    from sklearn.metrics import roc_auc_score

    if not len(benign) or not len(anomalous):
        raise ValueError(
            f"AUROC wants benign rows and others; got {len(benign)} and {len(anomalous)}. A split of one class alone "
            "cannot be evaluated."
        )
    scores = torch.cat([benign, anomalous]).double()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("an anomaly score is not finite (NaN or infinite): the encoder's weights are broken.")
    is_anomaly = torch.cat([torch.zeros(len(benign)), torch.ones(len(anomalous))]).bool()
    number = torch.bincount(labels, minlength=len(classes))
    there = (number > 0).nonzero()[:, 0].tolist()
    own = {label: (labels == label).nonzero()[:, 0] for label in there}
    areas = {
        label: float(
            roc_auc_score(
                is_anomaly[: len(benign) + len(rows)].numpy(), torch.cat([benign, anomalous[rows]]).double().numpy()
            )
        )
        for label, rows in own.items()
    }
    share, _, threshold = tar_at_far(scores, is_anomaly, FALSE_ALARMS)
    detected = f"detected at {FALSE_ALARMS:.0%} false alarms".replace("%", " %")
    means = {
        "AUROC": float(roc_auc_score(is_anomaly.numpy(), scores.numpy())),
        "AUROC by class": sum(areas.values()) / len(areas),
        detected: share,
    } | {f"AUROC {classes[label]}": area for label, area in areas.items()}
    place = placements(benign.double(), anomalous.double())
    # each class has the same weight in the mean over anomalies, however many of its rows there are
    weighed = place * len(anomalous) / (len(there) * number[labels])
    by_query = {
        "AUROC": dict(zip(names, place.tolist(), strict=True)),
        "AUROC by class": dict(zip(names, weighed.tolist(), strict=True)),
        detected: dict(zip(names, (anomalous.double() >= threshold).double().tolist(), strict=True)),
    }
    for label, rows in own.items():
        called = [names[row] for row in rows.tolist()]
        by_query[f"AUROC {classes[label]}"] = dict(zip(called, place[rows].tolist(), strict=True))
    nothing = torch.empty(len(anomalous), 0)
    return AnomalyMeasures(means, by_query, nothing, nothing.long(), benign, anomalous)


def placements(benign: Tensor, anomalous: Tensor) -> Tensor:
    """(A,) share of benign scores below each anomalous one, ties as halves; their mean is the AUROC.

    Example:
        >>> placements(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0, -1.0])).tolist()
        [0.75, 1.0, 0.0]
    """
    ordered = benign.sort().values
    below = torch.searchsorted(ordered, anomalous.contiguous())
    upto = torch.searchsorted(ordered, anomalous.contiguous(), right=True)
    return (below + upto).double() / (2 * len(benign))
