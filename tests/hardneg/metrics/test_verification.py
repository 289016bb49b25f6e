"""Verification and identification: the toy numbers of the specification, and slow obvious forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hardneg.metrics.verification import (
    evaluate_faces,
    fold_accuracy,
    hardest_pairs,
    identification_ranks,
    in_folds,
    tar_at_far,
)
from miners.store import Store

POSITIVE = [0.9013, 0.8013, 0.7013, 0.6013, 0.5013, 0.4513, 0.3513, 0.8513, 0.7513, 0.2013]
NEGATIVE = [0.1017, 0.0017, 0.3017, 0.4017, -0.0983, 0.2517, 0.5517, 0.0517, -0.1983, 0.1517]


def toy() -> tuple[Tensor, Tensor]:
    """Ten folds of a genuine and an impostor pair."""
    return torch.tensor([POSITIVE, NEGATIVE], dtype=torch.float64).T.flatten(), torch.tensor([True, False] * 10)


def test_the_measured_toy() -> None:
    similarity, same = toy()
    found = fold_accuracy(similarity, same, in_folds(20))
    assert found.by_fold.tolist() == [1, 1, 1, 0.5, 0.5, 0.5, 0, 1, 1, 0.5]
    assert found.mean == pytest.approx(0.7, abs=1e-9)
    assert found.std == pytest.approx(0.331662, abs=0.51e-6)
    assert float(found.correct.double().mean()) == pytest.approx(0.7)


def slow_fold_accuracy(similarity: np.ndarray, same: np.ndarray, fold: np.ndarray) -> list[float]:
    thresholds, distance = np.arange(0, 4, 0.01), 2 - 2 * similarity
    out = []
    for held_out in range(fold.max() + 1):
        train, test = fold != held_out, fold == held_out
        accuracy = [((distance[train] < t) == same[train]).mean() for t in thresholds]
        out.append(((distance[test] < thresholds[int(np.argmax(accuracy))]) == same[test]).mean())
    return out


@pytest.mark.parametrize("seed", range(4))
def test_folds_against_the_slow_form(seed: int) -> None:
    random = np.random.default_rng(seed)
    same = random.random(157) < 0.4
    similarity = np.clip(0.4 * same + 0.3 * random.standard_normal(157), -1, 1)
    fold = in_folds(157) if seed % 2 else torch.from_numpy(random.permutation(157) % 5)
    found = fold_accuracy(torch.from_numpy(similarity), torch.from_numpy(same), fold)
    assert found.by_fold.tolist() == pytest.approx(slow_fold_accuracy(similarity, same, fold.numpy()))


def test_folds_are_those_of_an_unshuffled_kfold() -> None:
    from sklearn.model_selection import KFold

    expected = np.empty(23, dtype=int)
    for number, (_, rows) in enumerate(KFold(10).split(np.zeros(23))):
        expected[rows] = number
    assert in_folds(23).tolist() == expected.tolist()


def test_tar_at_far() -> None:
    similarity, same = toy()
    share, rate, _ = tar_at_far(similarity, same, 0.05, "nearest")
    assert (share, rate) == (pytest.approx(0.8), pytest.approx(0.1))
    share, rate, threshold = tar_at_far(similarity, same, 0.05)
    assert (share, rate) == (pytest.approx(0.6), 0.0)
    assert float((similarity[same] >= threshold).double().mean()) == pytest.approx(0.6)
    assert tar_at_far(similarity, same, 1.0)[0] == 1.0
    higher = torch.tensor([0.1, 0.2, 0.9]), torch.tensor([True, True, False])
    assert tar_at_far(*higher, 0.1)[0] == 0.0


def test_ranks_count_ties_against_the_probe() -> None:
    gallery = torch.eye(3)
    labels = torch.tensor([7, 8, 9])
    probes = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0.5**0.5, 0.5**0.5, 0]])
    assert identification_ranks(probes, torch.tensor([7, 7, 8]), gallery, labels).tolist() == [1, 2, 2]
    several = torch.cat([gallery, probes[1:2]])  # a second picture of 7
    ranks = identification_ranks(probes, torch.tensor([7, 7, 8]), several, torch.tensor([7, 8, 9, 7]))
    assert ranks.tolist() == [1, 1, 3]
    with pytest.raises(ValueError, match="probe 1 has no picture of its identity"):
        identification_ranks(probes[:2], torch.tensor([7, 1]), gallery, labels)


def test_everything_together() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) // 3
    centres = torch.nn.functional.normalize(torch.randn(10, 16, generator=generator), dim=1)
    vectors = torch.nn.functional.normalize(centres[labels] + 0.15 * torch.randn(30, 16, generator=generator), dim=1)
    one, two = torch.triu_indices(30, 30, 1)
    same = labels[one] == labels[two]
    probes = (torch.arange(30) % 3 > 0).nonzero()[:, 0]
    gallery = (torch.arange(30) % 3 == 0).nonzero()[:, 0]
    names = [f"p{i}" for i in range(30)]
    store = Store(vectors, torch.arange(30), "image")
    fold = torch.arange(len(one)) % 10
    found = evaluate_faces(store, torch.stack([one, two], 1), same, fold, names, labels, probes, gallery)
    # 405 impostor pairs: 0.1 lets 40 of them pass, 0.01 only 4, whose share would mean nothing
    assert {name for name in found.means if name.startswith("TAR")} == {"TAR@FAR=0.1"}
    assert found.means["rank-1"] > 0.9
    assert "rank-10" not in found.means  # ten identities
    assert len(found.by_query["rank-1"]) == 20
    assert sum(found.by_query["TAR@FAR=0.1"].values()) / int(same.sum()) == pytest.approx(found.means["TAR@FAR=0.1"])
    assert found.ids.shape == (20, 10)
    alone = evaluate_faces(store, torch.stack([one, two], 1), same, fold, names)
    assert "rank-1" not in alone.means
    assert alone.ids.shape[0] == 0
    worst = hardest_pairs(found.similarity, same, 3)
    assert not same[worst].any()
    assert found.similarity[worst[0]] == found.similarity[~same].max()
    assert found.similarity[hardest_pairs(found.similarity, same, 1, impostors=False)] == found.similarity[same].min()


def test_mistakes() -> None:
    similarity, same = toy()
    with pytest.raises(ValueError, match="two folds or more"):
        fold_accuracy(similarity, same, torch.zeros(20, dtype=torch.long))
    with pytest.raises(ValueError, match="genuine and impostor pairs; got 10 and 0"):
        tar_at_far(similarity[same], same[same], 0.1)
    with pytest.raises(ValueError, match="wants 'conservative' or 'nearest'"):
        tar_at_far(similarity, same, 0.1, "best")  # type: ignore[arg-type]
