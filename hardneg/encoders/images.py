"""Encoders of pictures: torchvision's networks, and the IR-ResNet of face recognition."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hardneg.encoders.base import Encoder, hash_weights
from hardneg.encoders.model_files import settings_of
from hardneg.encoders.signals import Backbone

WEIGHTS, SETTINGS = "model.safetensors", "encoder.json"
IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
"""Mean and scale of a channel's values in [0, 1], by number of channels; grey is the mean of the colours."""

Head = Literal["none", "linear", "mlp"]


class ImageBackbone(Backbone):
    """Turns pictures into features. Constructor arguments are plain values kept under their own names.

    Attributes:
        num_features: length F of a feature vector.
        channels: 3 = colour, 1 = grey.
        smallest: sides of a picture, in pixels, below which nothing is left of it.
    """

    channels: int
    smallest: int = 1

    @abstractmethod
    def forward(self, pictures: Tensor) -> Tensor:
        """(B, C, H, W) of mean 0 and scale 1 -> (B, F)."""


class TorchvisionBackbone(ImageBackbone):
    """A network of torchvision without its classifier.

    Args:
        name: as in ``torchvision.models.get_model``: "resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0",
            "convnext_tiny", "vit_b_16", ...
        weights: None = random; a file of torchvision's weights (.pth, or .safetensors); or the name of published ones,
            such as "ResNet18_Weights.IMAGENET1K_V1", which are downloaded. Nothing in a file is run.
        channels: 3 = colour, 1 = grey.
        small_stem: for ResNets on pictures of some 32 to 64 pixels: a first convolution of 3 x 3 that keeps the size,
            and no pooling behind it.

    Raises:
        ValueError: an unknown name, a small_stem of something that is no ResNet, weights of another network.
        FileNotFoundError: no such file of weights.
    """

    def __init__(
        self, name: str = "resnet18", weights: str | None = None, channels: int = 3, small_stem: bool = False
    ) -> None:
        super().__init__()
        from torchvision import models

        self.name, self.weights, self.channels, self.small_stem = name, weights, channels, small_stem
        _check_channels(self)
        if name not in models.list_models(models):
            raise ValueError(f"TorchvisionBackbone(name='{name}'): torchvision has {models.list_models(models)}.")
        network = models.get_model(name, weights=None)
        last = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
        self.num_features = int(network.get_submodule(last).in_features)
        network.set_submodule(last, nn.Identity())
        if small_stem:
            if not (hasattr(network, "conv1") and hasattr(network, "maxpool")):
                raise ValueError(f"TorchvisionBackbone(name='{name}', small_stem=True): only ResNets have such a stem.")
            network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
            network.maxpool = nn.Identity()
        if weights is not None:
            _load(network, _read_weights(weights), ignored=(last.split(".")[0] + ".",), of=weights)
        if channels == 1:
            _make_grey(network)
        self.network = network
        self.smallest = 1 if small_stem else 32

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"weights": None}  # they are in the encoder's own file

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(pictures).flatten(1)


class TimmBackbone(ImageBackbone):
    """A network of timm without its classifier.

    Args:
        name: as in ``timm.create_model``: "convnext_base", "swin_tiny_patch4_window7_224", ...
        weights: None = random; a file of that network's weights (.safetensors, or .pth), whose classifier is left out.
            Nothing in a file is run.
        channels: 3 = colour, 1 = grey.

    Raises:
        ImportError: timm is not installed.
        ValueError: an unknown name, weights of another network.
        FileNotFoundError: no such file of weights.
    """

    def __init__(self, name: str = "convnext_base", weights: str | None = None, channels: int = 3) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                "TimmBackbone needs timm, which is not installed. Run `pip install timm`, or use TorchvisionBackbone."
            ) from error
        self.name, self.weights, self.channels = name, weights, channels
        _check_channels(self)
        if not timm.is_model(name):
            near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=8))
            raise ValueError(f"TimmBackbone(name='{name}'): timm has no such network. Near it are: {near or 'none'}.")
        network: Any = timm.create_model(name, pretrained=False, num_classes=0)
        self.num_features, self.smallest = int(network.num_features), 32
        if weights is not None:
            _load(network, _read_weights(weights), ignored=("head.", "fc.", "classifier."), of=weights)
        if channels == 1:
            _make_grey(network)
        self.network = network

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"weights": None}

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network(pictures).flatten(1)


