"""Image encoders: shapes, what pictures they take, and folders that come back as they went."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hardneg.encoders import ImageBackbone, ImageEncoder, IRResNet, TimmBackbone, TorchvisionBackbone, load_images


def small(channels: int = 1, head: str = "linear", size: int = 16, **options: object) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(IRResNet(18, size, channels, width=4), dim=6, head=head, **options)


def pictures(number: int = 3, channels: int = 1, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (number, channels, size, size), generator=generator, dtype=torch.uint8)


def test_the_published_network_has_its_published_size() -> None:
    with torch.device("meta"):
        network = IRResNet(50)
    assert network.num_features == 512 * 7 * 7
    head = 512 * 25_088 + 512 + 2 * 512  # the embedding layer of iresnet50, as insightface defines it
    assert sum(weight.numel() for weight in network.parameters()) + head == 43_590_848
    assert {"conv1.weight", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias", "bn2.weight"} <= set(
        network.state_dict()
    )


@pytest.mark.parametrize("head", ["none", "linear", "mlp"])
def test_vectors_and_features(head: str) -> None:
    encoder = small(head=head)
    assert encoder.backbone.num_features == 32
    assert encoder.dim == (32 if head == "none" else 6)
    vectors = encoder(pictures(), "image")
    assert vectors.shape == (3, encoder.dim)
    vectors.square().sum().backward()
    assert encoder.backbone.conv1.weight.grad.isfinite().all()
    assert encoder.features(pictures()).shape == (3, 32)
    assert encoder(pictures(0)).shape == (0, encoder.dim)


def test_bytes_floats_arrays_and_lists_are_the_same_pictures() -> None:
    encoder, bytes_ = small().eval(), pictures(5)
    expected = encoder.embed(bytes_, "image", batch_size=2)
    assert expected.shape == (5, 6)
    assert expected.dtype == torch.float32
    assert not encoder.training
    for other in (bytes_.float() / 255, bytes_.numpy(), [picture.numpy() for picture in bytes_]):
        torch.testing.assert_close(encoder.embed(other, "image", batch_size=5), expected, rtol=1e-4, atol=1e-5)
    assert encoder.embed_features(bytes_, "image").shape == (5, 32)
    assert encoder.embed(np.zeros((0, 1, 16, 16), dtype=np.uint8), "image").shape == (0, 6)


def test_pixels_are_standardised() -> None:
    encoder = small(mean=[0.5], scale=[0.25])
    white = torch.full((1, 1, 16, 16), 255, dtype=torch.uint8)
    assert encoder.standardise(white).unique().tolist() == [2.0]
    usual = small(channels=3).standardise(torch.zeros(1, 3, 16, 16))[0, :, 0, 0]
    torch.testing.assert_close(usual, torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvision(name: str) -> None:
    backbone = TorchvisionBackbone(name, channels=1)
    encoder = ImageEncoder(backbone, dim=5, head="mlp", hidden=7).eval()
    assert encoder.features(pictures(2, 1, 32)).shape == (2, backbone.num_features)
    assert encoder(pictures(2, 1, 32)).shape == (2, 5)


def test_a_small_stem_keeps_the_size() -> None:
    network = TorchvisionBackbone("resnet18", channels=1, small_stem=True).network
    stem = network.maxpool(network.relu(network.bn1(network.conv1(torch.zeros(1, 1, 24, 24)))))
    assert stem.shape == (1, 64, 24, 24)


def test_weights_from_a_file_and_grey_pictures(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    original = resnet18().eval()
    save_file(original.state_dict(), tmp_path / "resnet18.safetensors")
    torch.save(original.state_dict(), tmp_path / "resnet18.pth")
    colour = TorchvisionBackbone("resnet18", str(tmp_path / "resnet18.pth")).eval()
    grey = TorchvisionBackbone("resnet18", str(tmp_path / "resnet18.safetensors"), channels=1).eval()
    one = torch.rand(1, 1, 32, 32)
    original.fc = nn.Identity()
    torch.testing.assert_close(colour(one.expand(-1, 3, -1, -1)), original(one.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(grey(one), colour(one.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"holds no weights 'layer1.2.*another network's"):
        TorchvisionBackbone("resnet34", str(tmp_path / "resnet18.pth"))
    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        TorchvisionBackbone("resnet18", str(tmp_path / "none.pth"))


def test_a_file_of_weights_runs_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"conv1.weight": Hostile()}, tmp_path / "bad.pth")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        IRResNet(18, 16, width=4, weights=str(tmp_path / "bad.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("head", ["none", "linear", "mlp"])
def test_a_saved_encoder_comes_back(tmp_path: Path, head: str) -> None:
    encoder = small(head=head, hidden=9, mean=[0.3], scale=[0.2])
    encoder(pictures())  # batch norm has seen something
    encoder.save_pretrained(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "model.safetensors",
        "encoder.json",
        "hardneg.yaml",
    }
    again = load_images(str(tmp_path / "model"))
    assert torch.equal(again.embed(pictures(), "image"), encoder.embed(pictures(), "image"))
    assert again.fingerprint("image") == encoder.fingerprint("image")
    again.mean += 1
    assert again.fingerprint("image") != encoder.fingerprint("image")


class Own(ImageBackbone):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels, self.num_features = channels, channels

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3))


def test_a_backbone_of_ones_own(tmp_path: Path) -> None:
    ImageEncoder(Own(), dim=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"class 'Own'; known are .*backbones=\[YourBackbone\]"):
        load_images(str(tmp_path))
    assert ImageEncoder.from_pretrained(tmp_path, [Own]).dim == 2


def test_folders_that_are_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is not in it"):
        load_images(str(tmp_path))
    small().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "encoder.json").read_text())
    settings["backbone"]["arguments"]["width"] = 8
    (tmp_path / "encoder.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"weights '.*' are \(.*\), and this network wants"):
        load_images(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: IRResNet(20), r"layers=20\): wants one of \[18, 34, 50, 100\]"),
        (lambda: IRResNet(18, 8), r"size=8\): wants 16 pixels"),
        (lambda: IRResNet(18, channels=4), "wants 3 .colour. or 1"),
        (lambda: TorchvisionBackbone("resnet19"), "torchvision has .*resnet18"),
        (lambda: TorchvisionBackbone("mobilenet_v3_small", small_stem=True), "only ResNets"),
        (lambda: small(head="linea"), "head='linea'"),
        (lambda: small(mean=[0.5, 0.5]), "backbone has 1 channels"),
        (lambda: small()(pictures(size=20)), r"IRResNet\(size=16\) got pictures of 20 x 20 pixels"),
        (lambda: small()(pictures(channels=3)), r"wants pictures \(B, 1, H, W\), got \(3, 3, 16, 16\)"),
        (lambda: small()(pictures(1)), "training batch of one picture"),
        (lambda: ImageEncoder(TorchvisionBackbone("resnet18", channels=1))(pictures()), "32 pixels at least"),
        (lambda: small()([]), "empty list"),
    ],
)
def test_mistakes(make, complaint: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=complaint):
        make()


def test_pictures_are_mined(tmp_path: Path) -> None:
    from hardneg.cli import main

    small().save_pretrained(tmp_path / "model")
    np.save(tmp_path / "pictures.npy", pictures(12).numpy())
    np.save(tmp_path / "identities.npy", np.arange(12) // 3)
    arguments = ["mine", "--corpus", str(tmp_path / "pictures.npy"), "--labels", str(tmp_path / "identities.npy")]
    arguments += ["--encoder", "hardneg.encoders.load_images"]
    arguments += ["--encoder-args", json.dumps({"folder": str(tmp_path / "model")}), "--no-cache", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "mined.parquet"), "--num-negatives", "2"]) == 0
    assert (tmp_path / "mined.parquet").exists()


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "timm", None)
        with pytest.raises(ImportError, match="needs timm, which is not installed"):
            TimmBackbone("resnet10t")
    timm = pytest.importorskip("timm")
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), file)  # with its classifier
    encoder = ImageEncoder(TimmBackbone("resnet10t", str(file)), 8)
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert encoder.embed(pictures, "image").shape == (2, 8)
    encoder.save_pretrained(tmp_path / "model")
    loaded = ImageEncoder.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.embed(pictures, "image"), encoder.embed(pictures, "image"))
    with pytest.raises(ValueError, match=r"timm has no such network. Near it are: .*resnet10t"):
        TimmBackbone("resnet10x")
    assert TimmBackbone("resnet10t", channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 512)
