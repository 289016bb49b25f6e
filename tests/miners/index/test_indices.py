"""Laws that every index obeys, on every kind of input."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from miners.index import FaissIndex, Index, TorchIndex, build_index
from miners.store import Store


def random_store(rows: int = 500, dim: int = 16, seed: int = 0) -> Store:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(10 * rows, generator=generator)[:rows]
    return Store(torch.randn(rows, dim, generator=generator), ids)


def brute_force(store: Store, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    products = queries.double() @ store.vectors.double().T
    scores, rows = products.sort(dim=1, descending=True, stable=True)
    return scores[:, :k].float(), store.ids[rows[:, :k]]


class IndexContract:
    """Inherit, write `make`, and the laws are tested."""

    def make(self, store: Store) -> Index:
        raise NotImplementedError

    @pytest.mark.parametrize(("queries", "k"), [(1, 1), (7, 10), (300, 500), (33, 499)])
    def test_finds_what_brute_force_finds(self, queries: int, k: int) -> None:
        store = random_store()
        asked = torch.randn(queries, store.dim, generator=torch.Generator().manual_seed(1))
        scores, ids = self.make(store).search(asked, k)
        expected, expected_ids = brute_force(store, asked, k)
        assert (scores.dtype, ids.dtype) == (torch.float32, torch.int64)
        assert torch.allclose(scores, expected, rtol=1e-5, atol=1e-5)
        assert (ids.sort(1).values.diff(dim=1) > 0).all()  # nothing twice
        # an id may differ only from one whose score is equal within float32 rounding
        other = ids != expected_ids
        assert other.float().mean() < 0.01
        found = torch.linalg.vecdot(asked.double()[:, None], store.rows(ids.flatten()).double().view(*ids.shape, -1))
        assert ((found - expected).abs()[other] < 1e-5).all()
        assert (scores[:, 1:] <= scores[:, :-1]).all()

    def test_takes_numpy_queries(self) -> None:
        store = random_store()
        asked = np.random.default_rng(0).normal(size=(3, store.dim)).astype(np.float32)
        assert torch.equal(self.make(store).search(asked, 4)[1], brute_force(store, torch.from_numpy(asked), 4)[1])

    def test_refuses_what_cannot_be_answered(self) -> None:
        index = self.make(random_store(20))
        queries = torch.zeros(2, 16)
        with pytest.raises(ValueError, match="corpus has 20 documents"):
            index.search(queries, 21)
        with pytest.raises(ValueError, match="k=0"):
            index.search(queries, 0)
        with pytest.raises(ValueError, match=r"16 dims; queries have shape \(2, 3\)"):
            index.search(queries[:, :3], 1)
        queries[1, 2] = float("nan")
        with pytest.raises(ValueError, match="query row 1 holds NaN"):
            index.search(queries, 1)
        with pytest.raises(ValueError, match="empty store"):
            self.make(Store(torch.zeros(0, 4)))

    def test_no_queries_no_answers(self) -> None:
        scores, ids = self.make(random_store()).search(torch.zeros(0, 16), 3)
        assert scores.shape == ids.shape == (0, 3)

    def test_saved_and_loaded_it_answers_alike(self, tmp_path) -> None:
        store = random_store()
        asked = torch.randn(9, store.dim, generator=torch.Generator().manual_seed(2))
        index = self.make(store)
        index.save(tmp_path)
        index.save(tmp_path)  # a second time over the first
        back = type(index).load(tmp_path)
        for ours, theirs in zip(index.search(asked, 20), back.search(asked, 20), strict=True):
            assert torch.equal(ours, theirs)

    def test_another_class_is_not_loaded(self, tmp_path) -> None:
        index = self.make(random_store())
        index.save(tmp_path)

        class OtherIndex(type(index)):  # type: ignore[misc]
            pass

        with pytest.raises(ValueError, match=f"holds a {type(index).__name__}"):
            OtherIndex.load(tmp_path)


class TestTorchIndex(IndexContract):
    def make(self, store: Store) -> Index:
        return TorchIndex(store, device="cpu")


class TestFaissFlat(IndexContract):
    def make(self, store: Store) -> Index:
        pytest.importorskip("faiss")
        return FaissIndex(store, device="cpu")


def test_an_approximate_index_marks_the_slots_it_cannot_fill() -> None:
    pytest.importorskip("faiss")
    store = random_store(400)
    index = FaissIndex(store, factory="IVF16,Flat", device="cpu", parameters="nprobe=1")
    scores, ids = index.search(store.vectors[:50], 300)
    empty = ids == -1
    assert empty.any()
    assert (scores[empty] == float("-inf")).all()
    assert (scores[~empty] > float("-inf")).all()
    exact = TorchIndex(store, device="cpu").search(store.vectors[:50], 10)[1]
    few, many = (
        FaissIndex(store, "IVF16,Flat", "cpu", f"nprobe={probes}").search(store.vectors[:50], 10)[1]
        for probes in (1, 16)
    )
    assert torch.equal(many, exact)
    assert not torch.equal(few, exact)


def test_without_faiss_the_error_names_both_extras(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"hardneg\[cpu\].*hardneg\[gpu\]"):
        FaissIndex(random_store())


def test_faiss_refusals_are_told() -> None:
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="factory='Nonsense'"):
        FaissIndex(random_store(), factory="Nonsense", device="cpu")
    with pytest.raises(ValueError, match="parameters='nonsense=3'"):
        FaissIndex(random_store(), factory="IVF4,Flat", device="cpu", parameters="nonsense=3")
    with pytest.raises(ValueError, match="FAISS sees 0 GPU"):
        FaissIndex(random_store(), device="mps")


def test_build_index_logs_its_choice(caplog) -> None:
    pytest.importorskip("faiss")
    caplog.set_level("INFO")
    assert isinstance(build_index("auto", random_store(), "cpu"), TorchIndex)
    assert isinstance(build_index("torch", random_store(), "cpu"), TorchIndex)
    assert isinstance(build_index("HNSW8", random_store(), "cpu"), FaissIndex)
    assert "TorchIndex over 500 x 16 on cpu: exact" in caplog.text
    assert "FAISS factory string 'HNSW8'" in caplog.text