class IRResNet(ImageBackbone):
    """The improved residual network of face recognition: batch norm before convolutions, PReLU, no pooling.

    A face that is aligned has its eyes in one place, so that the last map is not averaged: it is the features, and
    pictures of another size are refused.

    Args:
        layers: 18, 34, 50 or 100.
        size: sides of a picture in pixels; 112 for aligned faces.
        channels: 3 = colour, 1 = grey.
        width: channels of the first stage; 64 as published, less for little data or no GPU.
        dropout: of the last map, in [0, 1).
        weights: a file of weights as insightface names them (.pth or .safetensors); None = random.

    Raises:
        ValueError: an unknown number of layers, a size below 16, weights of another network.

    Source:
        ArcFace, arXiv 1801.07698, section 3.1 (embedding setting "E"), and insightface's ``iresnet.py``.
    """

    STAGES: Mapping[int, Sequence[int]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}

    def __init__(
        self,
        layers: int = 50,
        size: int = 112,
        channels: int = 3,
        width: int = 64,
        dropout: float = 0.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.size, self.channels, self.width = layers, size, channels, width
        self.dropout, self.weights = dropout, weights
        _check_channels(self)
        if layers not in self.STAGES:
            raise ValueError(f"IRResNet(layers={layers}): wants one of {sorted(self.STAGES)}.")
        if size < 16:
            raise ValueError(f"IRResNet(size={size}): wants 16 pixels at least; four stages halve it.")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(width), nn.PReLU(width)
        before, side = width, size
        for stage, number in enumerate(self.STAGES[layers]):
            after, side = width << stage, -(-side // 2)
            blocks = [_Residual(before, after, 2), *(_Residual(after, after, 1) for _ in range(number - 1))]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            before = after
        self.bn2 = nn.BatchNorm2d(before)
        self.drop = nn.Dropout(dropout)
        self.num_features = before * side * side
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)
        if weights is not None:
            _load(self, _read_weights(weights), ignored=("fc.", "features."), of=weights)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"weights": None}

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.shape[2:] != (self.size, self.size):
            raise ValueError(
                f"IRResNet(size={self.size}) got pictures of {pictures.shape[2]} x {pictures.shape[3]} pixels. Set "
                "data.init_args.size to its own."
            )
        x = self.prelu(self.bn1(self.conv1(pictures)))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.drop(self.bn2(x)).flatten(1)


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(after), nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x)))))
        return self.bn3(y) + self.downsample(x)


