from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from miners.draws import generator_for
from miners.spherical_kmeans import spherical_kmeans


def blobs(seed: int = 0, clusters: int = 4, each: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    truth = torch.arange(clusters).repeat_interleave(each)
    return torch.eye(clusters + 2)[truth] + 0.1 * torch.randn(len(truth), clusters + 2, generator=dice), truth


def test_finds_what_lies_apart() -> None:
    vectors, truth = blobs()
    found = [spherical_kmeans(vectors * 7, 4, generator_for(seed))[0] for seed in range(5)]
    # each cluster is one blob, from one start of five at least
    assert min(len(set(zip(labels.tolist(), truth.tolist(), strict=True))) for labels in found) == 4


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 25), st.integers(1, 25), st.integers(0, 5))
def test_laws(rows: int, clusters: int, seed: int) -> None:
    clusters = min(rows, clusters)
    vectors = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    vectors[: rows // 2] = vectors[0]  # many the same
    labels, centres = spherical_kmeans(vectors, clusters, generator_for(seed))
    assert labels.unique().tolist() == list(range(clusters))  # none is empty
    unit = F.normalize(vectors, dim=1)
    for number in range(clusters):
        torch.testing.assert_close(centres[number], F.normalize(unit[labels == number].sum(0), dim=0))
    again, _ = spherical_kmeans(vectors, clusters, generator_for(seed))
    assert torch.equal(labels, again)


def test_messages() -> None:
    with pytest.raises(ValueError, match="cannot make 5 clusters of 4 vectors"):
        spherical_kmeans(torch.eye(4), 5, generator_for(0))
    with pytest.raises(ValueError, match=r"row 2 of 4 has a vector that is not finite"):
        spherical_kmeans(torch.eye(4).index_fill(0, torch.tensor([2]), torch.nan), 2, generator_for(0))
