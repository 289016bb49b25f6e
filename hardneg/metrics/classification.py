"""Classes from vectors: how much of an activity (a face, a category) a frozen encoder has understood."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hardneg.metrics.retrieval import DEPTH, RetrievalMeasures
from miners.index import TorchIndex
from miners.store import Store


@dataclass(frozen=True)
class ClassMeasures(RetrievalMeasures):
    """What a classifier on frozen features and the nearest labelled things say of a split.

    Args:
        means, by_query: as in `RetrievalMeasures`; macro-F1 has a mean only.
        scores, ids: (Q, up to 100) the nearest labelled things.
        truth, predicted: (Q,) classes; predicted by the linear probe on all modalities.
        vectors: (Q, F) features that were classified.
        queries: (Q,) ids of the evaluated things.
        voted: (Q,) classes that the nearest ``voters`` labelled things give.
    """

    truth: Tensor
    predicted: Tensor
    vectors: Tensor
    queries: Tensor
    voted: Tensor
    voters: int


def accuracy_and_macro_f1(truth: Tensor, predicted: Tensor) -> tuple[float, float]:
    """Share of things that are right, and the mean F1 over the classes that occur in ``truth``, all alike."""
    from sklearn.metrics import f1_score

    there = truth.unique().numpy()
    f1 = f1_score(truth.numpy(), predicted.numpy(), labels=there, average="macro", zero_division=0.0)
    return float((truth == predicted).double().mean()), float(f1)


def linear_probe(features: Tensor, labels: Tensor, queries: Tensor, strength: float = 1.0) -> Tensor:
    """Predict classes with one linear layer on frozen features.

    Multinomial logistic regression on standardised features, solved to convergence: no learning rate, no epochs, no
    seed. Deviates from papers that train the layer with Adam, whose accuracy depends on all three.

    Args:
        features, labels: (N, F), (N,) of the labelled training things.
        queries: (Q, F).
        strength: inverse of the weight decay, scikit-learn's C.

    Returns:
        (Q,) classes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = labels.unique()
    if len(known) == 1:
        return known.expand(len(queries))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # one labelled thing per class is a use
        probe.fit(features.numpy(), labels.numpy())
    return torch.from_numpy(np.asarray(probe.predict(queries.numpy()), dtype=np.int64))


def nearest_classes(labels: Tensor, scores: Tensor, ids: Tensor, k: int = 5) -> Tensor:
    """(Q,) the class with the largest sum of similarities among the k nearest of each query.

    Args:
        labels: (M,) classes by id.
        scores, ids: (Q, at least k) nearest things, nearest first.
    """
    votes = labels[ids[:, :k]]  # (Q, k)
    # similarities of unit vectors lie in [-1, 1]: 1 more, and a vote is never negative
    total = torch.zeros(len(ids), int(labels.max()) + 1).scatter_add_(1, votes, scores[:, :k].float() + 1)
    return total.argmax(1)


def evaluate_classes(
    train: Mapping[str, Tensor],
    train_ids: Tensor,
    labels: Tensor,
    queries: Mapping[str, Tensor],
    query_ids: Tensor,
    names: Sequence[str],
    k: int = 5,
) -> ClassMeasures:
    """Linear probe and nearest neighbours, on all modalities together and on each alone.

    Args:
        train, queries: features by modality, (N, F) of labelled training things and (Q, F) of the evaluated ones.
        train_ids, query_ids: (N,), (Q,).
        labels: (M,) classes by id.
        names: names by id.
        k: neighbours that vote.

    Returns:
        "accuracy" and "macro-F1" of the probe, "kNN" accuracy; with several modalities also "accuracy <modality>" and
        "macro-F1 <modality>": what is left when only that one is there at test time.
    """
    truth = labels[query_ids]
    sets = {"": list(train)} | ({f" {name}": [name] for name in train} if len(train) > 1 else {})
    means: dict[str, float] = {}
    right: dict[str, Tensor] = {}
    predictions: dict[str, Tensor] = {}
    for suffix, which in sets.items():
        predicted = linear_probe(
            torch.cat([train[name] for name in which], 1),
            labels[train_ids],
            torch.cat([queries[name] for name in which], 1),
        )
        predictions[suffix], right[f"accuracy{suffix}"] = predicted, predicted == truth
        means[f"accuracy{suffix}"], means[f"macro-F1{suffix}"] = accuracy_and_macro_f1(truth, predicted)
    unit = [torch.cat([torch.nn.functional.normalize(of[n], dim=1) for n in train], 1) for of in (train, queries)]
    store, wanted = (torch.nn.functional.normalize(part, dim=1) for part in unit)
    scores, ids = TorchIndex(Store(store, train_ids), device="cpu").search(wanted, min(DEPTH, len(store)))
    voted = nearest_classes(labels, scores, ids, k)
    right["kNN"] = voted == truth
    means["kNN"] = float(right["kNN"].double().mean())
    query_names = [names[i] for i in query_ids.tolist()]
    by_query = {name: dict(zip(query_names, values.double().tolist(), strict=True)) for name, values in right.items()}
    return ClassMeasures(means, by_query, scores, ids, truth, predictions[""], wanted, query_ids, voted, k)
