"""CLAN's corrupted copies: the law they follow (T7), the pool form (T4), and that no copy is unchanged."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hardneg.losses import InfoNCE
from miners import AugmentedNegatives, Block, InBatch, Items, NegativePool, NegativeSource, Ragged, Resample
from miners import TrainingTable as Table
from miners.augmented_negatives import Corruption
from miners.draws import RowGenerator
from miners.testing import NegativeSourceContract


def table(inputs: Tensor, features: Tensor | None = None) -> Table:
    rows = torch.arange(len(inputs))
    return Table(rows, Ragged.from_lists([[row] for row in rows.tolist()]), inputs=inputs, features=features)


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def copies(source: AugmentedNegatives, inputs: Tensor, rows: Tensor, epoch: int = 0, seed: int = 0) -> Tensor:
    made = source.corrupt(inputs[rows], rows, RowGenerator(seed, epoch))
    return made.inputs


class TestAugmentedNegatives(NegativeSourceContract):
    random = False  # it draws no ids

    def make(self, table: Table) -> NegativeSource:
        return AugmentedNegatives()

    def _ready(self, table: Table) -> NegativeSource:
        return super()._ready(replace(table, inputs=normal(len(table), 3)))


# ---- the specification's numbers -------------------------------------------------------------------------------------


def test_t4_all_clean_rows_are_positives_one_at_a_time() -> None:
    clean = Items(torch.tensor([[1, 0], [0.6, 0.8], [0.8, 0.6]], dtype=torch.float64), torch.arange(3), space="row")
    corrupted = Items(torch.tensor([[0, 1], [-0.6, 0.8], [0.6, 0.8]], dtype=torch.float64), space="row")
    others = ~torch.eye(3, dtype=torch.bool)
    pool = NegativePool(clean, Block(clean, "positive", usable=others), 0.2, sides={"drawn": corrupted})
    total, count = InfoNCE()(InBatch()(pool))
    assert float(total / count) == pytest.approx(1.087849, abs=1e-6)


def test_t7_margins_stay_and_dependence_goes() -> None:
    x = normal(100_000, 30)
    x[:, 1] = 0.9 * x[:, 0] + 0.19**0.5 * x[:, 1]
    source = AugmentedNegatives(Resample(0.1, spread=3**0.5))
    source.attach(table(x))
    made = copies(source, x, torch.arange(len(x)))[:, :2]
    assert made.mean(0).tolist() == pytest.approx([0, 0], abs=0.01)
    assert made.var(0).tolist() == pytest.approx([1, 1], abs=0.02)
    assert float(torch.corrcoef(made.T)[0, 1]) == pytest.approx(0.9**2 * 0.9, abs=0.01)


# ---- laws ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.floats(0.001, 1.0), st.sampled_from(["uniform", "marginal", "zero"]), st.integers(1, 6), st.integers(1, 3))
def test_every_copy_is_changed_and_nothing_else_is(share: float, law: str, columns: int, per_anchor: int) -> None:
    x = normal(9, columns, seed=columns)
    source = AugmentedNegatives(Resample(share, law), per_anchor)  # type: ignore[arg-type]
    source.attach(table(x))
    rows = torch.arange(9)
    before = x.clone()
    made = source.corrupt(x, rows, RowGenerator(1, 2))
    assert torch.equal(x, before)
    assert made.rows.tolist() == list(range(9)) * per_anchor
    changed = (made.inputs != x.repeat(per_anchor, 1)).sum(1)
    assert bool((changed >= 1).all())
    if share == 1:
        assert law == "marginal" or bool((changed == columns).all())
    assert torch.equal(source.corrupt(x, rows, RowGenerator(1, 2)).inputs, made.inputs)


def test_a_copy_is_a_function_of_seed_epoch_and_row() -> None:
    x = normal(30, 5)
    source = AugmentedNegatives(Resample(0.5, "marginal"), per_anchor=2)
    source.attach(table(x))
    whole = copies(source, x, torch.arange(30)).view(2, 30, 5)
    order = torch.tensor([7, 2, 29])
    assert torch.equal(copies(source, x, order).view(2, 3, 5), whole[:, order])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(copies(source, x, torch.arange(30), epoch=1), whole.flatten(0, 1))
    assert not torch.equal(copies(source, x, torch.arange(30), seed=1), whole.flatten(0, 1))


def test_a_category_changes_as_a_whole() -> None:
    codes = torch.randint(4, (200,), generator=torch.Generator().manual_seed(0))
    x = torch.cat([normal(200, 1), torch.eye(4)[codes]], 1)
    source = AugmentedNegatives(Resample(0.5))
    source.attach(table(x, torch.tensor([0, 1, 1, 1, 1])))
    made = copies(source, x, torch.arange(200))
    assert bool((made[:, 1:].sum(1) == 1).all())  # one value each, none in between
    assert 20 < int((made[:, 1:] != x[:, 1:]).any(1).sum()) < 120
    numbers = made[:, 0] != x[:, 0]
    assert bool((made[numbers, 0].abs() <= 1.7).all())


def test_constants_stay_and_a_category_drawn_as_it_was_is_no_change() -> None:
    codes = (torch.arange(200) % 20 == 0).long()
    x = torch.cat([torch.full((200, 1), 7.0), torch.eye(2)[codes], normal(200, 1)], 1)
    source = AugmentedNegatives(Resample(0.001))
    source.attach(table(x, torch.tensor([0, 1, 1, 2])))
    made = copies(source, x, torch.arange(200))
    assert bool((made[:, 0] == 7).all())
    assert bool((made != x).any(1).all())
    assert 0 < int((made[:, 1] != x[:, 1]).sum()) < 60


def binary(rows: int, columns: int, share: float = 0.05) -> Tensor:
    return (torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) < share).float()


@pytest.mark.parametrize("law", ["marginal", "uniform", "zero"])
def test_no_copy_of_rare_ones_is_unchanged(law: str, caplog: pytest.LogCaptureFixture) -> None:
    x = binary(2000, 12)
    corruption = Resample(0.1, law)  # type: ignore[arg-type]
    source = AugmentedNegatives(corruption)
    source.attach(table(x))
    made = source.corrupt(x, torch.arange(2000), RowGenerator(0, 0))
    changed = (made.inputs != x[made.rows]).sum(1)
    assert int(changed.min()) >= 1
    zeros = (x == 0).all(1)
    assert made.rows.tolist() == ((~zeros).nonzero()[:, 0] if law == "zero" else torch.arange(2000)).tolist()
    assert corruption.unchanged == (float(zeros.double().mean()) if law == "zero" else 0)
    if law == "marginal":
        assert bool(torch.isin(made.inputs, torch.tensor([0.0, 1])).all())
        assert 0.5 < corruption.forced < 1  # a draw of a share of 0.1 is nearly always the 0 that stood there
        assert f"none becomes another in {100 * corruption.forced:.0f} % of the rows" in caplog.text
    if law == "zero":
        assert f"in {100 * corruption.unchanged:.0f} % nothing can change" in caplog.text


def test_rare_categories_change_too() -> None:
    codes = (torch.arange(300) % 50 == 0).long() * (1 + torch.arange(300) // 50 % 2)
    x = torch.cat([torch.full((300, 1), 3.0), torch.eye(3)[codes]], 1)
    source = AugmentedNegatives(Resample(0.1))
    source.attach(table(x, torch.tensor([0, 1, 1, 1])))
    made = copies(source, x, torch.arange(300))
    assert len(made) == 300
    assert bool((made[:, 1:].sum(1) == 1).all())
    assert bool((made != x).any(1).all())


def test_nothing_that_can_change() -> None:
    with pytest.raises(ValueError, match=r"Resample\(law='marginal'\) can change no row"):
        Resample(law="marginal").attach(table(torch.ones(4, 2)))


def test_marginal_takes_values_that_there_are() -> None:
    x = normal(50, 3)
    source = AugmentedNegatives(Resample(1.0, "marginal"))
    source.attach(table(x))
    made = copies(source, x, torch.arange(50))
    assert all(bool(torch.isin(made[:, at], x[:, at]).all()) for at in range(3))


def test_a_corruption_of_ones_own() -> None:
    class Negate(Corruption):
        def __call__(self, inputs: Tensor, rows: Tensor, generator: RowGenerator, copy: int) -> Tensor:
            return -inputs

    source = AugmentedNegatives(Negate())
    windows = normal(4, 6).view(4, 3, 2)
    source.attach(table(windows))
    assert torch.equal(copies(source, windows, torch.arange(4)), -windows)


# ---- messages --------------------------------------------------------------------------------------------------------


def test_few_features_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Resample(0.1).attach(table(normal(5, 72)))
        assert not caplog.records
        corruption = Resample(0.1)
        corruption.attach(table(normal(4000, 6)))
    assert corruption.forced == pytest.approx(0.9**6, abs=0.03)
    assert "of 6 features that vary, none becomes another in 5" in caplog.text


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"Resample\(share=0, spread=1.7\): a share in \(0, 1\]"):
        Resample(0)
    with pytest.raises(ValueError, match="wants 'uniform', 'marginal' or 'zero'"):
        Resample(law="gauss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wants at least 1"):
        AugmentedNegatives(per_anchor=0)
    with pytest.raises(ValueError, match=r"this data module does not hand that over. Use datamodules.TabularData"):
        AugmentedNegatives().attach(replace(table(normal(2, 2)), inputs=None))
    with pytest.raises(ValueError, match="For other inputs, write a Corruption"):
        AugmentedNegatives().attach(table(normal(4, 6).view(4, 3, 2)))
    with pytest.raises(RuntimeError, match="knows no rows yet"):
        copies(AugmentedNegatives(), normal(2, 2), torch.arange(2))
