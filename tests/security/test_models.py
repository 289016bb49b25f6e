"""Model folders are data: what their settings name is neither imported, called nor unpickled."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.generated_triplets import fits_in
from hardneg.cli import main
from hardneg.encoders import CLIPEncoder, CrossEncoder, TextEncoder
from hardneg.encoders.model_files import check_model
from tests.security.payloads import Pickled, custom_code

door = pytest.mark.door
LAYER = "torch.nn.modules.activation.Sigmoid"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer as a sentence-transformers folder, weights in safetensors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    plain, folder = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(plain)
    (plain / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc")
    BertTokenizerFast(str(plain / "vocab.txt")).save_pretrained(plain)
    words = Transformer(str(plain), max_seq_length=16)
    SentenceTransformer(modules=[words, Pooling(8)], device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture
def bert(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(made, tmp_path / "bert")


def edit(file: Path, **entries: Any) -> None:
    """Put entries into a JSON file."""
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | entries))


def pickled_weights(folder: Path, mark: Path) -> None:
    """Weights that are a pickle, and a setting that would have it unpickled."""
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Pickled(mark)}, folder / "pytorch_model.bin")
    edit(folder / "sentence_bert_config.json", model_args={"weights_only": False})


def of_an_installed_package(folder: Path, mark: Path) -> None:
    """A class of any package that is installed, under the name of a module."""
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "tests.security.payloads.Marking"
    (folder / "modules.json").write_text(json.dumps(modules))


HOSTILE: dict[str, Callable[[Path, Path], None]] = {
    "pickled weights": pickled_weights,
    "a class of an installed package": of_an_installed_package,
    "native kernels": lambda folder, mark: edit(folder / "config.json", attn_implementation="downloaded/kernel"),
    "native kernels of a part": lambda folder, mark: edit(
        folder / "config.json", _attn_implementation={"text_config": "downloaded/kernel"}
    ),
    "all kernels": lambda folder, mark: edit(
        folder / "sentence_bert_config.json", model_kwargs={"allow_all_kernels": 1}
    ),
    "a function of torch": lambda folder, mark: edit(
        folder / "config.json", sentence_transformers={"activation_fn": "torch.utils.collect_env.main"}
    ),
    "an activation of another package": lambda folder, mark: edit(
        folder / "1_Pooling" / "config.json", activation_function="torch.hub.load_state_dict_from_url"
    ),
    "a function of sentence-transformers": lambda folder, mark: edit(
        folder / "router_config.json", types={"0": "sentence_transformers.util.http_get"}
    ),
    "an import of an adapter": lambda folder, mark: edit(
        folder / "adapter_config.json", megatron_core="tests.security.payloads", megatron_config={}
    ),
    "a library of an adapter": lambda folder, mark: edit(
        folder / "adapter_config.json", auto_mapping={"parent_library": "os", "base_model_class": "system"}
    ),
    "an adapter of another model": lambda folder, mark: edit(
        folder / "adapter_config.json",
        base_model_name_or_path=str(custom_code(folder.parent / "base", mark)),
        auto_mapping={"parent_library": "transformers.models.bert.modeling_bert", "base_model_class": "BertModel"},
    ),
    "an adapter of no one": lambda folder, mark: (folder / "adapter_config.json").write_text("[" * 100_000),
    "weights outside of the folder": lambda folder, mark: edit(
        folder / "model.safetensors.index.json", weight_map={"weight": "../../secret.safetensors"}, metadata={}
    ),
    "a route outside of the folder": lambda folder, mark: edit(
        folder / "router_config.json", types={"../evil": "sentence_transformers.models.Transformer"}
    ),
    "a module outside of the folder": lambda folder, mark: (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "../plain", "type": "sentence_transformers.models.Transformer"}])
    ),
}


@door("model")
@pytest.mark.parametrize("hostile", HOSTILE)
def test_settings_that_name_code_are_refused(hostile: str, bert: Path, mark: Path) -> None:
    HOSTILE[hostile](bert, mark)
    for read in (TextEncoder, CrossEncoder):
        with pytest.raises(ValueError, match=r"\.json: (.* must |is no JSON|the path .* leads out of)"):
            read(str(bert))


@door("model")
def test_code_of_a_model_is_not_run(tmp_path: Path, mark: Path, sample_folder: Path, capsys) -> None:
    """Custom code beside the weights: not by any encoder, nor by any option that names a model."""
    folder = str(custom_code(tmp_path / "evil", mark))
    for read in (TextEncoder, CrossEncoder, CLIPEncoder):
        with pytest.raises(ValueError, match=r"must be of sentence_transformers, got 'modeling_evil\.Evil'"):
            read(folder)
    mine = ["mine", str(sample_folder), "--out", str(tmp_path / "out.parquet"), "--no-cache", "--device", "cpu"]
    named = ["--encoder", "tests.security.payloads.Harmless"]
    for options in (["--model", folder], [*named, "--guide", folder], [*named, "--cross-encoder", folder]):
        assert main([*mine, *options]) == 1
        assert "must be of sentence_transformers" in capsys.readouterr().err
    assert main([*mine, *named]) == 0
    audit = ["audit", str(tmp_path / "out.parquet"), "--folder", str(sample_folder), "--cache", str(tmp_path / "cache")]
    for options in (["--model", folder], ["--checkpoint", folder], ["--guide", folder]):
        assert main([*audit, *options]) == 1
        assert "must be of sentence_transformers" in capsys.readouterr().err
    flips = ["audit", "--folder", str(sample_folder), "--checkpoint", folder, "--against", folder]
    assert main(flips) == 1
    assert "must be of sentence_transformers" in capsys.readouterr().err


@door("model")
@pytest.mark.parametrize("model_type", ["clip", "evil"])
def test_code_of_a_transformers_folder_is_not_run(model_type: str, tmp_path: Path, mark: Path, monkeypatch) -> None:
    """transformers would ask on the terminal whether to run it, unless it is told not to."""
    folder = custom_code(tmp_path / "evil", mark)
    (folder / "modules.json").unlink()
    code = {
        name: f"modeling_evil.{name}" for name in ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor")
    }
    edit(folder / "config.json", model_type=model_type, auto_map=code)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with contextlib.suppress(OSError, ValueError):  # transformers may make do without files of a tokenizer
        fits_in(str(folder), 8)
    for read in (CLIPEncoder, TextEncoder, CrossEncoder):
        with pytest.raises((ValueError, OSError, ImportError)):
            read(str(folder))


@door("model")
def test_weights_that_are_pickles_are_not_unpickled(bert: Path, mark: Path) -> None:
    (bert / "model.safetensors").unlink()
    torch.save({"weight": Pickled(mark)}, bert / "pytorch_model.bin")
    for read in (TextEncoder, CrossEncoder):
        with pytest.raises(Exception, match=r"(?i)weights.only|unsupported|pickle"):
            read(str(bert))


def test_plain_settings_pass(bert: Path) -> None:
    """What published models hold."""
    edit(bert / "sentence_bert_config.json", model_args={"torch_dtype": "float32", "attn_implementation": "sdpa"})
    edit(bert / "config.json", sentence_transformers={"activation_fn": LAYER}, torch_dtype="torch.float32")
    edit(bert / "config_sentence_transformers.json", prompts={"query": "Instruct: torch. Query: ", "document": ""})
    modules = json.loads((bert / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.Pooling"
    (bert / "modules.json").write_text(json.dumps(modules))
    check_model(str(bert))
    assert TextEncoder(str(bert)).dim == 8


def test_code_that_the_user_trusts_is_run(tmp_path: Path) -> None:
    """The option is the user's; a model folder has none such."""
    ran = tmp_path / "ran"
    with pytest.raises(Exception):  # noqa: B017, PT011  # the folder has no weights: that is as far as it gets
        TextEncoder(str(custom_code(tmp_path / "evil", ran)), trust_remote_code=True)
    assert ran.exists()


def test_a_model_of_the_hub_is_checked_too(bert: Path, mark: Path, monkeypatch) -> None:
    """Its JSON files are downloaded first, and only these."""
    import huggingface_hub

    pickled_weights(bert, mark)
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(bert)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match="'model_args' must not set 'weights_only'"):
        TextEncoder("downloaded/model")
    assert (asked["name"], asked["allow_patterns"]) == ("downloaded/model", ["*.json"])
