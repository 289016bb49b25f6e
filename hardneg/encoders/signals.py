"""Encoders of signals over time: what a sensor measures, and how joints move."""

from __future__ import annotations

import hashlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from hardneg.encoders.base import Encoder, hash_weights
from hardneg.encoders.model_files import settings_of

WEIGHTS, SETTINGS = "model.safetensors", "encoder.yaml"


class Backbone(nn.Module, ABC):
    """Turns windows of one modality into features. Constructor arguments are plain values kept under their own names.

    Attributes:
        num_features: length F of a feature vector.
    """

    num_features: int

    @abstractmethod
    def forward(self, windows: Tensor) -> Tensor:
        """(B, T, C) or (B, T, J, D), time first -> (B, F)."""

    def settings(self) -> dict[str, Any]:
        """The constructor arguments that make the same backbone again."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


class InertialConvolutions(Backbone):
    """Three blocks of convolution, batch norm, ReLU and halving over time; mean and maximum over what is left.

    Any number of time steps from 8 on; a tenth of the transformer's price.

    Args:
        channels: C, columns of the sensor.
        widths: output channels of each block; the features are twice the last.
        kernel_size: time steps that a convolution sees; odd.
    """

    def __init__(self, channels: int = 6, widths: Sequence[int] = (32, 64, 128), kernel_size: int = 5) -> None:
        super().__init__()
        self.channels, self.widths, self.kernel_size = channels, list(widths), kernel_size
        sizes = [channels, *widths]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv1d(before, after, kernel_size, padding=kernel_size // 2),
                    nn.BatchNorm1d(after),
                    nn.ReLU(),
                    nn.MaxPool1d(2),
                )
                for before, after in pairwise(sizes)
            )
        )
        self.num_features = 2 * sizes[-1]

    def forward(self, windows: Tensor) -> Tensor:
        x = self.blocks(_sensor(windows, self.channels).transpose(1, 2))  # (B, width, T / 8)
        return torch.cat([x.mean(2), x.amax(2)], dim=1)


class InertialTransformer(Backbone):
    """Three convolutions, then self-attention over time steps; all of them are the features.

    Args:
        channels: C, columns of the sensor.
        steps: T, time steps of a window; others are refused.
        widths: output channels of the convolutions; the last is the width of attention.
        kernel_size: time steps that a convolution sees; padding is 1, so that each takes kernel_size - 3 steps away.
        heads: of attention.
        layers: of attention.
        feedforward: width inside a layer.
        dropout: of positions and layers, in [0, 1).

    Source:
        CMC-CMKM, arXiv 2205.10071 (50 steps, kernel 5: 46 - 2 = 44 steps x 128 = 5,632 features).
    """

    def __init__(
        self,
        channels: int = 6,
        steps: int = 50,
        widths: Sequence[int] = (32, 64, 128),
        kernel_size: int = 5,
        heads: int = 2,
        layers: int = 2,
        feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.channels, self.steps, self.widths, self.kernel_size = channels, steps, list(widths), kernel_size
        self.heads, self.layers, self.feedforward, self.dropout = heads, layers, feedforward, dropout
        left = steps - len(widths) * (kernel_size - 3)
        if left < 1:
            raise ValueError(
                f"InertialTransformer(steps={steps}): {len(widths)} convolutions of kernel_size {kernel_size} leave no "
                "time step. Set a smaller kernel_size, or more steps."
            )
        sizes = [channels, *widths]
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(before, after, kernel_size, padding=1), nn.BatchNorm1d(after), nn.ReLU())
                for before, after in pairwise(sizes)
            )
        )
        layer = nn.TransformerEncoderLayer(sizes[-1], heads, feedforward, dropout, batch_first=True)
        self.attention = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.positions_dropout = nn.Dropout(dropout)
        self.register_buffer("positions", _sinusoids(left, sizes[-1]), persistent=False)
        self.num_features = left * sizes[-1]

    def forward(self, windows: Tensor) -> Tensor:
        windows = _sensor(windows, self.channels)
        if windows.shape[1] != self.steps:
            raise ValueError(
                f"InertialTransformer(steps={self.steps}) got windows of {windows.shape[1]} steps. Set its steps to "
                "those of the data, or data.init_args.steps to its own."
            )
        x = self.convolutions(windows.transpose(1, 2)).transpose(1, 2)  # (B, left, width)
        x = self.attention(self.positions_dropout(x + self.positions))
        return x.transpose(1, 2).flatten(1)


class SkeletonCooccurrence(Backbone):
    """Joints and their motion through convolutions that treat joints as channels, so that any two may meet.

    Args:
        joints: J.
        dims: D, 3 for positions in space, 2 for key points in a picture.
        widths: output channels of the six convolutions; the last is the number of features.

    Source:
        Co-occurrence network (HCN), Li et al., arXiv 1804.06055, as sized by CMC-CMKM, arXiv 2205.10071. Differs:
        padded, and pooled over what is left, so that any number of frames from 16 on will do.
    """

    def __init__(self, joints: int = 20, dims: int = 3, widths: Sequence[int] = (64, 32, 32, 64, 128, 256)) -> None:
        super().__init__()
        if len(widths) != 6 or widths[1] < 8:
            raise ValueError(
                f"SkeletonCooccurrence(widths={list(widths)}): wants six, one for each convolution, the second at "
                "least 8 (it is halved four times)."
            )
        self.joints, self.dims, self.widths = joints, dims, list(widths)
        self.positions, self.motions = (_joint_stream(joints, dims, widths) for _ in range(2))
        self.fused = nn.Sequential(_plane(widths[3], widths[4]), _plane(widths[4], widths[5]))
        self.num_features = widths[5]

    def forward(self, windows: Tensor) -> Tensor:
        if windows.ndim != 4 or windows.shape[2:] != (self.joints, self.dims):
            raise ValueError(
                f"SkeletonCooccurrence(joints={self.joints}, dims={self.dims}) wants windows (B, T, {self.joints}, "
                f"{self.dims}), got {tuple(windows.shape)}."
            )
        if windows.shape[1] < 16:
            raise ValueError(f"SkeletonCooccurrence wants 16 frames or more, got {windows.shape[1]}.")
        motion = torch.cat([torch.zeros_like(windows[:, :1]), windows.diff(dim=1)], dim=1)
        streams = [stream(x) for stream, x in ((self.positions, windows), (self.motions, motion))]
        return self.fused(torch.cat(streams, dim=2)).amax((2, 3))


class SignalEncoder(Encoder):
    """One backbone and one projection head for each modality; kinds are the names of modalities.

    Windows arrive in the sensor's own units: mean and scale of each channel, measured on training data, are part of the
    encoder and are saved with it. ``forward`` gives vectors for the loss, ``features`` what classifiers are trained on.

    Args:
        backbones: by modality: {"inertial": InertialConvolutions(6), "skeleton": SkeletonCooccurrence()}.
        dim: length of a vector.
        hidden: width of the projection's middle.

    Source:
        Projection: SimCLR, arXiv 2002.05709; sizes of CMC-CMKM, arXiv 2205.10071.
    """

    def __init__(self, backbones: dict[str, Backbone], dim: int = 128, hidden: int = 256) -> None:
        super().__init__()
        if not backbones:
            raise ValueError("SignalEncoder(backbones={}): wants a backbone for each modality.")
        self.hidden = hidden
        self._dim = dim
        self.backbones = nn.ModuleDict(backbones)
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(backbone.num_features, hidden),
                    nn.BatchNorm1d(hidden),
                    nn.ReLU(),
                    nn.Linear(hidden, dim),
                )
                for name, backbone in backbones.items()
            }
        )
        self.scales = nn.ModuleDict({name: _Scale() for name in backbones})

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of what it encodes."""
        return tuple(self.backbones)

    @property
    def dim(self) -> int:
        return self._dim

    def forward(self, inputs: Tensor, kind: str) -> Tensor:
        return self.project(self.standardise(inputs, kind), kind)

    def standardise(self, inputs: Tensor, kind: str) -> Tensor:
        """Windows in the sensor's units -> windows of mean 0 and scale 1, as float32."""
        self._known(kind)
        return self.scales[kind](inputs)

    def project(self, standard: Tensor, kind: str) -> Tensor:
        """Standardised windows -> (B, dim)."""
        if self.training and len(standard) == 1:
            raise ValueError(
                "SignalEncoder: a training batch of one window has no batch statistics. Set data.init_args.drop_last: "
                "true, another batch_size, or a chunk_size that leaves no single window over."
            )
        if not len(standard):
            return standard.new_zeros(0, self.dim)
        return self.heads[kind](self.backbones[kind](standard))

    def features(self, inputs: Tensor, kind: str) -> Tensor:
        """Windows in the sensor's units -> (B, F) of the backbone."""
        return self.backbones[kind](self.standardise(inputs, kind))

    def embed(self, inputs: Sequence[Any], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        return self._in_batches(self, inputs, kind, batch_size)

    def embed_features(self, inputs: Sequence[Any], kind: str, batch_size: int = 256) -> Tensor:
        """Features of all ``inputs`` (N, ...) -> (N, F) float32 on the CPU, in evaluation mode, without gradient."""
        return self._in_batches(self.features, inputs, kind, batch_size)

    def measure(self, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take mean and scale of each modality's channels from training data, unless they are known already."""
        for name in self.modalities:
            scale: _Scale = self.scales[name]  # type: ignore[assignment]
            if not bool(scale.known):
                scale.set(*statistics[name])

    def fingerprint(self, kind: str) -> str:
        digest = hashlib.sha256()
        parts = (self.backbones[kind], self.heads[kind], self.scales[kind])
        for number, part in enumerate(parts):
            hash_weights(digest, part, f"{number} ")
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and encoder.yaml; `from_pretrained` reads them."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: part.detach().cpu().contiguous() for name, part in self.state_dict().items()}, folder / WEIGHTS
        )
        settings = {
            "dim": self.dim,
            "hidden": self.hidden,
            "backbones": {
                name: {"class": type(backbone).__name__, "arguments": backbone.settings()}  # type: ignore[operator]
                for name, backbone in self.backbones.items()
            },
        }
        (folder / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False))
        (folder / "hardneg.yaml").write_text(
            "# rebuilds this encoder in a recipe: model.init_args.encoder\n"
            f"class_path: hardneg.encoders.load_signals\ninit_args:\n  folder: {folder.name}\n"
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbones: Sequence[type[Backbone]] = ()) -> SignalEncoder:
        """Read a folder that `save_pretrained` wrote. Nothing in it is run: classes are named, not imported.

        Args:
            folder: with model.safetensors and encoder.yaml.
            backbones: classes of your own that the folder names.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: a backbone whose class is not known.
        """
        from safetensors.torch import load_file

        folder = Path(folder).expanduser()
        for file in (SETTINGS, WEIGHTS):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"'{folder}' is no folder of a signal encoder: {file} is not in it.")
        with settings_of(folder / SETTINGS):
            settings = yaml.safe_load((folder / SETTINGS).read_text())
            known: dict[str, type[Backbone]] = {kind.__name__: kind for kind in (*BACKBONES, *backbones)}
            built = {}
            for name, part in settings["backbones"].items():
                if part["class"] not in known:
                    raise ValueError(
                        f"{folder / SETTINGS}: backbone '{part['class']}' of '{name}' is not known. Pass its class: "
                        f"SignalEncoder.from_pretrained(folder, backbones=[{part['class']}])."
                    )
                built[name] = known[part["class"]](**part["arguments"])
            encoder = cls(built, settings["dim"], settings["hidden"])
            encoder.load_state_dict(load_file(folder / WEIGHTS))
        return encoder

    def _in_batches(
        self, encode: Callable[[Tensor, str], Tensor], inputs: Sequence[Any], kind: str, batch_size: int
    ) -> Tensor:
        training, device = self.training, next(self.parameters()).device
        parts = []
        self.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(inputs), batch_size):
                    windows = torch.as_tensor(inputs[start : start + batch_size])
                    parts.append(encode(windows.to(device), kind).float().cpu())
        finally:
            self.train(training)
        return torch.cat(parts).clone() if parts else torch.empty(0, self.dim)

    def _known(self, kind: str) -> None:
        if kind not in self.backbones:
            raise ValueError(f"this SignalEncoder encodes {sorted(self.modalities)}, not '{kind}'.")


