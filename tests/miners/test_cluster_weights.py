"""MEOW's weights: its specification's numbers (section 5), its laws, and the published form as an oracle."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hardneg.losses import InfoNCE
from miners import Block, ClusterWeights, InBatch, Items, NegativePool, SelfBlocks, Store
from miners.cluster_weights import mutual_information, prototype_terms
from miners.testing import PoolMinerContract, cost, random_pool
from tests.oracles import meow

DOUBLE = torch.float64
CLUSTERINGS = [[0, 0, 1, 1], [0, 1, 1, 2]]
A = F.normalize(torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-1, 0.2]], dtype=DOUBLE), dim=1)
Z = F.normalize(torch.tensor([[0.9, 0.1], [0.6, 0.8], [0.2, 1], [-1, 0]], dtype=DOUBLE), dim=1)


def known(clusterings: list[list[int]] = CLUSTERINGS, space: str = "document", **options: object) -> ClusterWeights:
    """A miner as a refresh would leave it, had it found these clusters."""
    miner = ClusterWeights([max(labels) + 2 for labels in clusterings], **options)  # type: ignore[arg-type]
    if clusterings:
        miner.labels = {space: torch.tensor(clusterings).T.contiguous()}
    return miner


def pool(a: Tensor = A, z: Tensor = Z, temperature: float = 0.5) -> NegativePool:
    ids = torch.arange(len(a))
    queries, documents = Items(a, ids, space="query"), Items(z, ids)
    own = Block(documents.map(lambda part: part[:, None]), "positive")
    return InBatch()(NegativePool(queries, own, temperature, sides={"anchors": queries, "positives": documents}))


def refreshed(**options: object) -> ClusterWeights:
    miner = ClusterWeights((2, 3), **options)  # type: ignore[arg-type]
    dice = torch.Generator().manual_seed(0)
    spaces = ("query", "document", "image", "class", "imu", "skeleton")
    miner.refresh({space: Store(torch.randn(60, 4, generator=dice), space=space) for space in spaces})
    return miner


class TestClusterWeights(PoolMinerContract):
    def make(self) -> ClusterWeights:
        return refreshed()


class TestWithSelfBlocks(PoolMinerContract):
    kinds = ("two_tower", "symmetric")

    def before(self) -> tuple[InBatch, SelfBlocks]:
        return InBatch(), SelfBlocks()

    def make(self) -> ClusterWeights:
        return refreshed(space=None)


class TestWithPrototypes(PoolMinerContract):
    kinds = ("two_tower", "symmetric")

    def make(self) -> ClusterWeights:
        miner = refreshed(prototype_weight=0.5)
        miner.centres = {
            space: tuple(F.normalize(torch.ones(k, 8) + torch.eye(k, 8), dim=1) for k in (2, 3))
            for space in miner.labels
        }
        return miner


# ---- the specification's numbers -------------------------------------------------------------------------------------


def test_t1_how_often_apart() -> None:
    mined = pool()
    together = known()._together(mined, mined.negatives[0])
    assert together is not None
    assert (2 - together).tolist() == [[0, 1, 2, 2], [1, 0, 1, 2], [2, 1, 0, 1], [2, 2, 1, 0]]
    assert (2 - together).tolist() == meow.apart(CLUSTERINGS).tolist()


def test_t2_the_published_form_goes_below_zero() -> None:
    terms = meow.released(A, Z, meow.apart(CLUSTERINGS), 0.5)
    assert terms.tolist() == pytest.approx([-0.108096, 0.425916, 0.172690, -1.199769], abs=1e-6)
    assert float(terms.mean()) == pytest.approx(-0.177315, abs=1e-6)


def test_t3_ours_has_the_positive_in_the_denominator() -> None:
    plain, weighed = pool(), known()(pool())
    assert cost(weighed).tolist() == pytest.approx([0.370715, 0.568432, 0.466403, 0.140311], abs=1e-6)
    for mined, expected in ((plain, 0.583168), (weighed, 0.386465)):
        total, count = InfoNCE()(mined)
        assert float(total / count) == pytest.approx(expected, abs=1e-6)
    log_weight = weighed.negatives[0].log_weight
    assert log_weight is not None
    off = ~torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(log_weight[off], (meow.apart(CLUSTERINGS) / 2).log()[off])


def test_t4_prototypes() -> None:
    values = []
    for labels, phi in (([0, 0, 1, 1], [0.4, 0.6]), ([0, 1, 1, 2], [0.5, 0.5, 0.5])):
        of = torch.tensor(labels)
        centres = F.normalize(torch.stack([Z[of == k].mean(0) for k in range(len(phi))]), dim=1)
        concentration = torch.tensor(phi, dtype=DOUBLE)
        published = float(meow.prototypes(A, centres, of, concentration))
        ours = float(prototype_terms(A, centres, of, concentration).mean())
        assert published - ours == pytest.approx(math.log(len(A) / len(phi)), abs=1e-12)
        values += [published, ours]
    assert values == pytest.approx([0.899107, 0.205960, 0.636799, 0.349117], abs=1e-6)
    assert (values[0] + values[2]) / 2 == pytest.approx(0.767953, abs=1e-6)


def test_the_published_concentration_is_inverted() -> None:
    tight, loose = [0.99] * 100, [0.60] * 100
    assert meow.concentration(tight) == pytest.approx(0.2138, abs=5e-5)
    assert meow.concentration(loose) == pytest.approx(0.1664, abs=5e-5)
    assert meow.concentration(tight, distances=True) == pytest.approx(0.0304, abs=5e-5)
    assert meow.concentration(loose, distances=True) == pytest.approx(0.1922, abs=5e-5)


# ---- laws (T6) -------------------------------------------------------------------------------------------------------

lists = st.integers(2, 9).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=4)
)


@settings(max_examples=40, deadline=None)
@given(lists)
def test_weights_are_symmetric_and_in_the_unit_interval(clusterings: list[list[int]]) -> None:
    number = len(clusterings[0])
    vectors = torch.randn(2, number, 3, generator=torch.Generator().manual_seed(number), dtype=DOUBLE)
    mined = known(clusterings)(pool(*vectors))
    (block,) = mined.negatives
    weight = (0 if block.log_weight is None else block.log_weight) + torch.zeros(number, number, dtype=DOUBLE)
    g = weight.exp().where(mined.usable_of(block), 0)
    torch.testing.assert_close(g, g.T)
    torch.testing.assert_close(g, (meow.apart(clusterings) / len(clusterings)).fill_diagonal_(0))
    if len({tuple(labels) for labels in clusterings}) == 1:
        assert set(g.flatten().tolist()) <= {0.0, 1.0}
    assert bool((cost(mined) >= 0).all())
    assert bool((cost(mined) <= cost(pool(*vectors)) + 1e-12).all())  # weights only take away


def test_without_clusterings_it_is_info_nce_to_the_bit() -> None:
    for miner in (known([]), ClusterWeights()):  # none asked for, none made yet
        assert torch.equal(cost(miner(pool())), cost(pool()))


def test_permuting_rows_permutes_the_terms() -> None:
    order = torch.tensor([2, 0, 3, 1])
    moved = known([[labels[i] for i in order.tolist()] for labels in CLUSTERINGS])(pool(A[order], Z[order]))
    torch.testing.assert_close(cost(moved), cost(known()(pool()))[order])


def test_never_apart_is_masked_counted_and_costs_nothing() -> None:
    mined = known([[0, 0, 0, 0], [1, 1, 1, 1]])(pool())
    assert int(mined.dropped["one_cluster"]) == 12
    assert cost(mined).tolist() == [0] * 4
    assert meow.released(A, Z, meow.apart([[0] * 4]), 0.5).isinf().all()  # what the published code does


def test_gradients() -> None:
    miner = known([*CLUSTERINGS, [0, 1, 0, 1]])

    def loss(a: Tensor, z: Tensor) -> Tensor:
        return InfoNCE()(miner(pool(a, z)))[0]

    assert torch.autograd.gradcheck(loss, (A.clone().requires_grad_(), Z.clone().requires_grad_()))


# ---- clusters --------------------------------------------------------------------------------------------------------


def test_a_refresh_clusters_and_strangers_weigh_one() -> None:
    directions = torch.eye(4).repeat_interleave(10, 0) + 0.01 * torch.arange(160).view(40, 4).sin()
    miner = ClusterWeights([2, 4], space="document")
    ids = torch.arange(0, 80, 2)
    miner.refresh({"document": Store(directions, ids), "query": Store(directions, space="query")})
    assert set(miner.labels) == {"document"}
    assert miner._labels_of(Items(ids=torch.tensor([1, -1, 500]))).tolist() == [[-1, -1]] * 3  # type: ignore[union-attr]
    of_ids = miner._labels_of(Items(ids=ids))
    assert of_ids is not None
    assert all(len(part.unique()) == 1 for part in of_ids[:, 1].split(10))
    strange = replace(pool(), negatives=())
    strange = replace(strange, positives=Block(Items(Z[:, None], torch.arange(1, 9, 2)[:, None]), "positive"))
    strange = strange.add(Block(Items(Z, torch.arange(1, 9, 2)), "in_batch"))
    assert torch.equal(cost(miner(strange)), cost(strange))
    assert miner(strange).dropped["one_cluster"] == 0


def test_anchors_of_the_clustered_space_have_clusters_of_their_own() -> None:
    items = Items(Z, torch.arange(4))
    far = Block(Items(A[:, None], torch.arange(4)[:, None], space="query"), "positive")
    mined = NegativePool(items, far, 0.5).add(Block(items, "documents"))
    assert known()(mined).usable.tolist() == (meow.apart(CLUSTERINGS) > 0).tolist()


def test_each_anchors_own_candidates() -> None:
    ids = torch.tensor([[1, 3], [0, 2], [3, 3], [0, 2]])
    mined = replace(pool(), negatives=()).add(Block(Items(Z[ids], ids), "mined"))
    g = meow.apart(CLUSTERINGS)[torch.arange(4)[:, None], ids] / 2
    log_weight = known()(mined).negatives[0].log_weight
    assert log_weight is not None
    torch.testing.assert_close(log_weight.exp(), g)


def test_synthetic_blocks_are_left_alone() -> None:
    mined = pool().add(Block(Items(ids=torch.arange(4)), "mixed", given=A @ Z.T, real=False))
    assert known()(mined).negatives[1] is mined.negatives[1]


def test_prototypes_pull_an_anchor_to_its_cluster() -> None:
    miner = known(prototype_weight=2.0)
    miner.centres = {"document": (Z[[0, 3]], Z[[0, 2, 3]])}
    total, count = miner.aux_loss(pool())  # type: ignore[misc]
    assert int(count) == 4
    terms = [prototype_terms(A, c, torch.tensor(of), 0.5) for c, of in zip((Z[[0, 3]], Z[[0, 2, 3]]), CLUSTERINGS)]
    torch.testing.assert_close(total, (terms[0] + terms[1]).sum())  # weight 2, mean of two
    assert known().aux_loss(pool()) is None


def test_mutual_information() -> None:
    a = torch.tensor([0, 0, 1, 1, 2, 2])
    assert mutual_information(a, 2 - a) == pytest.approx(1)
    assert mutual_information(a, torch.tensor([0, 1] * 3)) == pytest.approx(0, abs=1e-12)
    assert mutual_information(a * 0, a * 0) == 1


# ---- messages --------------------------------------------------------------------------------------------------------


def test_says_once_that_nothing_is_clustered(caplog: pytest.LogCaptureFixture) -> None:
    miner, mined = ClusterWeights(), InBatch()(random_pool())
    with caplog.at_level(logging.WARNING):
        miner.commit(random_pool())  # nobody to weigh
        assert not caplog.records
        miner.commit(miner(mined))
        miner.commit(miner(mined))
    assert len(caplog.records) == 1
    assert "clusters are known of nothing, candidates are of ['document']" in caplog.text
    assert "RefreshNegatives" in caplog.text


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"num_clusters=\[1\]\): wants 2 clusters or more"):
        ClusterWeights([1])
    with pytest.raises(ValueError, match="a weight is at least 0, a temperature above 0"):
        ClusterWeights(prototype_weight=-1)
    store = Store(torch.eye(20))
    with pytest.raises(ValueError, match="with 20 things of space 'document', at most 4 clusters"):
        ClusterWeights([2, 5]).refresh({"document": store})
    with pytest.raises(ValueError, match=r"clusters space 'image' and was handed \['document'\]: set its space"):
        ClusterWeights(space="image").refresh({"document": store})
