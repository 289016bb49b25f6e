"""Random numbers that are a function of (seed, epoch, row)."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miners.draws import RowGenerator, generator_for, splitmix64


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
    st.integers(1, 50),
    st.integers(0, 2**31),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_row_draws_the_same_whoever_stands_beside_it(rows: list[int], n: int, seed: int, epoch: int) -> None:
    together = RowGenerator(seed, epoch).uniform(torch.tensor(rows), n)
    for place, row in enumerate(rows):
        alone = RowGenerator(seed, epoch).uniform(torch.tensor([row]), n + 3)[
            0, :n
        ]  # more numbers: the same first ones
        assert torch.equal(together[place], alone)
    assert bool(((together >= 0) & (together < 1)).all())


def test_seeds_epochs_and_streams_differ() -> None:
    rows = torch.arange(100)
    base = RowGenerator(0, 0).uniform(rows, 4)
    for other in (RowGenerator(1, 0), RowGenerator(0, 1), RowGenerator(0, 0, 1)):
        assert int((other.uniform(rows, 4) == base).sum()) == 0


def test_numbers_are_even_and_unrelated() -> None:
    """Neighbouring rows, columns and epochs: where a weak scrambler would show."""
    draws = torch.stack([RowGenerator(0, epoch).uniform(torch.arange(2000), 8) for epoch in range(4)])  # (4, 2000, 8)
    counts = torch.histc(draws, bins=20, min=0, max=1)
    expected = draws.numel() / 20
    assert float(((counts - expected) ** 2 / expected).sum()) < 60  # chi-square, 19 degrees: 99.99 % lie below 52
    centred = draws - 0.5
    for shifted in (centred.roll(1, 0), centred.roll(1, 1), centred.roll(1, 2)):
        assert abs(float((centred * shifted).mean() / (centred**2).mean())) < 0.02
    assert len(draws.unique()) == draws.numel()


def testsplitmix64_is_the_published_one() -> None:
    """First outputs of the reference generator seeded with 1234567."""
    golden = -7046029254386353131
    outputs, counter = [], 1234567
    for _ in range(3):
        outputs.append(int(splitmix64(torch.tensor(counter))) % 2**64)
        counter = (counter + golden + 2**63) % 2**64 - 2**63
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_generators_are_alike_on_all_processes() -> None:
    first, second = generator_for(3, 1, 2), generator_for(3, 1, 2)
    assert torch.equal(torch.randperm(50, generator=first), torch.randperm(50, generator=second))
    different = [
        torch.randperm(50, generator=generator_for(*of)).tolist() for of in ((3, 1, 2), (3, 2, 1), (1, 3, 2), (3, 1))
    ]
    assert len({tuple(one) for one in different}) == 4
