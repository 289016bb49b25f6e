"""Recordings of one or several signals, and the windows that are cut out of them.

All samples of a modality lie end to end in one array, so that cutting, aligning and resampling are gathers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Recordings:
    """R recordings, each with one or several signals of the same event.

    Args:
        signals: by modality, (S, C) columns of a sensor or (S, J, D) joints, float32; all recordings end to end.
        offsets: by modality, (R + 1,) int64; recording r is ``signals[offsets[r] : offsets[r + 1]]``.
        labels: (R,) int64 positions in ``classes``, -1 unknown.
        classes: names of the classes.
        names: R names, for messages and reports.
        fields: by name ("subject", "trial", "scene", "session", ...), (R,) str: what splits are made of.

    Raises:
        ValueError: parts that disagree on R, an empty recording, or values that are not finite; names the recording.
    """

    signals: Mapping[str, NDArray[np.float32]]
    offsets: Mapping[str, NDArray[np.int64]]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    fields: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number = len(self.names)
        counts = {"labels": len(self.labels), **{name: len(column) for name, column in self.fields.items()}}
        counts |= {f"offsets of {name}": len(of) - 1 for name, of in self.offsets.items()}
        if wrong := {name: count for name, count in counts.items() if count != number}:
            raise ValueError(f"Recordings: {number} names, but {wrong}.")
        for name, signal in self.signals.items():
            if signal.ndim not in (2, 3) or signal.dtype != np.float32:
                raise ValueError(
                    f"signal '{name}' is {signal.dtype} {signal.shape}; wanted float32 (samples, columns) or (samples, "
                    "joints, dims)."
                )
            lengths = np.diff(self.offsets[name])
            if self.offsets[name][-1] != len(signal) or (lengths < 1).any():
                bad = self.names[int(lengths.argmin())] if number else "nothing"
                raise ValueError(
                    f"signal '{name}': recording '{bad}' has no sample, or offsets do not cover the signal."
                )
            finite = np.isfinite(signal.reshape(len(signal), -1)).all(1)
            if not finite.all():
                at = int(finite.argmin())
                owner = int(np.searchsorted(self.offsets[name], at, side="right")) - 1
                raise ValueError(
                    f"recording '{self.names[owner]}', signal '{name}': sample {at - int(self.offsets[name][owner])} "
                    "(from 0) is empty or not finite. Fill gaps or cut the recording before it."
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.signals)

    def only(self, modalities: Sequence[str]) -> Recordings:
        """The same recordings with some of their signals, in this order.

        Raises:
            ValueError: a modality that is not there.
        """
        for name in modalities:
            if name not in self.signals:
                raise ValueError(f"no signal '{name}' in these recordings; there are {sorted(self.signals)}.")
        return replace(
            self,
            signals={name: self.signals[name] for name in modalities},
            offsets={name: self.offsets[name] for name in modalities},
        )

    def where(self, wanted: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
        """Recordings whose fields have one of the wanted values; all of the conditions must hold.

        Raises:
            ValueError: a field that is not there, or a value that no recording has.
        """
        keep = np.ones(len(self), dtype=bool)
        for name, values in wanted.items():
            if name not in self.fields:
                raise ValueError(f"no field '{name}' to split by; there are {sorted(self.fields)}.")
            texts = [str(value) for value in values]
            if missing := sorted(set(texts) - set(self.fields[name].tolist())):
                raise ValueError(f"no recording has {name} {', '.join(missing)}; there are {_some(self.fields[name])}.")
            keep &= np.isin(self.fields[name], texts)
        return np.flatnonzero(keep)


@dataclass(frozen=True)
class Windows:
    """W windows of recordings: shares of a recording, so that signals of any rate are cut alike.

    Args:
        recording: (W,) int64.
        start, stop: (W,) float64 shares of the recording's length; ``stop`` is beyond 1 where a window is longer than
            its recording, whose last sample then fills it.
    """

    recording: Tensor
    start: Tensor
    stop: Tensor

    def __len__(self) -> int:
        return len(self.recording)


def cut(lengths: NDArray[np.int64], length: int | None, hop: int | None = None) -> Windows:
    """Windows of ``length`` samples every ``hop`` samples of recordings of these lengths (R,).

    Args:
        length: samples of the first signal; None = one window, the whole recording.
        hop: samples from one start to the next; None = ``length``, no overlap. What is left at the end of a recording
            and is shorter than a window is left out; a recording shorter than a window gives one.
    """
    size = torch.as_tensor(lengths)
    if length is None:
        return Windows(torch.arange(len(size)), torch.zeros(len(size)).double(), torch.ones(len(size)).double())
    hop = hop or length
    number = 1 + (size - length).clamp_min(0) // hop  # (R,)
    recording = torch.arange(len(size)).repeat_interleave(number)
    first = (number.cumsum(0) - number)[recording]
    start = (torch.arange(len(recording)) - first) * hop
    of = size[recording].double()
    return Windows(recording, start / of, (start + length) / of)


def resample(signal: Tensor, offsets: Tensor, recording: Tensor, start: Tensor, stop: Tensor, steps: int) -> Tensor:
    """Windows of a signal, stretched linearly to ``steps`` samples.

    A window of exactly ``steps`` samples is copied as it is. Faster movement than half of the new rate is not filtered
    out: linear interpolation is what the packed sets use.

    Args:
        signal: (S, ...).
        offsets: (R + 1,).
        recording, start, stop: (W,) as in `Windows`.

    Returns:
        (W, steps, ...) float32.
    """
    base = offsets[recording]  # (W,)
    size = (offsets[recording + 1] - base).double()
    first, span = start * size, (stop - start) * size  # in samples
    pace = (span - 1).clamp_min(0) / max(steps - 1, 1)
    at = first[:, None] + pace[:, None] * torch.arange(steps)  # (W, steps)
    at = torch.minimum(at, size[:, None] - 1)
    below = (at + 1e-6).floor().clamp_min(0)  # a whole number that rounding moved down stays whole
    share = (at - below).clamp_min(0).float()
    share = share.view(*share.shape, *[1] * (signal.ndim - 1))
    low = (base[:, None] + below.long()).clamp_max(len(signal) - 1)
    high = torch.minimum(low + 1, (offsets[recording + 1] - 1)[:, None])
    return torch.lerp(signal[low].float(), signal[high].float(), share)


def place_skeletons(
    joints: NDArray[np.float32], offsets: NDArray[np.int64], centre: int, bone: tuple[int, int] | None
) -> NDArray[np.float32]:
    """Move each recording so that joint ``centre`` of its first frame is the origin, and scale it by a bone's length.

    Args:
        joints: (S, J, D).
        bone: two joints whose distance in the first frame becomes 1; None leaves the scale.

    Raises:
        ValueError: a joint that is not there.
    """
    for joint in (centre, *(bone or ())):
        if not 0 <= joint < joints.shape[1]:
            raise ValueError(f"joint {joint}: the skeleton has joints 0 to {joints.shape[1] - 1}.")
    first = joints[offsets[:-1]]  # (R, J, D)
    lengths = np.diff(offsets)
    moved = joints - np.repeat(first[:, centre], lengths, axis=0)[:, None]
    if bone is not None:
        size = np.linalg.norm(first[:, bone[0]] - first[:, bone[1]], axis=1)  # (R,)
        moved /= np.repeat(np.maximum(size, 1e-6), lengths)[:, None, None]
    return moved.astype(np.float32)


def _some(values: NDArray[np.str_]) -> str:
    there = sorted(set(values.tolist()))
    return ", ".join(there[:20]) + (f" and {len(there) - 20} more" if len(there) > 20 else "")
