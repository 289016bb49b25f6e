"""The measures are the repository's, to the digit, and its propensities too."""

from __future__ import annotations

import math

import pytest
import torch

from hardneg.metrics.extreme import extreme_measures, inverse_propensities
from miners.ragged import Ragged


@pytest.mark.parametrize(
    ("rows", "model", "expected"),
    [
        (294805, (0.6, 2.6), [12.594069, 8.405071, 2.553563]),
        (1813391, (0.5, 0.4), [14.410709, 7.828399, 2.583612]),
    ],
)
def test_t8_propensities(rows: int, model: tuple[float, float], expected: list[float]) -> None:
    assert inverse_propensities(torch.tensor([1, 5, 100]), rows, *model).tolist() == pytest.approx(expected, abs=5e-7)


def test_t8_a_tiny_case() -> None:
    inverse = inverse_propensities(torch.tensor([3, 1, 2]), 4, 0.55, 1.5)
    assert inverse.tolist() == pytest.approx([1.279588, 1.386294, 1.321032], abs=5e-7)
    ids = torch.tensor([[0.9, 0.2, 0.5], [0.3, 0.8, 0.7]]).argsort(dim=1, descending=True)
    found = {name: float(v.mean()) for name, v in extreme_measures(ids, TRUTH, inverse, cutoffs=(1, 2)).items()}
    assert (found["P@1"], found["P@2"]) == (0.5, 0.5)
    assert found["PSP@1"] == pytest.approx(0.472639, abs=5e-7)
    assert found["PSP@2"] == pytest.approx(0.652289, abs=5e-7)


TRUTH = Ragged.from_lists([[0, 1], [2]])


def slowly(ids: list[list[int]], truth: list[list[int]], inverse: list[float], k: int) -> dict[str, float]:
    """The repository's definitions, a query at a time."""
    discount = [1 / math.log2(place + 2) for place in range(k)]
    best = [sorted(own, key=lambda label: -inverse[label])[:k] for own in truth]

    def mean(rank: list[list[int]], weigh: bool, discounted: bool) -> float:
        total = 0.0
        for row, own in zip(rank, truth, strict=True):
            gains = [(inverse[at] if weigh else 1.0) if at in own else 0.0 for at in row[:k]]
            if discounted:
                gains = [gain * share for gain, share in zip(gains, discount, strict=False)]
            total += sum(gains) / (sum(discount[: min(k, len(own))]) if discounted else k)
        return total / len(truth)

    return {
        f"P@{k}": mean(ids, False, False),
        f"nDCG@{k}": mean(ids, False, True),
        f"PSP@{k}": mean(ids, True, False) / mean(best, True, False),
        f"PSnDCG@{k}": mean(ids, True, True) / mean(best, True, True),
    }


def test_against_a_query_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(12, generator=generator)[:7] for _ in range(40)])
    truth = [torch.randperm(12, generator=generator)[: 1 + row % 9].tolist() for row in range(40)]
    inverse = 1 + 5 * torch.rand(12, generator=generator, dtype=torch.float64)
    found = extreme_measures(ids, Ragged.from_lists(truth), inverse)
    assert list(found) == [f"{name}@{k}" for name in ("P", "nDCG", "PSP", "PSnDCG") for k in (1, 3, 5)]
    for k in (1, 3, 5):
        for name, value in slowly(ids.tolist(), truth, inverse.tolist(), k).items():
            assert float(found[name].mean()) == pytest.approx(value, rel=1e-12), name


def test_a_perfect_ranking_and_an_empty_one() -> None:
    inverse = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    perfect = extreme_measures(torch.tensor([[1, 0, -1], [2, -1, -1]]), TRUTH, inverse, cutoffs=(1, 3))
    for name in ("nDCG@1", "nDCG@3", "PSP@1", "PSP@3", "PSnDCG@1", "PSnDCG@3"):
        assert float(perfect[name].mean()) == pytest.approx(1.0)
    assert perfect["P@3"].tolist() == pytest.approx([2 / 3, 1 / 3])  # k counts, however few labels there are
    for values in extreme_measures(torch.full((2, 1), -1), TRUTH, inverse).values():
        assert values.tolist() == [0.0, 0.0]


def test_a_query_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="query 1 of 2 has no label in this split"):
        extreme_measures(torch.zeros(2, 1).long(), Ragged.from_lists([[0], []]), torch.ones(1))