class ImageEncoder(Encoder):
    """A backbone and a head. Pictures are (B, C, H, W) uint8, or floats in [0, 1].

    ``forward`` gives vectors for the loss, ``features`` what the backbone sees, for classifiers and neighbours.

    Args:
        backbone: `TorchvisionBackbone`, `IRResNet` or your own.
        dim: length of a vector; with head "none" it is the backbone's.
        head: "linear": one layer and batch norm, as faces want it; "mlp": two layers with ReLU between, the projection
            of MoCo and SimCLR; "none": the backbone's features.
        hidden: width of the middle of "mlp"; None = the backbone's features.
        mean, scale: of a channel's values in [0, 1]; None = ImageNet's.

    Raises:
        ValueError: an unknown head, as many means or scales as there are not channels.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        backbone: ImageBackbone,
        dim: int = 512,
        head: Head = "linear",
        hidden: int | None = None,
        mean: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if head not in ("none", "linear", "mlp"):
            raise ValueError(f"ImageEncoder(head='{head}'): wants 'none', 'linear' or 'mlp'.")
        self.head_kind, self.hidden = head, hidden
        self._dim = backbone.num_features if head == "none" else dim
        self.backbone = backbone
        self.head = _head(head, backbone.num_features, dim, hidden)
        for name, values, usual in zip(("mean", "scale"), (mean, scale), IMAGENET[backbone.channels], strict=True):
            values = usual if values is None else tuple(values)
            if len(values) != backbone.channels:
                raise ValueError(f"ImageEncoder({name}={list(values)}): the backbone has {backbone.channels} channels.")
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def channels(self) -> int:
        """3 = colour, 1 = grey."""
        return self.backbone.channels

    def forward(self, inputs: Any, kind: str = "image") -> Tensor:
        if self.training and len(inputs) == 1 and self.head_kind == "linear":
            raise ValueError(
                "ImageEncoder: a training batch of one picture has no batch statistics. Set data.init_args.drop_last: "
                "true, another batch_size, or a chunk_size that leaves no single picture over."
            )
        features = self.features(inputs, kind)
        return self.head(features) if len(features) else features.new_zeros(0, self.dim)

    def features(self, inputs: Any, kind: str = "image") -> Tensor:
        """Pictures -> (B, F) of the backbone."""
        pictures = self.standardise(inputs)
        if not len(pictures):
            return pictures.new_zeros(0, self.backbone.num_features)
        return self.backbone(pictures)

    def standardise(self, inputs: Any) -> Tensor:
        """Pictures -> (B, C, H, W) floats of mean 0 and scale 1.

        Raises:
            ValueError: another number of channels, or pictures too small for the backbone.
        """
        pictures = _as_pictures(inputs)
        if pictures.ndim != 4 or pictures.shape[1] != self.channels:
            raise ValueError(
                f"ImageEncoder wants pictures (B, {self.channels}, H, W), got {tuple(pictures.shape)}. Set the "
                "channels of the backbone and of the data alike."
            )
        if min(pictures.shape[2:]) < self.backbone.smallest:
            raise ValueError(
                f"{type(self.backbone).__name__} wants pictures of {self.backbone.smallest} pixels at least, got "
                f"{tuple(pictures.shape[2:])}. Set data.init_args.size higher, or the backbone's small_stem."
            )
        if pictures.dtype == torch.uint8:
            pictures = pictures.to(self.mean.dtype) / 255
        return (pictures - self.mean) / self.scale

    def embed(self, inputs: Sequence[Any], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        return self._in_batches(self, inputs, kind, batch_size, progress, self.dim)

    def embed_features(
        self, inputs: Sequence[Any], kind: str, batch_size: int = 64, progress: str | None = None
    ) -> Tensor:
        """Features of all ``inputs`` -> (N, F) float32 on the CPU, in evaluation mode, without gradient."""
        return self._in_batches(self.features, inputs, kind, batch_size, progress, self.backbone.num_features)

    def fingerprint(self, kind: str) -> str:
        digest = hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode())
        hash_weights(digest, self)
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and encoder.json; `from_pretrained` reads them."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: part.detach().cpu().contiguous() for name, part in self.state_dict().items()}, folder / WEIGHTS
        )
        (folder / SETTINGS).write_text(json.dumps(self._settings(), indent=1) + "\n")
        (folder / "hardneg.yaml").write_text(
            "# rebuilds this encoder in a recipe: model.init_args.encoder\n"
            f"class_path: hardneg.encoders.load_images\ninit_args:\n  folder: {folder.name}\n"
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, backbones: Sequence[type[ImageBackbone]] = ()) -> ImageEncoder:
        """Read a folder that `save_pretrained` wrote. Nothing in it is run: classes are named, not imported.

        Args:
            folder: with model.safetensors and encoder.json.
            backbones: classes of your own that the folder names.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: a backbone whose class is not known or that reads another file, or weights of another network.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in (WEIGHTS, SETTINGS):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder} is no image encoder: {name} is not in it.")
        with settings_of(folder / SETTINGS):
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            known = {each.__name__: each for each in (*BACKBONES, *backbones)}
            name = settings["backbone"]["class"]
            if name not in known:
                raise ValueError(
                    f"{folder} has a backbone of class '{name}'; known are {sorted(known)}. Hand over your own: "
                    "ImageEncoder.from_pretrained(folder, backbones=[YourBackbone])."
                )
            arguments = settings["backbone"]["arguments"]
            if arguments.get("weights") is not None:  # a path, or a name to download
                raise ValueError(
                    f"{folder / SETTINGS}: 'weights' of the backbone must be null, got {arguments['weights']!r:.80}; "
                    f"the folder's weights are in {WEIGHTS}."
                )
            backbone = known[name](**arguments)
            encoder = cls(backbone, settings["dim"], settings["head"], settings["hidden"])
            _load(encoder, load_file(folder / WEIGHTS), of=str(folder))
        return encoder

    def _settings(self) -> dict[str, Any]:
        backbone = {"class": type(self.backbone).__name__, "arguments": self.backbone.settings()}
        return {"dim": self.dim, "head": self.head_kind, "hidden": self.hidden, "backbone": backbone}

    def _in_batches(
        self,
        encode: Callable[[Tensor, str], Tensor],
        inputs: Sequence[Any],
        kind: str,
        batch_size: int,
        progress: str | None,
        width: int,
    ) -> Tensor:
        from tqdm.auto import tqdm

        training, device = self.training, self.mean.device
        out = torch.empty(len(inputs), width)
        self.eval()
        try:
            with torch.inference_mode(), tqdm(total=len(inputs), desc=progress, disable=progress is None) as bar:
                for start in range(0, len(inputs), batch_size):
                    pictures = _as_pictures(inputs[start : start + batch_size]).to(device)
                    out[start : start + len(pictures)] = encode(pictures, kind).float().cpu()
                    bar.update(len(pictures))
        finally:
            self.train(training)
        return out


