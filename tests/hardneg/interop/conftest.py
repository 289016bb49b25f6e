"""Models of a few hundred weights, and rows of words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

WORDS = [first + second for first in "bcdfghjklmnp" for second in ("a", "e", "i", "o", "u", "an", "en", "in")]


def make_model(folder: Path, seed: int, words: list[str], dims: int = 16) -> Path:
    """A BERT of one layer, its weights drawn with ``seed``, whose tokens are ``words``."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ":", *words]))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words) + 6,
        hidden_size=dims,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=dims,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.5,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder / "bert")
    model = SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(dims)], device="cpu")
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("interop") / "student", 0, WORDS)


@pytest.fixture(scope="session")
def guide_folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("interop") / "guide", 1, WORDS, 12)


@pytest.fixture(scope="session")
def other_guide_folder(tmp_path_factory) -> Path:
    """A guide whose tokens have other numbers."""
    return make_model(tmp_path_factory.mktemp("interop") / "other_guide", 2, WORDS[::-1])


@pytest.fixture
def student(student_folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(student_folder), device="cpu")


@pytest.fixture
def guide(guide_folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(guide_folder), device="cpu")


def texts(number: int, seed: int, length: int = 3) -> list[str]:
    """Different texts of up to ``length`` words."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        size = int(torch.randint(1, length + 1, (), generator=generator))
        words = torch.randint(len(WORDS), (size,), generator=generator).tolist()
        found[" ".join(WORDS[word] for word in words)] = None
    return list(found)
