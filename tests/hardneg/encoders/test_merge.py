"""Weights are merged name by name; what is no weight stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hardneg.encoders import merge
from tests.distributed.tiny import TinyEncoder


class Odd(nn.Module):
    """Everything that is not an ordinary weight: a tied one, a mask, a counter, a buffer."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        self.short = nn.Parameter(torch.full((2,), value).half())
        self.mask = nn.Parameter(torch.tensor([value, -torch.inf]))
        self.counter = nn.Parameter(torch.tensor([int(value)]), requires_grad=False)
        self.register_buffer("running", torch.tensor([value]))
        nn.init.constant_(self.first.weight, value)


def weights(*values: float) -> nn.Module:
    module = nn.ParameterDict({"r": nn.Parameter(torch.tensor(values, dtype=torch.float32))})
    return module


def test_published_numbers() -> None:
    base, other = weights(1, 2), weights(1.2, 1.7)
    torch.testing.assert_close(merge(base, other, 0.5)["r"].data, torch.tensor([0.9, 2.15]))
    torch.testing.assert_close(base["r"].data, torch.tensor([1.0, 2.0]))  # base stays as it is


@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=2), st.floats(-2, 2))
@settings(max_examples=30, deadline=None)
def test_laws(values: list[float], w: float) -> None:
    base, other = weights(0.5, -1.5), weights(*values)
    torch.testing.assert_close(merge(base, other, 0)["r"], base["r"])
    torch.testing.assert_close(merge(base, other, -1)["r"], other["r"])
    torch.testing.assert_close(merge(base, base, w)["r"], base["r"])
    torch.testing.assert_close(merge(base, other, w)["r"], merge(other, base, -1 - w)["r"])


def test_an_encoder_and_its_vectors() -> None:
    base, other = TinyEncoder(seed=0), TinyEncoder(seed=1)
    same = merge(base, other, -1.0)
    texts = ["about w1 w2", "w3"]
    torch.testing.assert_close(same.embed(texts, "query"), other.embed(texts, "query"))
    assert merge(base, other, -0.5).fingerprint("query") not in (base.fingerprint("query"), other.fingerprint("query"))


def test_tied_weights_once_and_what_is_no_weight_from_base() -> None:
    merged = merge(Odd(1.0), Odd(3.0), -0.5)
    assert merged.first.weight is merged.second.weight
    assert torch.equal(merged.first.weight, torch.full((2, 2), 2.0))  # merged twice it would be 2.5
    assert merged.short.dtype == torch.float16
    assert merged.short.tolist() == [2, 2]
    assert merged.mask.tolist() == [1, -torch.inf]
    assert (merged.counter.item(), merged.running.item()) == (1, 1)


def test_messages_name_the_first_parameter() -> None:
    base = TinyEncoder(seed=0)
    with pytest.raises(ValueError, match=r"parameter 'out.weight' is \(6, 10\) in base and \(4, 10\) in other"):
        merge(base, TinyEncoder(seed=0, dim=4), 0.5)
    with pytest.raises(ValueError, match=r"parameter 'words.weight' is in base and not in other"):
        merge(base, nn.Linear(2, 2), 0.5)
    more = TinyEncoder(seed=0)
    more.extra = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"parameter 'extra.weight' is in other and not in base"):
        merge(base, more, 0.5)
    loose = Odd()
    loose.second.weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"'first.weight' and 'second.weight' are one weight in base and two in other"):
        merge(Odd(), loose, 0.5)
    with pytest.raises(ValueError, match=r"merge\(w=nan\): wants a finite number"):
        merge(base, base, float("nan"))