def load_images(folder: str) -> ImageEncoder:
    """`ImageEncoder.from_pretrained`, as YAML can name it.

    Args:
        folder: with model.safetensors and encoder.json.
    """
    return ImageEncoder.from_pretrained(folder)


def _head(kind: Head, features: int, dim: int, hidden: int | None) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        norm = nn.BatchNorm1d(dim)
        norm.weight.requires_grad_(False)  # as insightface: the length of a vector is the backbone's to say
        return nn.Sequential(nn.Linear(features, dim), norm)
    hidden = hidden or features
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def _as_pictures(inputs: Any) -> Tensor:
    if isinstance(inputs, list | tuple):
        if not inputs:
            raise ValueError("no pictures to encode: got an empty list, which says nothing of their shape.")
        return torch.stack([torch.as_tensor(each) for each in inputs])
    # a memory-mapped array cannot be written to, which torch wants of what it shares
    return torch.from_numpy(np.array(inputs)) if isinstance(inputs, np.ndarray) else inputs


def _check_channels(backbone: ImageBackbone) -> None:
    if backbone.channels not in IMAGENET:
        raise ValueError(f"{type(backbone).__name__}(channels={backbone.channels}): wants 3 (colour) or 1 (grey).")


def _make_grey(network: nn.Module) -> None:
    """Let the first convolution read one channel: what it saw in three equal ones."""
    place, first = next((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d))
    grey = copy.deepcopy(first)
    grey.in_channels, grey.weight = 1, nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    network.set_submodule(place, grey)


def _read_weights(weights: str) -> Mapping[str, Tensor]:
    """A state dict from a file, or of torchvision's published weights; nothing in it is run."""
    path = Path(weights).expanduser()
    if path.suffix == ".safetensors" and path.exists():
        from safetensors.torch import load_file

        return load_file(path)
    if path.exists():
        return torch.load(path, map_location="cpu", weights_only=True)
    if path.suffix in (".pth", ".pt", ".safetensors"):
        raise FileNotFoundError(f"{path}: no such file of weights.")
    from torchvision.models import get_weight

    return torch.hub.load_state_dict_from_url(
        get_weight(weights).url, map_location="cpu", check_hash=True, weights_only=True
    )


def _load(module: nn.Module, state: Mapping[str, Tensor], of: str, ignored: tuple[str, ...] = ()) -> None:
    """Take over weights by name; those of parts that are not there may be ``ignored``, and nothing else.

    Raises:
        ValueError: names or shapes that differ, the first of them named.
    """
    wanted = module.state_dict()
    state = {name: tensor for name, tensor in state.items() if name in wanted or not name.startswith(ignored or "\0")}
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # old files do not have them
    if missing := sorted(set(wanted) - set(state) - counters):
        raise ValueError(f"{of}: holds no weights '{missing[0]}' ({len(missing)} are missing): another network's?")
    if unknown := sorted(set(state) - set(wanted)):
        raise ValueError(f"{of}: holds weights '{unknown[0]}' that this network does not have ({len(unknown)} such).")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{of}: weights '{name}' are {tuple(tensor.shape)}, and this network wants {tuple(wanted[name].shape)}."
            )
    module.load_state_dict(state, strict=False)


BACKBONES: tuple[type[ImageBackbone], ...] = (IRResNet, TimmBackbone, TorchvisionBackbone)