def load_signals(folder: str) -> SignalEncoder:
    """`SignalEncoder.from_pretrained`, as YAML can name it.

    Args:
        folder: with model.safetensors and encoder.yaml.
    """
    return SignalEncoder.from_pretrained(folder)


class _Scale(nn.Module):
    """(x - mean) / scale over the last dim; does nothing until it is set."""

    mean: Tensor
    scale: Tensor
    known: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("known", torch.tensor(False))

    def set(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.scale = mean.to(self.mean), scale.to(self.scale)
        self.known = torch.ones_like(self.known)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("mean", "scale"):  # a checkpoint's have as many channels as its data
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name], device=self.mean.device))
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, windows: Tensor) -> Tensor:
        return (windows.float() - self.mean) / self.scale


def _sensor(windows: Tensor, channels: int) -> Tensor:
    if windows.ndim != 3 or windows.shape[2] != channels:
        raise ValueError(
            f"a backbone of {channels} channels wants windows (B, T, {channels}), got {tuple(windows.shape)}. Set its "
            "channels to the number of columns of the sensor."
        )
    return windows


def _sinusoids(steps: int, width: int) -> Tensor:
    """(steps, width) positions; Vaswani et al., arXiv 1706.03762, section 3.5."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(steps)[:, None] * rates  # (steps, width / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


def _joint_stream(joints: int, dims: int, widths: Sequence[int]) -> nn.Module:
    return nn.Sequential(
        _Axes(0, 3, 1, 2),  # (B, D, T, J)
        nn.Conv2d(dims, widths[0], 1),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        nn.Conv2d(widths[0], widths[1], (3, 1), padding=(1, 0)),
        nn.BatchNorm2d(widths[1]),
        nn.ReLU(),
        _Axes(0, 3, 1, 2),  # (B, J, width, T): joints are the channels now
        _plane(joints, widths[2]),
        _plane(widths[2], widths[3]),
    )


def _plane(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))


class _Axes(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


BACKBONES: tuple[type[Backbone], ...] = (InertialConvolutions, InertialTransformer, SkeletonCooccurrence)
