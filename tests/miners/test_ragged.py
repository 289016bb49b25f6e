"""Lists of different lengths, as two tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miners import Ragged
from miners.ragged import pairs_in

lists = st.lists(st.lists(st.integers(-1, 2**62), max_size=5), max_size=8)


@given(lists)
def test_lists_come_back(rows: list[list[int]]) -> None:
    ragged = Ragged.from_lists(rows)
    assert ragged.to_lists() == rows
    assert len(ragged) == len(rows)
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    assert ragged.row_of_value.tolist() == [i for i, row in enumerate(rows) for _ in row]
    assert ragged.values.dtype == ragged.offsets.dtype == torch.long


@given(lists.filter(bool), st.data())
def test_select_takes_any_rows_in_any_order(rows: list[list[int]], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    selected = Ragged.from_lists(rows).select(torch.tensor(wanted, dtype=torch.long))
    assert selected.to_lists() == [rows[row] for row in wanted]


@given(lists, st.randoms(use_true_random=False))
def test_pairs_of_one_row_keep_their_order(rows: list[list[int]], random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    owners = torch.tensor([i for i in order for _ in rows[i]], dtype=torch.long)
    values = torch.tensor([value for i in order for value in rows[i]], dtype=torch.long)
    assert Ragged.from_pairs(owners, values, len(rows)).to_lists() == rows


@given(lists)
def test_padded_fills_behind_the_end(rows: list[list[int]]) -> None:
    padded = Ragged.from_lists(rows).padded(fill=-7).tolist()
    width = max(map(len, rows), default=0)
    assert padded == [row + [-7] * (width - len(row)) for row in rows]


few = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=8)


@given(few, st.lists(st.integers(0, 12), max_size=6))
def test_a_pair_is_on_the_list_of_its_row_or_not(rows: list[list[int]], values: list[int]) -> None:
    every = torch.arange(len(rows))[:, None]
    asked = torch.tensor(values, dtype=torch.long).expand(len(rows), -1)
    found = pairs_in(every, asked, Ragged.from_lists(rows))
    assert found.tolist() == [[value in row for value in values] for row in rows]


def test_empty_and_moving() -> None:
    assert Ragged.empty(3).to_lists() == [[], [], []]
    assert Ragged.empty(0).padded().shape == (0, 0)
    assert Ragged.from_lists([[1], [2, 3]]).to("cpu").to_lists() == [[1], [2, 3]]


def test_messages() -> None:
    with pytest.raises(
        ValueError, match=r"wants 1-D offsets \(B \+ 1,\) and values \(V,\); got shapes \(2, 2\) and \(3,\)"
    ):
        Ragged(torch.zeros(2, 2), torch.zeros(3))
