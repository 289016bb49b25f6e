"""CLIP-type models of pictures and texts, through transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hardneg.encoders.base import Encoder, hash_weights
from hardneg.encoders.model_files import check_model
from hardneg.encoders.text import freeze_unused


class CLIPEncoder(Encoder):
    """A model with a tower for pictures and one for texts whose vectors lie in one space (CLIP, SigLIP, ...).

    Pictures are (B, 3, H, W) uint8 or floats in [0, 1], of the model's own size: the data module makes them so. Means
    and scales are the model's own. Vectors are not normalised.

    Args:
        model: name on the model hub ("openai/clip-vit-base-patch32") or a local folder, read as safetensors.
        evaluation_mode: keep the model in evaluation mode while it is trained, as CLIP4Cir does: no dropout, and batch
            statistics stay as they are.
        max_tokens: after which a text is cut; null = what the model can take (CLIP: 77).

    Raises:
        FileNotFoundError: a local path that is no model folder.
        ValueError: a model without features of pictures and texts, or whose files name code; pictures of another size.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, model: str, evaluation_mode: bool = True, max_tokens: int | None = None) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        place = Path(model).expanduser()
        local = model.startswith((".", "/", "~")) or model.count("/") > 1 or place.exists()
        if local and not (place / "config.json").exists():
            raise FileNotFoundError(f"'{model}' is no model folder: config.json is not in it.")
        name = str(place) if local else model
        check_model(name)
        self.model, self.evaluation_mode = model, evaluation_mode
        self.network: Any = AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        if not (hasattr(self.network, "get_image_features") and hasattr(self.network, "get_text_features")):
            raise ValueError(
                f"CLIPEncoder(model='{model}'): {type(self.network).__name__} has no features of pictures and texts. "
                "Wanted: a model of the kind of CLIP or SigLIP."
            )
        self.tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        self.max_tokens = max_tokens or int(self.network.config.text_config.max_position_embeddings)
        mean, scale = _standard(name)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale).view(-1, 1, 1), persistent=False)
        vectors = torch.cat([self._images(torch.zeros(1, 3, self.size, self.size)), self._texts(["a"])])
        freeze_unused(self.network, vectors)
        self._dim = int(vectors.shape[1])
        self.train()

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def channels(self) -> int:
        """3 = colour."""
        return 3

    @property
    def size(self) -> int:
        """Sides of a picture in pixels."""
        return int(self.network.config.vision_config.image_size)

    def train(self, mode: bool = True) -> CLIPEncoder:
        super().train(mode)
        if self.evaluation_mode:
            self.network.eval()
        return self

    def forward(self, inputs: Any, kind: str) -> Tensor:
        if not len(inputs):
            return torch.zeros(0, self.dim, device=self.mean.device)
        return self._images(inputs) if kind == "image" else self._texts(list(inputs))

    def embed(self, inputs: Sequence[Any], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        from tqdm.auto import tqdm

        training, out = self.training, torch.empty(len(inputs), self.dim)
        self.eval()
        try:
            with torch.inference_mode(), tqdm(total=len(inputs), desc=progress, disable=progress is None) as bar:
                for start in range(0, len(inputs), batch_size):
                    part = inputs[start : start + batch_size]
                    part = part.to(self.mean.device) if isinstance(part, Tensor) else part
                    out[start : start + batch_size] = self(part, kind).float().cpu()
                    bar.update(len(part))
        finally:
            self.train(training)
        return out

    def fingerprint(self, kind: str) -> str:
        digest = hashlib.sha256(f"{self.mean.tolist()} {self.scale.tolist()}".encode())
        if kind == "image":  # stays what it is while texts are trained
            for name, module in self._vision():
                hash_weights(digest, module, f"{name}.")
        else:
            digest.update(f"{self.max_tokens}".encode())
            hash_weights(digest, self.network)
        return digest.hexdigest()

    def freeze_images(self) -> None:
        """Take the gradient from the pictures' tower."""
        for _, module in self._vision():
            module.requires_grad_(False)

    def settings(self) -> dict[str, Any]:
        """Constructor arguments, beside the folder, that make this again."""
        return {"evaluation_mode": self.evaluation_mode, "max_tokens": self.max_tokens}

    def save_pretrained(self, folder: str | Path) -> None:
        self.network.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))
        record = {"image_mean": self.mean.flatten().tolist(), "image_std": self.scale.flatten().tolist()}
        (Path(folder) / PREPROCESSOR).write_text(json.dumps(record, indent=1) + "\n")

    def _vision(self) -> list[tuple[str, nn.Module]]:
        """The parts of the network that a picture's vector depends on, by name."""
        return [part for part in self.network.named_children() if part[0].startswith(("vision", "visual"))]

    def _images(self, pictures: Tensor) -> Tensor:
        if pictures.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"CLIPEncoder('{self.model}') wants pictures (B, 3, {self.size}, {self.size}), got "
                f"{tuple(pictures.shape)}. Set data.init_args.size: {self.size}."
            )
        if pictures.dtype == torch.uint8:
            pictures = pictures.to(self.mean.dtype) / 255
        return _vectors(self.network.get_image_features(pixel_values=(pictures - self.mean) / self.scale))

    def _texts(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts,
            padding="max_length" if self._pads else True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        tokens = {name: tokens[name].to(self.mean.device) for name in ("input_ids", "attention_mask") if name in tokens}
        return _vectors(self.network.get_text_features(**tokens))

    @property
    def _pads(self) -> bool:
        """SigLIP was trained with texts padded to their full length."""
        return "siglip" in str(self.network.config.model_type)


PREPROCESSOR = "preprocessor_config.json"


def _standard(name: str) -> tuple[list[float], list[float]]:
    """Mean and scale of a channel's values in [0, 1], as the model's folder says."""
    from transformers import AutoImageProcessor

    if not (Path(name) / PREPROCESSOR).exists():
        settings: Any = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        return list(settings.image_mean), list(settings.image_std)
    record = json.loads((Path(name) / PREPROCESSOR).read_text(encoding="utf-8"))
    return list(record["image_mean"]), list(record["image_std"])


def _vectors(found: Any) -> Tensor:
    """(B, d); transformers gives a tensor before version 5, and an output around it since."""
    return found if isinstance(found, Tensor) else found.pooler_output
