"""The rules of CIRR (T2 of SPN4CIR's specification), FashionIQ and CIRCO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from datamodules.cir import CIRProtocol, CIRSplit
from hardneg.metrics.cir import average_precision, evaluate_cir
from miners.ragged import Ragged
from miners.store import Store

NAMES = "ABCDEFGH"
CIRR = CIRProtocol(True, (1, 5, 10, 50), (1, 2, 3), summary="cirr")
SCORES = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], [0.10, 0.95, 0.20, 0.30, 0.90, 0.85, 0.80, 0.70]])


def split(
    references: Sequence[int],
    right: Sequence[Sequence[int]],
    subsets: Sequence[Sequence[int]] | None = None,
    groups: Sequence[str] | None = None,
    galleries: Mapping[str, Tensor] | None = None,
) -> CIRSplit:
    number = len(references)
    return CIRSplit(
        torch.arange(number),
        torch.tensor(references),
        Ragged.from_lists([list(each) for each in right]),
        Ragged.from_lists([list(each) for each in subsets or [[]] * number]),
        tuple(groups or [""] * number),
        galleries or {"": torch.arange(8)},
    )


def measured(scores: Tensor, of: CIRSplit, protocol: CIRProtocol):
    """Queries are unit vectors, so that a picture's numbers are its scores."""
    pictures = Store(scores.T.contiguous(), space="image")
    return evaluate_cir(torch.eye(len(scores)), [f"q{i}" for i in range(len(scores))], of, pictures, protocol)


def ids(names: str) -> list[int]:
    return [NAMES.index(name) for name in names]


def test_t2_cirr() -> None:
    found = measured(SCORES, split(ids("AB"), [ids("C"), ids("G")], [ids("ACDEFB"), ids("BGHACE")]), CIRR)
    wanted = {"R@1": 0, "R@5": 1, "R@10": 1, "R@50": 1, "Rsubset@1": 0, "Rsubset@2": 1, "Rsubset@3": 1, "mean": 0.5}
    assert found.means == pytest.approx(wanted)
    ranks = [row.index(target) + 1 for row, target in zip(found.ids.tolist(), ids("CG"), strict=True)]
    assert ranks == [2, 3]
    with_reference = measured(SCORES, split(ids("AB"), [ids("C"), ids("G")]), CIRProtocol(False, (1, 3)))
    ranks = [row.index(target) + 1 for row, target in zip(with_reference.ids.tolist(), ids("CG"), strict=True)]
    assert ranks == [3, 4]
    assert with_reference.means == {"R@1": 0.0, "R@3": 0.5}


def test_a_picture_that_is_in_no_gallery_is_not_ranked() -> None:
    gallery = {"": torch.tensor([1, 2, 4])}
    found = measured(SCORES[:1], split([0], [[2]], galleries=gallery), CIRProtocol(True, (1, 2)))
    assert found.ids[0, :4].tolist() == [1, 2, 4, -1]
    assert found.means == {"R@1": 0.0, "R@2": 1.0}


def test_ties_go_by_the_order_of_the_gallerys_file() -> None:
    same = torch.zeros(1, 8)
    gallery = {"": torch.tensor([5, 3, 1, 0])}
    found = measured(same, split([5], [[3]], galleries=gallery), CIRProtocol(True, (1,)))
    assert found.ids[0, :3].tolist() == [3, 1, 0]
    assert found.means["R@1"] == 1.0


def test_ties_in_a_subset_and_negative_scores() -> None:
    scores = torch.tensor([[-0.1, -0.5, -0.5, -0.9, 0, 0, 0, 0]])
    for target, rank in ((1, 1), (2, 2), (3, 3)):
        found = measured(scores, split([0], [[target]], [[0, 1, 2, 3]]), CIRR)
        assert [found.means[f"Rsubset@{k}"] for k in (1, 2, 3)] == [float(rank <= k) for k in (1, 2, 3)]


def test_fashioniq_averages_categories_alike() -> None:
    scores = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    groups = ["dress", "dress", "dress", "shirt", "shirt"]
    galleries = {"dress": torch.arange(4), "shirt": torch.arange(4, 8)}
    of = split([0, 1, 2, 4, 5], [[1], [2], [3], [5], [6]], groups=groups, galleries=galleries)
    found = measured(scores, of, CIRProtocol(False, (1, 2), summary="fashioniq"))
    each = {(k, g): found.means[f"R@{k} ({g})"] for k in (1, 2) for g in galleries}
    for k in (1, 2):
        mean = (each[k, "dress"] + each[k, "shirt"]) / 2
        assert found.means[f"R@{k} (average)"] == pytest.approx(mean)
    assert found.means["Rmean"] == pytest.approx(sum(each.values()) / 4)
    assert set(found.by_query["R@1 (shirt)"]) == {"q3", "q4"}
    for row, (group, gallery) in enumerate(zip(groups, (galleries[g] for g in groups), strict=True)):
        order = gallery[scores[row, gallery].argsort(descending=True)]
        assert found.ids[row, :4].tolist() == order.tolist(), group


def test_circo_divides_by_the_smaller_of_k_and_the_number_of_answers() -> None:
    """Against a slow loop over ranks."""
    generator = torch.Generator().manual_seed(1)
    found = torch.rand(20, 50, generator=generator) < 0.2
    number = found.sum(1) + torch.randint(0, 3, (20,), generator=generator)
    number = number.clamp_min(1)
    for k in (1, 5, 10, 50):
        for row in range(20):
            hits, total = 0, 0.0
            for rank in range(k):
                if found[row, rank]:
                    hits += 1
                    total += hits / (rank + 1)
            wanted = total / min(k, int(number[row]))
            assert average_precision(found, number, k)[row].item() == pytest.approx(wanted)


def test_several_answers_and_a_reference_that_stays() -> None:
    found = measured(SCORES[:1], split([0], [[2, 4, 7]]), CIRProtocol(False, (1, 3), average_precisions=(5,)))
    assert found.means == pytest.approx({"R@1": 0.0, "R@3": 1.0, "mAP@5": (1 / 3 + 2 / 5) / 3})


def test_a_subset_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="query 0 of this split has no right answer in its subset"):
        measured(SCORES[:1], split([0], [[7]], [[0, 1]]), CIRR)
