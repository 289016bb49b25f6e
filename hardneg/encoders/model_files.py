"""Check the files of a model before sentence-transformers and transformers follow them: they must name no code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from torch import dtype, nn

from datamodules.readers import inside

PASSED_ON = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
"""Mappings in a module's settings whose entries become arguments of ``from_pretrained``."""
ALLOWED = frozenset(
    {
        "add_pooling_layer",
        "add_prefix_space",
        "attn_implementation",
        "dtype",
        "do_lower_case",
        "max_length",
        "model_max_length",
        "num_labels",
        "padding_side",
        "torch_dtype",
        "trust_remote_code",  # sentence-transformers puts the caller's in its place
        "truncation_side",
        "unpad_inputs",
        "use_memory_efficient_attention",
    }
)
"""What may be in them. ``weights_only: false``, for one, would unpickle the weights."""
IMPLEMENTATION = "_implementation"  # of attention: a word, or a repository of compiled kernels
_ADVICE = "It could run code that is not the library's; take it out of the file if you trust the model's author."
NO_SETTINGS = frozenset({"tokenizer.json", "vocab.json"})
"""Large files that no library takes settings from."""


def check_model(model: str, seen: frozenset[str] = frozenset()) -> None:
    """Refuse a model whose files would choose what a library imports, calls or unpickles.

    A library that is told not to trust a model's code still follows some of its settings. Checked in every JSON file:

    - classes of sentence-transformers must be its modules or tokenizers, and activations layers of torch;
    - a module's ``type`` must be of sentence-transformers; its ``path`` and files of weights must be in the folder;
    - arguments that are passed on to ``from_pretrained`` must be among `ALLOWED`;
    - an attention implementation must be a word of transformers, not a repository of kernels;
    - an adapter must import nothing, and the model that it adapts is checked likewise.

    Args:
        model: a local folder; or a name on the model hub, whose JSON files are downloaded as the library will do.
        seen: models whose adapters led here.

    Raises:
        ValueError: file and entry.
        OSError: a name whose files can neither be downloaded nor found in the cache.
    """
    folder = Path(model) if Path(model).is_dir() else _downloaded(model)
    for file in _settings(folder):
        try:
            content = json.loads(file.read_bytes())
            _check(file, content)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
            raise ValueError(f"{file}: is no JSON that can be read ({error}).") from None
        if file.name == "modules.json":
            _check_modules(file, content)
        if file.name == "adapter_config.json" and (base := _base(file, content)) not in seen | {"", model}:
            check_model(base, seen | {model})


@contextmanager
def settings_of(file: Path) -> Iterator[None]:
    """Name the file of settings in any error that reading it raises.

    Raises:
        ValueError: an entry that is missing, or of another type.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, yaml.YAMLError, SafetensorError) as error:
        what = f"no entry {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error!s:.200}"
        raise ValueError(f"{file} is not as save_pretrained writes it ({what}). Save the encoder again.") from error


def _downloaded(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        place = snapshot_download(model, allow_patterns=["*.json"], cache_dir=os.getenv("SENTENCE_TRANSFORMERS_HOME"))
    except Exception as error:  # no such name, no network, nothing in the cache: as many kinds as there are causes
        raise OSError(
            f"model '{model}': is no folder here, and its settings could not be downloaded ({error}). Check the name."
        ) from error
    return Path(place)


def _settings(folder: Path) -> Iterator[Path]:
    """Every JSON file below a folder; links are followed, each folder once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in sorted(files) if name.endswith(".json") and name not in NO_SETTINGS)


def _check_modules(file: Path, content: Any) -> None:
    if not isinstance(content, list) or not all(isinstance(module, Mapping) for module in content):
        raise ValueError(f"{file}: must be a list of modules.")
    for module in content:
        kind, path = module.get("type"), module.get("path", "")
        if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            raise ValueError(
                f"{file}: the type of a module must be of sentence_transformers, got {kind!r:.80}. {_ADVICE}"
            )
        if not isinstance(path, str):
            raise ValueError(f"{file}: the path of a module must be in its folder, got {path!r:.80}.")
        inside(path, file.parent, file)


def _base(file: Path, content: Any) -> str:
    """The model that an adapter (of peft) was made for; what the adapter itself would have imported is refused."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: must be a mapping of settings.")
    mapping, base = content.get("auto_mapping") or {}, content.get("base_model_name_or_path") or ""
    library = mapping.get("parent_library") or "transformers" if isinstance(mapping, Mapping) else mapping
    if str(library).split(".")[0] not in ("transformers", "sentence_transformers"):
        raise ValueError(f"{file}: 'auto_mapping' must not name {library!r:.80}. {_ADVICE}")
    if content.get("megatron_config") is not None or content.get("megatron_core") not in (None, "megatron.core"):
        raise ValueError(f"{file}: 'megatron_config' must not be set. {_ADVICE}")
    if not isinstance(base, str):
        raise ValueError(f"{file}: 'base_model_name_or_path' must be a text, got {base!r:.80}.")
    return base


def _check(file: Path, content: Any, key: str = "") -> None:
    """Walk through everything in a file; ``key`` is what ``content`` was found under."""
    if isinstance(content, Mapping):
        if key in PASSED_ON and (unknown := sorted(content.keys() - ALLOWED)):
            raise ValueError(f"{file}: '{key}' must not set '{unknown[0]}'. {_ADVICE}")
        if key in ("types", "weight_map"):  # by names of folders; to names of files of weights
            for name in content if key == "types" else content.values():
                inside(str(name), file.parent, file)
        for name, value in content.items():
            _check(file, value, key if key.endswith(IMPLEMENTATION) else name)
    elif isinstance(content, list):
        for value in content:
            _check(file, value, key)
    elif isinstance(content, str) and not (
        _harmless(content) and (content.isidentifier() or not key.endswith(IMPLEMENTATION))
    ):
        raise ValueError(f"{file}: '{key}' must not name {content!r:.80}. {_ADVICE}")


def _harmless(word: str) -> bool:
    """Whether a text is none of those by which the libraries find something to call, or finds a plain layer."""
    package, dot, _ = word.partition(".")
    if (
        not dot
        or package not in ("torch", "sentence_transformers")
        or not all(part.isidentifier() for part in word.split("."))
    ):
        return True
    if package == "torch":
        found = _attribute(word)
        return isinstance(found, dtype) or (_is_layer(found) and found.__module__.startswith("torch.nn.modules."))
    from sentence_transformers.sentence_transformer.modules.tokenizer import WordTokenizer
    from sentence_transformers.util import import_from_string

    try:
        found = import_from_string(word)
    except ImportError:
        return False
    known = _is_layer(found) or (isinstance(found, type) and issubclass(found, WordTokenizer))
    return known and found.__module__.startswith("sentence_transformers.")


def _attribute(word: str) -> Any:
    """What a path of torch names, among what is loaded: nothing is imported."""
    import torch

    found: Any = torch
    for part in word.split(".")[1:]:
        found = getattr(found, part, None)
    return found


def _is_layer(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)
