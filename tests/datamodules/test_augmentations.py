"""Each augmentation does what its name says, to a share of the windows, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datamodules.augmentations import (
    Augmentation,
    ChannelShuffle,
    CropResize,
    Jitter,
    Permutation,
    Resize,
    Rotation,
    Scaling,
    Shear,
)

ALL = [ChannelShuffle, CropResize, Jitter, Permutation, Resize, Rotation, Scaling, Shear]


def sensor(windows: int = 50, steps: int = 20, channels: int = 6) -> Tensor:
    """Value = time step + 100 x channel: what moved where can be read off."""
    return (torch.arange(steps)[:, None] + 100.0 * torch.arange(channels)).expand(windows, -1, -1)


def joints(windows: int = 50) -> Tensor:
    return torch.randn(windows, 12, 5, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("windows", [sensor(), joints(), joints()[:0]], ids=["sensor", "joints", "none"])
def test_keeps_shape_and_input_and_changes_a_share(kind: type[Augmentation], windows: Tensor) -> None:
    before = windows.clone()
    for probability in (0.0, 0.5, 1.0):
        changed = kind(probability=probability)(windows)  # type: ignore[call-arg]
        assert changed.shape == windows.shape
        assert changed.dtype == windows.dtype
        assert torch.equal(windows, before)
        number = int((changed != windows).flatten(1).any(1).sum())
        assert number <= {0.0: 0, 0.5: 0.8, 1.0: 1}[probability] * len(windows)
        assert number >= {0.0: 0, 0.5: 0.2, 1.0: 0.6}[probability] * len(windows)


@pytest.mark.parametrize("kind", ALL)
def test_a_seed_says_everything(kind: type[Augmentation]) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(kind()(sensor()))
    assert torch.equal(*results)


def test_permutation_moves_segments_of_time_and_leaves_channels_together() -> None:
    changed = Permutation(segments=3, probability=1)(sensor())
    times = changed - 100.0 * torch.arange(6)
    assert torch.equal(times, times[:, :, :1].expand_as(times))  # all channels moved alike
    order = times[:, :, 0]
    assert torch.equal(order.sort(1).values, torch.arange(20.0).expand(50, -1))
    breaks = (order.diff(dim=1) != 1).sum(1)
    assert int(breaks.max()) <= 2
    assert len(order.unique(dim=0)) > 20


def test_channel_shuffle_moves_channels_and_leaves_time_alone() -> None:
    changed = ChannelShuffle(probability=1)(sensor())
    assert torch.equal(changed % 100, sensor() % 100)
    channels = changed[:, 0] // 100
    assert torch.equal(channels.sort(1).values, torch.arange(6.0).expand(50, -1))
    assert torch.equal(changed // 100, channels[:, None].expand_as(changed))


def test_crop_resize_keeps_a_share_of_the_time() -> None:
    changed = CropResize(0.5, 0.5, probability=1)(sensor())
    spans = changed[:, -1, 0] - changed[:, 0, 0]
    torch.testing.assert_close(spans, torch.full((50,), 19 * 0.5))
    steps = changed[:, :, 0].diff(dim=1)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5), rtol=1e-3, atol=1e-3)
    assert changed.min() >= 0
    assert len(changed[:, 0, 0].unique()) > 20


def test_scaling_has_a_factor_per_channel_and_resize_one_per_window() -> None:
    ones = torch.ones(400, 5, 6)
    scaled = Scaling(0.2, probability=1)(ones)
    assert torch.equal(scaled, scaled[:, :1].expand_as(scaled))
    assert float(scaled[:, 0].std()) == pytest.approx(0.2, abs=0.02)
    assert (scaled[:, 0].std(1) > 0).all()
    resized = Resize(0.7, 1.2, probability=1)(ones)
    assert torch.equal(resized, resized[:, :1, :1].expand_as(resized))
    assert 0.7 <= float(resized.min()) < 0.75 < 1.15 < float(resized.max()) <= 1.2


def test_jitter_has_the_given_spread() -> None:
    assert float(Jitter(0.3)(torch.zeros(100, 50, 6)).std()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("windows", [joints(), joints()[..., :2], sensor() / 100], ids=["3d", "2d", "triads"])
def test_rotation_is_rigid_and_no_larger_than_asked(windows: Tensor) -> None:
    changed = Rotation(10, probability=1)(windows)
    width = 2 if windows.shape[-1] == 2 else 3
    old, new = (x.reshape(len(windows), -1, width) for x in (windows, changed))
    torch.testing.assert_close(old @ old.transpose(1, 2), new @ new.transpose(1, 2), rtol=1e-4, atol=1e-4)
    cosine = torch.nn.functional.cosine_similarity(old, new, dim=2)
    assert float(cosine[old.norm(dim=2) > 0.01].min()) >= 0.98480 - 1e-4  # cos of 10 degrees
    with pytest.raises(ValueError, match="in threes"):
        Rotation(10, probability=1)(torch.zeros(2, 5, 4))


def test_shear_is_linear_with_a_unit_diagonal() -> None:
    axes = torch.eye(3).expand(30, 1, 3, 3)  # three joints on the three axes
    maps = Shear(0.2, probability=1)(axes)[:, 0]
    assert torch.equal(maps.diagonal(dim1=1, dim2=2), torch.ones(30, 3))
    off = maps[:, ~torch.eye(3, dtype=torch.bool)]
    assert float(off.abs().max()) <= 0.2
    assert float(off.abs().max()) > 0.15


def test_says_what_shares_may_be() -> None:
    with pytest.raises(ValueError, match="share from 0 to 1"):
        Jitter(probability=1.5)
    with pytest.raises(ValueError, match="0 < low <= high <= 1"):
        CropResize(0.9, 0.8)
