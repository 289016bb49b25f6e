"""The screened search gives the exact answer, ties and all, on inputs that try to fool it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import miners.index.torch_index as module
from miners.index import TorchIndex
from miners.store import Store


def oracle(store: Store, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row products in float64, rounded to float32; equal scores in row order."""
    exact = (store.vectors.double() * queries.double()[:, None]).sum(-1).float()
    scores, rows = exact.sort(dim=1, descending=True, stable=True)
    return scores[:, :k], store.ids[rows[:, :k]]


def gaussian(rows: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


CORPORA: dict[str, Callable[[], torch.Tensor]] = {
    "unit": lambda: normalize(gaussian(1500, 32, 0), dim=1),
    "long and short": lambda: gaussian(1500, 32, 0) * torch.logspace(-3, 3, 1500)[:, None],
    "every vector five times": lambda: gaussian(300, 32, 0).repeat(5, 1),
    "near copies": lambda: normalize(gaussian(30, 32, 0).repeat(50, 1) + 1e-6 * gaussian(1500, 32, 1), dim=1),
    "signs, many ties": lambda: gaussian(1500, 32, 0).sign(),
    "all the same": lambda: gaussian(1, 32, 0).repeat(1500, 1),
    "all zero": lambda: torch.zeros(1500, 32),
    "all scores negative": lambda: normalize(gaussian(1500, 32, 0).abs(), dim=1).neg(),
    "better towards the end": lambda: gaussian(1, 32, 5) * torch.linspace(0.1, 1, 1500)[:, None],
    "tiny": lambda: gaussian(1500, 32, 0) * 1e-25,
}


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["screen in bfloat16", "screen in float32"])
def screening(request, monkeypatch) -> torch.dtype:
    """Both types run on every CPU, with or without units for them."""
    monkeypatch.setattr(module, "screening_type", lambda device: request.param)
    monkeypatch.setattr(module, "BLOCK_ROWS", 512)  # several blocks, the last one short
    return request.param


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("k", [1, 10, 300])
def test_identical_to_the_oracle(screening: torch.dtype, corpus: str, k: int) -> None:
    store = Store(CORPORA[corpus](), torch.arange(1500).flip(0))
    queries = gaussian(64, 32, 9).abs() if corpus == "all scores negative" else gaussian(64, 32, 9)
    scores, ids = TorchIndex(store, device="cpu").search(queries, k)
    expected, expected_ids = oracle(store, queries, k)
    assert torch.equal(scores, expected)
    assert torch.equal(ids, expected_ids)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stores_of_every_precision(screening: torch.dtype, dtype: torch.dtype) -> None:
    store = Store(gaussian(2000, 24, 3).to(dtype))
    queries = gaussian(70, 24, 4)
    scores, ids = TorchIndex(store, device="cpu").search(queries, 20)
    expected, expected_ids = oracle(store, queries, 20)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(scores, expected)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 700),
    dim=st.integers(1, 40),
    queries=st.integers(1, 90),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_shape(rows: int, dim: int, queries: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, rows))
    store, asked = Store(gaussian(rows, dim, seed)), gaussian(queries, dim, seed + 1)
    scores, ids = TorchIndex(store, device="cpu").search(asked, k)
    assert torch.equal(scores, oracle(store, asked, k)[0])
    assert torch.equal(ids, oracle(store, asked, k)[1])


def test_the_answer_does_not_depend_on_blocks_or_company(monkeypatch) -> None:
    store, queries = Store(gaussian(5000, 48, 0)), gaussian(300, 48, 1)
    whole = TorchIndex(store, device="cpu").search(queries, 30)
    monkeypatch.setattr(module, "BLOCK_ROWS", 256)
    monkeypatch.setattr(module, "PAIR_BYTES", 1 << 14)
    for part in (slice(0, 1), slice(5, 80), slice(80, 300)):
        scores, ids = TorchIndex(store, device="cpu").search(queries[part], 30)
        assert torch.equal(scores, whole[0][part])
        assert torch.equal(ids, whole[1][part])


def test_the_bound_holds_for_every_pair(screening: torch.dtype) -> None:
    for make in CORPORA.values():
        store, queries = Store(make()), gaussian(50, 32, 11)
        index = TorchIndex(store, device="cpu")
        rounded = queries.to(screening)
        screened = (rounded @ store.vectors.to(screening).T).float()
        exact = queries.double() @ store.vectors.double().T
        error = index._error(queries, rounded.float(), screening)
        relative = torch.finfo(screening).eps / 2
        assert (module.upper(screened, error, relative) >= exact).all()
        assert (module.lower(screened, error[:, None], relative) <= exact).all()


def test_uncertified_queries_are_counted_and_told(monkeypatch, caplog) -> None:
    monkeypatch.setattr(module, "screening_type", lambda device: torch.bfloat16)
    caplog.set_level(logging.INFO)
    index = TorchIndex(Store(gaussian(1500, 32, 0)), device="cpu")
    index.search(gaussian(100, 32, 1), 10)
    assert (index.searched, index.uncertified) == (100, 0)
    same = TorchIndex(Store(torch.ones(1500, 32)), device="cpu")
    same.search(gaussian(100, 32, 1), 10)
    assert (same.searched, same.uncertified) == (100, 100)
    assert "100 queries tie with many documents" in caplog.text


def test_few_queries_are_not_screened_in_bfloat16(monkeypatch) -> None:
    monkeypatch.setattr(module, "screening_type", lambda device: torch.bfloat16)
    seen = []
    index = TorchIndex(Store(gaussian(300, 8, 0)), device="cpu")
    original = index._screen
    monkeypatch.setattr(index, "_screen", lambda queries, k, dtype: seen.append(dtype) or original(queries, k, dtype))
    index.search(gaussian(3, 8, 1), 5)
    index.search(gaussian(64, 8, 1), 5)
    assert seen == [torch.float32, torch.bfloat16]
