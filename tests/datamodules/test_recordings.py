"""Cutting, aligning and stretching recordings."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.recording_files import read_recordings
from datamodules.recordings import Recordings, cut, place_skeletons, resample

REAL = Path(os.environ.get("HARDNEG_DATA", "nowhere")) / "utd_mhad"


def two(lengths: tuple[int, ...] = (10, 4)) -> Recordings:
    """Recordings whose samples count up, recording after recording."""
    total = sum(lengths)
    signal = np.arange(total, dtype=np.float32)[:, None]
    offsets = np.r_[0, np.cumsum(lengths)]
    number = len(lengths)
    fields = {"subject": np.array([str(i) for i in range(number)])}
    names = tuple(f"r{i}" for i in range(number))
    return Recordings({"acc": signal}, {"acc": offsets}, np.zeros(number, np.int64), ("a",), names, fields)


def slow(lengths: list[int], length: int, hop: int) -> list[tuple[int, int]]:
    """(recording, start) one by one."""
    out = []
    for recording, size in enumerate(lengths):
        starts = list(range(0, max(size - length, 0) + 1, hop))
        out += [(recording, start) for start in starts]
    return out


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 12))
def test_windows_are_those_of_a_loop(lengths: list[int], length: int, hop: int) -> None:
    windows = cut(np.array(lengths), length, hop)
    expected = slow(lengths, length, hop)
    of = torch.tensor(lengths)[windows.recording]
    starts = (windows.start * of).round().long()
    assert list(zip(windows.recording.tolist(), starts.tolist(), strict=True)) == expected
    # and a window of as many steps is the samples themselves, the last one held where the recording ends
    signal, offsets = torch.arange(sum(lengths)).float()[:, None], torch.tensor([0, *np.cumsum(lengths)])
    found = resample(signal, offsets, windows.recording, windows.start, windows.stop, length)[:, :, 0]
    for row, (recording, start) in enumerate(expected):
        first, last = int(offsets[recording]), int(offsets[recording + 1]) - 1
        assert found[row].tolist() == [min(first + start + step, last) for step in range(length)]


def test_whole_recordings_are_stretched_linearly() -> None:
    at = two()
    windows = cut(np.diff(at.offsets["acc"]), None)
    signal, offsets = torch.from_numpy(at.signals["acc"]), torch.from_numpy(at.offsets["acc"])
    found = resample(signal, offsets, windows.recording, windows.start, windows.stop, 7)[:, :, 0]
    torch.testing.assert_close(found, torch.stack([torch.linspace(0, 9, 7), torch.linspace(10, 13, 7)]))


def test_the_second_modality_is_cut_by_the_same_share_of_the_clip() -> None:
    """20 samples and 9 frames of one clip: the second half is samples 10..19 and frames 4.5..8."""
    inertial, offsets = torch.arange(20).float()[:, None], torch.tensor([0, 20])
    frames, frame_offsets = torch.arange(9).float()[:, None], torch.tensor([0, 9])
    windows = cut(np.array([20]), 10)
    cut_by = (windows.recording, windows.start, windows.stop)
    assert resample(inertial, offsets, *cut_by, 10)[1, :, 0].tolist() == list(range(10, 20))
    assert resample(frames, frame_offsets, *cut_by, 8)[1, :, 0].tolist() == pytest.approx(
        torch.linspace(4.5, 8, 8).tolist()
    )


def test_skeletons_are_placed_by_their_first_frame() -> None:
    joints = np.array([[[1, 1, 1], [1, 1, 3]], [[2, 1, 1], [2, 1, 3]], [[0, 0, 0], [4, 0, 0]]], dtype=np.float32)
    placed = place_skeletons(joints, np.array([0, 2, 3]), 0, (0, 1))
    assert placed.tolist() == [[[0, 0, 0], [0, 0, 1]], [[0.5, 0, 0], [0.5, 0, 1]], [[0, 0, 0], [1, 0, 0]]]
    with pytest.raises(ValueError, match="joints 0 to 1"):
        place_skeletons(joints, np.array([0, 2, 3]), 2, None)


def test_broken_samples_are_named() -> None:
    at = two()
    broken = at.signals["acc"].copy()
    broken[12] = np.nan
    with pytest.raises(ValueError, match=r"recording 'r1', signal 'acc': sample 2 \(from 0\)"):
        Recordings({"acc": broken}, at.offsets, at.labels, at.classes, at.names)
    with pytest.raises(ValueError, match="'r1' has no sample"):
        Recordings({"acc": at.signals["acc"]}, {"acc": np.array([0, 14, 14])}, at.labels, at.classes, at.names)


def test_fields_choose_recordings() -> None:
    at = two()
    assert at.where({"subject": ["1"]}).tolist() == [1]
    with pytest.raises(ValueError, match="no recording has subject 7; there are 0, 1"):
        at.where({"subject": ["7"]})
    with pytest.raises(ValueError, match="no field 'scene'"):
        at.where({"scene": ["1"]})


@pytest.mark.skipif(not REAL.exists(), reason="HARDNEG_DATA does not hold utd_mhad")
def test_real_clips_equal_the_packed_windows() -> None:
    at = read_recordings(REAL)
    windows = cut(np.diff(at.offsets["inertial"]), None)
    with np.load(REAL / "windows.npz", allow_pickle=False) as packed:
        expected = torch.from_numpy(packed["inertial"])
    signal, offsets = torch.from_numpy(at.signals["inertial"]), torch.from_numpy(at.offsets["inertial"])
    found = resample(signal, offsets, windows.recording, windows.start, windows.stop, expected.shape[1])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert len(at) == 861
    assert len(at.classes) == 27
