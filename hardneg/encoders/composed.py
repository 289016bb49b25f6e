"""A picture and a text as one query: encoders of both, and the combiners between them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hardneg.encoders.base import Encoder, hash_weights
from hardneg.encoders.clip import CLIPEncoder
from hardneg.encoders.images import load_images
from hardneg.encoders.model_files import settings_of
from hardneg.encoders.text import TextEncoder

WEIGHTS, SETTINGS = "combiner.safetensors", "composed.json"


class Combiner(nn.Module, ABC):
    """Turns features of reference pictures and of texts into queries, in the space of pictures.

    Constructor arguments are plain values kept under their own names.
    """

    @abstractmethod
    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """(B, d) and (B, t), neither normalised -> (B, d)."""

    def check(self, image_dim: int, text_dim: int) -> None:
        """Refuse encoders of widths that this combiner cannot join.

        Raises:
            ValueError: says which widths there are and which are wanted.
        """

    def settings(self) -> dict[str, Any]:
        """Constructor arguments that make this again."""
        return {}


class SumCombiner(Combiner):
    """The element-wise sum of both features as they are; has no weights.

    Normalising either before the sum is another method: the lengths say how much picture and text count.

    Source:
        Baldrati et al. (CLIP4Cir), the first stage.
    """

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return image + text

    def check(self, image_dim: int, text_dim: int) -> None:
        if image_dim != text_dim:
            raise ValueError(
                f"SumCombiner adds vectors of one width; pictures have {image_dim} numbers, texts {text_dim}. Set the "
                "image encoder's dim to the text encoder's, or take TIRGGate."
            )


class TIRGGate(Combiner):
    """``a0 * sigmoid(gate(image, text)) * image + a1 * residual(image, text)``: the text changes a picture a little.

    Args:
        image_dim, text_dim: widths of the features.
        gate_weight, residual_weight: where a0 and a1 start; both are learned.

    Source:
        TIRG, Vo et al., arXiv 1812.07119, equations 1 to 3, and its code (where they start at 1 and 10). Differs:
        widths may differ; the residual starts at 1 unless told otherwise, since features here are not of length 1.
    """

    def __init__(self, image_dim: int, text_dim: int, gate_weight: float = 1.0, residual_weight: float = 1.0) -> None:
        super().__init__()
        self.image_dim, self.text_dim = image_dim, text_dim
        self.gate_weight, self.residual_weight = gate_weight, residual_weight
        both = image_dim + text_dim
        self.weights = nn.Parameter(torch.tensor([gate_weight, residual_weight]))
        self.gate = nn.Sequential(nn.BatchNorm1d(both), nn.ReLU(), nn.Linear(both, image_dim))
        self.residual = nn.Sequential(
            nn.BatchNorm1d(both), nn.ReLU(), nn.Linear(both, both), nn.ReLU(), nn.Linear(both, image_dim)
        )

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        both = torch.cat([image, text], dim=1)  # (B, d + t)
        return self.weights[0] * self.gate(both).sigmoid() * image + self.weights[1] * self.residual(both)

    def check(self, image_dim: int, text_dim: int) -> None:
        _check_widths(self, (self.image_dim, self.text_dim), (image_dim, text_dim))

    def settings(self) -> dict[str, Any]:
        names = ("image_dim", "text_dim", "gate_weight", "residual_weight")
        return {name: getattr(self, name) for name in names}


class CLIP4CirCombiner(Combiner):
    """A learned output beside a convex combination of text and picture, whose share is learned too.

    ``output(h) + s * text + (1 - s) * image`` with h and s from both projected features.

    Args:
        dim: width of both features.
        projection_dim: of each feature before they are joined; 4 x dim as published.
        hidden_dim: of the joined layer; 8 x dim as published.
        dropout: after each hidden layer, in [0, 1).

    Source:
        Baldrati et al., "Conditioned and composed image retrieval combining and partially fine-tuning CLIP-based
        features", CVPRW 2022, figure 3, and its code.
    """

    def __init__(
        self, dim: int, projection_dim: int | None = None, hidden_dim: int | None = None, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"CLIP4CirCombiner(dropout={dropout}): a share, so 0 <= dropout < 1.")
        self.dim, self.dropout = dim, dropout
        self.projection_dim, self.hidden_dim = projection_dim or 4 * dim, hidden_dim or 8 * dim
        self.of_text = nn.Sequential(nn.Linear(dim, self.projection_dim), nn.ReLU(), nn.Dropout(dropout))
        self.of_image = nn.Sequential(nn.Linear(dim, self.projection_dim), nn.ReLU(), nn.Dropout(dropout))
        both = 2 * self.projection_dim
        self.joined = nn.Sequential(nn.Linear(both, self.hidden_dim), nn.ReLU(), nn.Dropout(dropout))
        self.output = nn.Linear(self.hidden_dim, dim)
        self.share = nn.Sequential(
            nn.Linear(both, self.hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(self.hidden_dim, 1),
            nn.Sigmoid(),
        )

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        both = torch.cat([self.of_text(text), self.of_image(image)], dim=1)
        share = self.share(both)  # (B, 1)
        return self.output(self.joined(both)) + share * text + (1 - share) * image

    def check(self, image_dim: int, text_dim: int) -> None:
        _check_widths(self, (self.dim, self.dim), (image_dim, text_dim))

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("dim", "projection_dim", "hidden_dim", "dropout")}


class ComposedEncoder(Encoder):
    """Pictures, and pictures changed by a text, in one space.

    Args:
        images: encodes kind "image".
        texts: encodes kind "query"; null = ``images`` does, as CLIP-type models do.
        combiner: makes the query; null = `SumCombiner`.

    Raises:
        ValueError: widths that the combiner cannot join.
    """

    def __init__(self, images: Encoder, texts: Encoder | None = None, combiner: Combiner | None = None) -> None:
        super().__init__()
        self.images = images
        self.own_texts = texts
        self.combiner = SumCombiner() if combiner is None else combiner
        self.combiner.check(images.dim, self.texts.dim)

    @property
    def texts(self) -> Encoder:
        """Who encodes texts."""
        return self.images if self.own_texts is None else self.own_texts

    @property
    def dim(self) -> int:
        return self.images.dim

    def forward(self, inputs: Any, kind: str) -> Tensor:
        """Pictures (kind "image"), or ``{"reference": pictures or features (B, d), "text": B texts}`` ("query")."""
        if kind == "image":
            return self.images(inputs, "image")
        reference = inputs["reference"]
        features = reference if reference.ndim == 2 else self.images(reference, "image")
        return self.compose(features, inputs["text"])

    def compose(self, features: Tensor, texts: Sequence[str]) -> Tensor:
        """(B, d) queries of reference features (B, d) and B texts."""
        if not len(texts):
            return features
        return self.combiner(features, self.texts(list(texts), "query").to(features.dtype))

    def embed(self, inputs: Sequence[Any], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        if kind != "image":
            raise ValueError("ComposedEncoder embeds pictures; queries are composed of their features: compose().")
        return self.images.embed(inputs, "image", batch_size, progress)

    def fingerprint(self, kind: str) -> str:
        if kind != "query":
            return self.images.fingerprint("image")
        digest = hashlib.sha256(self.images.fingerprint("image").encode())
        digest.update(self.texts.fingerprint("query").encode())
        hash_weights(digest, self.combiner)
        return digest.hexdigest()

    def freeze_images(self) -> None:
        """Take the gradient from everything that a picture's vector depends on."""
        if self.own_texts is None:
            self.images.freeze_images()  # type: ignore[operator]  # one model: its pictures' half
        else:
            self.images.requires_grad_(False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write images/, texts/ where they are another model, and the combiner; `load_composed` reads them."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"images": self.images} | ({} if self.own_texts is None else {"texts": self.own_texts})
        for name, part in parts.items():
            part.save_pretrained(folder / name)
        save_file(
            {name: part.detach().cpu().contiguous() for name, part in self.combiner.state_dict().items()},
            folder / WEIGHTS,
        )
        combiner = {"class": type(self.combiner).__name__, "arguments": self.combiner.settings()}
        kinds = {name: LOADERS.get(type(part).__name__) for name, part in parts.items()}
        options = {name: part.settings() for name, part in parts.items() if isinstance(part, CLIPEncoder)}
        record = {"parts": kinds, "options": options, "combiner": combiner}
        (folder / SETTINGS).write_text(json.dumps(record, indent=1) + "\n")
        (folder / "hardneg.yaml").write_text(
            "# rebuilds this encoder in a recipe: model.init_args.encoder\n"
            f"class_path: hardneg.encoders.load_composed\ninit_args:\n  folder: {folder.name}\n"
        )


def load_composed(folder: str, dropout: float | None = None) -> ComposedEncoder:
    """Read a folder that `ComposedEncoder.save_pretrained` wrote. Nothing in it is run: classes are named.

    Args:
        folder: with composed.json.
        dropout: of the text model while training, as `TextEncoder` takes it; null keeps the model's own.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: parts of unknown kinds.
    """
    from safetensors.torch import load_file

    place = Path(folder)
    if not (place / SETTINGS).exists():
        raise FileNotFoundError(f"{place} is no composed encoder: {SETTINGS} is not in it.")
    with settings_of(place / SETTINGS):
        settings = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
        if unknown := sorted(settings["parts"].keys() - {"images", "texts"}):  # a part is a folder of this one
            raise ValueError(f"{place / SETTINGS}: a part must be 'images' or 'texts', got {unknown[0]!r}.")
        parts: dict[str, Encoder] = {}
        for name, loader in settings["parts"].items():
            if loader not in READERS:
                raise ValueError(
                    f"{place / SETTINGS}: what reads {name}, '{loader}', is none of {sorted(READERS)}. Build the "
                    "encoder in code and load its weights."
                )
            options = {"dropout": dropout} if loader == "TextEncoder" else settings.get("options", {}).get(name, {})
            if unknown := sorted(options.keys() - OPTIONS[loader]):
                raise ValueError(
                    f"{place / SETTINGS}: options of {name} must be among {sorted(OPTIONS[loader])}, got "
                    f"{unknown[0]!r}."
                )
            if not (place / name).is_dir():  # else it would be taken for a name on the model hub
                raise FileNotFoundError(f"{place / name} does not exist; {SETTINGS} names it as a part.")
            parts[name] = READERS[loader](str(place / name), **options)
        kind = {each.__name__: each for each in COMBINERS}.get(settings["combiner"]["class"])
        if kind is None:
            raise ValueError(
                f"{place / SETTINGS}: a combiner of class '{settings['combiner']['class']}'; known are "
                f"{[each.__name__ for each in COMBINERS]}. Build the encoder in code and load its weights."
            )
        combiner = kind(**settings["combiner"]["arguments"])
        combiner.load_state_dict(load_file(place / WEIGHTS))
        return ComposedEncoder(parts["images"], parts.get("texts"), combiner)


def _check_widths(combiner: Combiner, wanted: tuple[int, int], given: tuple[int, int]) -> None:
    if wanted != given:
        raise ValueError(
            f"{type(combiner).__name__} is made for pictures of {wanted[0]} and texts of {wanted[1]} numbers; the "
            f"encoders give {given[0]} and {given[1]}. Set its widths to theirs."
        )


COMBINERS: tuple[type[Combiner], ...] = (SumCombiner, TIRGGate, CLIP4CirCombiner)
LOADERS: Mapping[str, str] = {
    "ImageEncoder": "load_images",
    "TextEncoder": "TextEncoder",
    "CLIPEncoder": "CLIPEncoder",
}
"""How each kind of part is read again: a key of `READERS`."""
READERS: Mapping[str, Callable[..., Encoder]] = {
    "load_images": load_images,
    "TextEncoder": TextEncoder,
    "CLIPEncoder": CLIPEncoder,
}
"""What composed.json may name: nothing else is looked up, and nothing is imported."""
OPTIONS: Mapping[str, frozenset[str]] = {
    "load_images": frozenset(),
    "TextEncoder": frozenset({"dropout"}),
    "CLIPEncoder": frozenset({"evaluation_mode", "max_tokens"}),
}
"""Arguments of each that composed.json may give."""
