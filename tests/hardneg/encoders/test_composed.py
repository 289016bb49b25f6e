"""Combiners, and what a composed encoder saves, reads again and freezes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from hardneg.encoders import (
    CLIP4CirCombiner,
    Combiner,
    ComposedEncoder,
    ImageEncoder,
    IRResNet,
    SumCombiner,
    TextEncoder,
    TIRGGate,
    load_composed,
)


def encoder(tiny_model: Path, combiner: Combiner | None = None, dim: int = 8) -> ComposedEncoder:
    torch.manual_seed(0)
    images = ImageEncoder(IRResNet(18, 16, width=4), dim)
    return ComposedEncoder(images, TextEncoder(str(tiny_model)), combiner)


def test_the_sum_is_of_features_as_they_are() -> None:
    image, text = torch.tensor([[1.0, 0], [0.5, 0.5]]), torch.tensor([[0, 1.0], [-0.5, 0.25]])
    query = F.normalize(SumCombiner()(image, text), dim=1)
    torch.testing.assert_close(query, torch.tensor([[0.707107, 0.707107], [0, 1]]), atol=1e-6, rtol=0)


def test_tirg_is_a_gate_and_a_residual() -> None:
    torch.manual_seed(0)
    combiner = TIRGGate(4, 3, residual_weight=10.0).eval()
    image, text = torch.randn(5, 4), torch.randn(5, 3)
    both = torch.cat([image, text], 1)
    norm, _, last = combiner.gate
    gate = torch.sigmoid(last(torch.relu((both - norm.running_mean) / (norm.running_var + norm.eps).sqrt())))
    torch.testing.assert_close(combiner(image, text), gate * image + 10 * combiner.residual(both))
    with torch.no_grad():
        combiner.weights[1] = 0
        combiner.gate[2].bias.fill_(50)
    torch.testing.assert_close(combiner(image, text), image)


def test_clip4cirs_combiner_is_convex_beside_its_output() -> None:
    torch.manual_seed(0)
    combiner = CLIP4CirCombiner(4).eval()
    assert (combiner.projection_dim, combiner.hidden_dim) == (16, 32)
    image, text = torch.randn(5, 4), torch.randn(5, 4)
    torch.nn.init.zeros_(combiner.output.weight)
    torch.nn.init.zeros_(combiner.output.bias)
    both = torch.cat([combiner.of_text(text), combiner.of_image(image)], 1)
    share = combiner.share(both)
    torch.testing.assert_close(combiner(image, text), share * text + (1 - share) * image)
    assert bool(((share > 0) & (share < 1)).all())


@pytest.mark.parametrize("combiner", [None, TIRGGate(8, 8), CLIP4CirCombiner(8, 12, 10, dropout=0.1)])
def test_it_is_read_as_it_was_written(combiner: Combiner | None, tiny_model: Path, tmp_path: Path) -> None:
    before = encoder(tiny_model, combiner).eval()
    before.save_pretrained(tmp_path / "model")
    after = load_composed(str(tmp_path / "model")).eval()
    assert after.fingerprint("query") == before.fingerprint("query")
    inputs = {"reference": torch.randint(0, 255, (3, 3, 16, 16), dtype=torch.uint8), "text": ["the cat", "dog", "owl"]}
    torch.testing.assert_close(after(inputs, "query"), before(inputs, "query"))
    features = before(inputs["reference"], "image")
    torch.testing.assert_close(before(inputs | {"reference": features}, "query"), before(inputs, "query"))


def test_fingerprints_tell_what_changed(tiny_model: Path) -> None:
    one = encoder(tiny_model, TIRGGate(8, 8))
    image, query = one.fingerprint("image"), one.fingerprint("query")
    with torch.no_grad():
        one.combiner.weights += 1
    assert one.fingerprint("image") == image
    assert one.fingerprint("query") != query


def test_frozen_pictures_have_no_gradient(tiny_model: Path) -> None:
    one = encoder(tiny_model, TIRGGate(8, 8))
    one.freeze_images()
    assert not any(weight.requires_grad for weight in one.images.parameters())
    assert all(weight.requires_grad for weight in one.combiner.parameters())


def test_a_part_of_ones_own_is_saved_and_said_when_it_is_read(tiny_model: Path, tmp_path: Path) -> None:
    class Mine(ImageEncoder):
        pass

    one = ComposedEncoder(Mine(IRResNet(18, 16, width=4), 8), TextEncoder(str(tiny_model)))
    one.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"what reads images, 'None', is none of .*Build the encoder in code"):
        load_composed(str(tmp_path / "model"))


def test_widths_that_do_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pictures have 6 numbers, texts 8"):
        encoder(tiny_model, dim=6)
    with pytest.raises(ValueError, match=r"TIRGGate is made for pictures of 6 and texts of 8 numbers.*give 8 and 8"):
        encoder(tiny_model, TIRGGate(6, 8))
    with pytest.raises(FileNotFoundError, match=r"composed.json is not in it"):
        load_composed(str(tmp_path))


def test_only_known_parts_are_read(tiny_model: Path, tmp_path: Path) -> None:
    encoder(tiny_model).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "composed.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"parts": {"images": "os.system"}}))
    with pytest.raises(ValueError, match=r"'os\.system', is none of"):
        load_composed(str(tmp_path / "model"))
    file.write_text(json.dumps(settings | {"combiner": {"class": "Mine", "arguments": {}}}))
    with pytest.raises(ValueError, match="a combiner of class 'Mine'"):
        load_composed(str(tmp_path / "model"))
