"""CLIP-type models: a small random one in a folder, as any other of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hardneg.encoders import CLIPEncoder, ComposedEncoder, load_composed
from tests.conftest import WORDS


def write_clip(folder: Path, projection: int = 10) -> Path:
    """A tiny CLIP with one token per word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "[EOS]", *WORDS.split()])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]"
    ).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": 2, "pad_token_id": 1}
    vision = {**small, "image_size": 16, "patch_size": 8, "attention_dropout": 0.3}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}')
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


PICTURES = torch.randint(0, 255, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pictures_and_texts_come_as_the_model_gives_them(folder: Path) -> None:
    encoder = CLIPEncoder(str(folder)).eval()
    mean, scale = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.2])
    pixels = (PICTURES / 255 - mean.view(3, 1, 1)) / scale.view(3, 1, 1)
    wanted = encoder.network.get_image_features(pixel_values=pixels)
    wanted = wanted if isinstance(wanted, torch.Tensor) else wanted.pooler_output
    torch.testing.assert_close(encoder(PICTURES, "image"), wanted)
    assert encoder.dim == 10
    assert encoder.size == 16
    assert encoder(["the cat", "dog"], "query").shape == (2, 10)
    torch.testing.assert_close(encoder.embed(["the cat", "dog"], "query", 1), encoder(["the cat", "dog"], "query"))


def test_it_stays_in_evaluation_mode_unless_told(folder: Path) -> None:
    assert not CLIPEncoder(str(folder)).train().network.training
    assert CLIPEncoder(str(folder), evaluation_mode=False).train().network.training


def test_long_texts_are_cut(folder: Path) -> None:
    assert CLIPEncoder(str(folder))(["the cat " * 50], "query").shape == (1, 10)


def test_one_model_for_both_sides_is_saved_read_and_half_frozen(folder: Path, tmp_path: Path) -> None:
    before = ComposedEncoder(CLIPEncoder(str(folder)))
    before.freeze_images()
    names = {name for name, weight in before.named_parameters() if weight.requires_grad}
    assert names
    assert all("text" in name for name in names), names
    before.save_pretrained(tmp_path / "model")
    after = load_composed(str(tmp_path / "model"))
    assert after.fingerprint("query") == before.fingerprint("query")
    inputs = {"reference": PICTURES, "text": ["the cat", "dog", "owl"]}
    torch.testing.assert_close(after(inputs, "query"), before(inputs, "query"))


def test_texts_do_not_change_the_key_of_pictures(folder: Path) -> None:
    encoder = CLIPEncoder(str(folder))
    image, query = encoder.fingerprint("image"), encoder.fingerprint("query")
    with torch.no_grad():
        encoder.network.text_projection.weight += 1
        encoder.network.logit_scale += 1
    assert encoder.fingerprint("image") == image
    assert encoder.fingerprint("query") != query
    with torch.no_grad():
        encoder.network.visual_projection.weight += 1
    assert encoder.fingerprint("image") != image


def test_how_it_is_used_is_saved_too(folder: Path, tmp_path: Path) -> None:
    before = ComposedEncoder(CLIPEncoder(str(folder), evaluation_mode=False, max_tokens=5))
    before.save_pretrained(tmp_path / "model")
    after = load_composed(str(tmp_path / "model"))
    assert (after.images.max_tokens, after.images.evaluation_mode) == (5, False)
    assert after.fingerprint("query") == before.fingerprint("query")


def test_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json is not in it"):
        CLIPEncoder(str(tmp_path))
    with pytest.raises(ValueError, match=r"wants pictures \(B, 3, 16, 16\), got \(1, 3, 8, 8\)"):
        CLIPEncoder(str(folder))(torch.zeros(1, 3, 8, 8), "image")
