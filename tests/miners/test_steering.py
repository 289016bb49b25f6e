"""A steered query leaves what it is to avoid and keeps what it asks for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from miners import steer
from tests.oracles.other_negatives import perpendicular

QUERY, AWAY = torch.tensor([[1, 0.2, 0]]).double(), torch.tensor([[0.8, 0.6, 0]]).double()


def cosines(steered: Tensor) -> list[float]:
    return [float(F.cosine_similarity(steered, other)) for other in (QUERY, AWAY)]


def test_published_directions() -> None:
    assert cosines(steer(QUERY, AWAY, 0.5, perpendicular=False)) == pytest.approx([0.931, 0.682], abs=5.1e-4)
    assert cosines(steer(QUERY, AWAY, 0.5)) == pytest.approx([0.978, 0.791], abs=5.1e-4)


@given(st.integers(0, 10**6), st.floats(0.05, 3), st.floats(0.1, 9))
@settings(max_examples=50, deadline=None)
def test_laws(seed: int, weight: float, length: float) -> None:
    draw = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    query, away = draw
    steered = steer(query, away, weight)
    torch.testing.assert_close(steered.norm(dim=1), torch.ones(4).double())
    torch.testing.assert_close(steer(length * query, 2 * length * away, weight), steered)  # lengths do not matter
    q, r = F.normalize(query, dim=1), F.normalize(away, dim=1)
    # what is alike (r.q >= 0) becomes less alike; what is nearly opposite may be passed on the far side
    before, after = F.cosine_similarity(q, r), F.cosine_similarity(steered, r)
    assert bool((after <= before + 1e-9)[before >= 0].all())
    expected = [
        [a - weight * b for a, b in zip(one, perpendicular(other, one), strict=True)]
        for one, other in zip(q.tolist(), r.tolist(), strict=True)
    ]
    torch.testing.assert_close(steered, F.normalize(torch.tensor(expected).double(), dim=1))
    # the query keeps its direction: its own share is 1 before the last normalising
    kept = F.cosine_similarity(steered, q)
    assert bool((kept > 0).all())
    several = steer(query, torch.stack([away, draw[0].roll(1, 0)], 1), weight)
    order = steer(query, torch.stack([draw[0].roll(1, 0), away], 1), weight)
    torch.testing.assert_close(several, order)


def test_what_is_the_query_itself_moves_nothing_unless_subtracted_whole() -> None:
    torch.testing.assert_close(steer(QUERY, 3 * QUERY, 0.7), F.normalize(QUERY, dim=1))
    with pytest.raises(ValueError, match="nothing is left of query 0"):
        steer(QUERY, QUERY, 1.0, perpendicular=False)


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 3\) and \(3,\)\. One thing for all queries: away\.expand"):
        steer(QUERY, AWAY[0])
    with pytest.raises(ValueError, match=r"steer\(weight=-1\): wants a number above 0"):
        steer(QUERY, AWAY, -1)
