"""Signal encoders: shapes, scales, and folders that come back as they went."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from hardneg.encoders import (
    InertialConvolutions,
    InertialTransformer,
    SignalEncoder,
    SkeletonCooccurrence,
    load_signals,
)
from hardneg.encoders.signals import Backbone


def weights(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def small() -> SignalEncoder:
    torch.manual_seed(0)
    return SignalEncoder(
        {
            "inertial": InertialConvolutions(6, widths=(4, 4, 8)),
            "skeleton": SkeletonCooccurrence(5, widths=(4, 8, 4, 4, 8, 8)),
        },
        dim=16,
        hidden=12,
    )


def windows(kind: str, number: int = 3) -> Tensor:
    shape = (number, 20, 6) if kind == "inertial" else (number, 16, 5, 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_sizes_are_those_of_the_paper() -> None:
    transformer, skeleton = InertialTransformer(6), SkeletonCooccurrence()
    assert transformer.num_features == 5632
    assert skeleton.num_features == 256
    # the published 1.83 M count a third attention layer that is never run
    assert weights(transformer) + weights(transformer.attention.layers[0]) == pytest.approx(1.83e6, rel=0.01)
    assert weights(skeleton) == pytest.approx(0.43e6, rel=0.02)
    assert transformer(torch.randn(2, 50, 6)).shape == (2, 5632)
    assert skeleton(torch.randn(2, 50, 20, 3)).shape == (2, 256)


@pytest.mark.parametrize("steps", [8, 21, 128])
def test_convolutions_take_any_number_of_steps(steps: int) -> None:
    assert InertialConvolutions(3)(torch.randn(2, steps, 3)).shape == (2, 256)


def test_every_step_and_joint_reaches_the_features() -> None:
    for kind, backbone in small().backbones.items():
        x = windows(kind).requires_grad_()
        backbone.eval()(x).sum().backward()
        assert x.grad is not None
        assert bool((x.grad != 0).flatten(2).any(2).all()), f"a time step of {kind} is lost"


def test_scale_is_part_of_the_encoder() -> None:
    encoder = small().eval()
    mean, scale = torch.arange(6.0), torch.arange(1, 7.0)
    encoder.measure({"inertial": (mean, scale), "skeleton": (torch.zeros(3), torch.tensor(2.0))})
    raw = windows("inertial")
    torch.testing.assert_close(encoder.standardise(raw * scale + mean, "inertial"), raw, rtol=1e-5, atol=1e-5)
    encoder.measure({"inertial": (mean + 9, scale), "skeleton": (torch.zeros(3), torch.tensor(2.0))})
    assert torch.equal(encoder.scales["inertial"].mean, mean)  # what is known is kept
    again = small()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(raw, "inertial"), encoder(raw, "inertial"))


def test_embed_is_the_forward_pass_in_evaluation_mode() -> None:
    encoder = small()
    for kind in encoder.modalities:
        found = encoder.embed(windows(kind, 7), kind, batch_size=3)
        assert encoder.training
        with torch.no_grad():
            torch.testing.assert_close(found, encoder.eval()(windows(kind, 7), kind))
        assert encoder.embed_features(windows(kind, 7), kind).shape == (7, encoder.backbones[kind].num_features)
        encoder.train()


def test_a_folder_gives_the_same_vectors(tmp_path: Path) -> None:
    encoder = small()
    encoder.measure({"inertial": (torch.ones(6), torch.ones(6) * 2), "skeleton": (torch.ones(3), torch.tensor(3.0))})
    encoder.train()(windows("inertial", 9), "inertial")  # moves batch statistics
    encoder.save_pretrained(tmp_path / "model")
    for again in (SignalEncoder.from_pretrained(tmp_path / "model"), load_signals(str(tmp_path / "model"))):
        for kind in encoder.modalities:
            assert torch.equal(again.embed(windows(kind), kind), encoder.embed(windows(kind), kind))
            assert again.fingerprint(kind) == encoder.fingerprint(kind)
    assert "load_signals" in (tmp_path / "model" / "hardneg.yaml").read_text()


def test_fingerprints_tell_weights_and_modalities_apart() -> None:
    encoder = small()
    before = encoder.fingerprint("inertial")
    assert before != encoder.fingerprint("skeleton")
    with torch.no_grad():
        next(encoder.heads["skeleton"].parameters()).add_(1)
    assert encoder.fingerprint("inertial") == before
    encoder.scales["inertial"].set(torch.ones(6), torch.ones(6))
    assert encoder.fingerprint("inertial") != before


class Mine(Backbone):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = self.num_features = size
        self.layer = torch.nn.Linear(120, size)

    def forward(self, windows: Tensor) -> Tensor:
        return self.layer(windows.flatten(1))


def test_a_backbone_of_ones_own_is_passed_not_imported(tmp_path: Path) -> None:
    encoder = SignalEncoder({"inertial": Mine(5)}, dim=8)
    encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"backbone 'Mine' of 'inertial' is not known. Pass its class"):
        SignalEncoder.from_pretrained(tmp_path)
    again = SignalEncoder.from_pretrained(tmp_path, backbones=[Mine])
    assert torch.equal(again.embed(windows("inertial"), "inertial"), encoder.embed(windows("inertial"), "inertial"))
    assert yaml.safe_load((tmp_path / "encoder.yaml").read_text())["backbones"]["inertial"]["arguments"] == {"size": 5}


def test_messages(tmp_path: Path) -> None:
    encoder = small()
    with pytest.raises(ValueError, match=r"6 channels wants windows \(B, T, 6\), got \(2, 20, 3\)"):
        encoder(torch.randn(2, 20, 3), "inertial")
    with pytest.raises(ValueError, match=r"got \(2, 16, 4, 3\)"):
        encoder(torch.randn(2, 16, 4, 3), "skeleton")
    with pytest.raises(ValueError, match="drop_last: true"):
        encoder(windows("inertial", 1), "inertial")
    with pytest.raises(ValueError, match="not 'video'"):
        encoder(windows("inertial"), "video")
    with pytest.raises(ValueError, match="got windows of 20 steps"):
        InertialTransformer(6)(windows("inertial"))
    with pytest.raises(FileNotFoundError, match=r"encoder.yaml is not in it"):
        SignalEncoder.from_pretrained(tmp_path)
