"""A store keeps vectors and ids together, in memory and on disk."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miners.store import Store


def vectors(rows: int = 5, dim: int = 3) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows))


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=30, unique=True), st.data())
def test_rows_follow_their_ids(ids: list[int], data: st.DataObject) -> None:
    store = Store(vectors(len(ids)), torch.tensor(ids))
    asked = data.draw(st.lists(st.sampled_from(ids), max_size=40))
    expected = store.vectors[[ids.index(one) for one in asked]] if asked else torch.empty(0, 3)
    assert torch.equal(store.rows(torch.tensor(asked, dtype=torch.int64)), expected)


@pytest.mark.parametrize("ids", [None, torch.tensor([4, 9, 2, 7, 1])])
def test_an_unknown_id_is_named(ids: torch.Tensor | None) -> None:
    with pytest.raises(KeyError, match="no id 12"):
        Store(vectors(), ids).rows([1, 12])
    with pytest.raises(KeyError, match="no id -1"):
        Store(vectors(), ids).rows([-1])


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_blocks_cover_every_row_once_in_order(size: int) -> None:
    store = Store(vectors(), torch.tensor([4, 9, 2, 7, 1]))
    ids, blocks = zip(*store.blocks(size), strict=True)
    assert torch.equal(torch.cat(ids), store.ids)
    assert torch.equal(torch.cat(blocks), store.vectors)
    assert max(map(len, blocks)) <= size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mmap", [True, False])
def test_a_saved_store_comes_back_whole(tmp_path, dtype: torch.dtype, mmap: bool) -> None:
    store = Store(vectors().to(dtype), torch.tensor([4, 9, 2, 7, 1]), "image", "weights:1", 7, ["a", "b", "ü", "", "e"])
    store.save(tmp_path)
    back = Store.load(tmp_path, mmap=mmap)
    assert back.vectors.dtype == dtype
    assert torch.equal(back.vectors, store.vectors)
    assert torch.equal(back.ids, store.ids)
    assert (back.space, back.key, back.version, back.names) == ("image", "weights:1", 7, store.names)


def test_saving_again_replaces_the_old_files(tmp_path) -> None:
    Store(vectors(5)).save(tmp_path)
    loaded = Store.load(tmp_path)
    Store(loaded.vectors * 2, version=1).save(tmp_path)
    assert torch.equal(Store.load(tmp_path).vectors, vectors(5) * 2)
    assert len([name for name in os.listdir(tmp_path) if name[0] != "."]) == 3


def test_a_crash_while_saving_leaves_the_old_store(tmp_path, monkeypatch) -> None:
    Store(vectors(5), version=1).save(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        Store(vectors(6), version=2).save(tmp_path)
    assert Store.load(tmp_path).version == 1


def test_a_path_and_a_memory_map_are_not_copied(tmp_path) -> None:
    np.save(tmp_path / "v.npy", vectors().numpy())
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    for source in (tmp_path / "v.npy", mapped):
        assert torch.equal(Store(source).vectors, vectors())
    part = Store(mapped[2:])
    assert torch.equal(part.vectors, vectors()[2:])
    assert part.vectors.data_ptr() == mapped[2:].ctypes.data


def test_wrong_inputs_are_refused_by_name(tmp_path) -> None:
    bad = vectors()
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match=r"row 3 \(id 7\) holds NaN"):
        Store(bad, torch.tensor([4, 9, 2, 7, 1]))
    with pytest.raises(ValueError, match=r"id 9 twice \(rows 1 and 3\)"):
        Store(vectors(), torch.tensor([4, 9, 2, 9, 1]))
    with pytest.raises(ValueError, match="negative id -1"):
        Store(vectors(), torch.tensor([4, 9, 2, -1, 1]))
    with pytest.raises(ValueError, match="5 vectors and 4 ids"):
        Store(vectors(), torch.arange(4))
    with pytest.raises(ValueError, match="5 vectors and 1 names"):
        Store(vectors(), names=["a"])
    with pytest.raises(ValueError, match=r"name 'b' twice \(rows 1 and 3\)"):
        Store(vectors(), names=["a", "b", "c", "b", "e"])
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        Store(torch.zeros(3))
    with pytest.raises(ValueError, match=r"torch\.int64"):
        Store(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="got list"):
        Store([[1.0]])  # type: ignore[arg-type]
    (tmp_path / "v.npy").write_bytes(b"not an array")
    with pytest.raises(ValueError, match=r"v\.npy is no whole"):
        Store(tmp_path / "v.npy")
    with pytest.raises(FileNotFoundError, match=r"store\.json is missing"):
        Store.load(tmp_path)


def test_pickled_arrays_are_refused(tmp_path) -> None:
    np.save(tmp_path / "v.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"v\.npy is no whole"):
        Store(tmp_path / "v.npy")
