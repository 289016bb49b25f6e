from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules.table_files import Columns
from hardneg.encoders import RawFeatures, TabularEncoder, load_tabular


def test_shapes_and_batches() -> None:
    encoder = TabularEncoder(7, dim=5, width=16, blocks=2)
    rows = torch.randn(11, 7)
    assert encoder(rows).shape == (11, 5)
    assert encoder.features(rows).shape == (11, 16)
    torch.testing.assert_close(encoder.embed(rows, batch_size=3), encoder.eval()(rows).detach())
    assert encoder.embed_features(rows, batch_size=4).shape == (11, 16)
    assert encoder.embed(rows[:0]).shape == (0, 5)


def test_dropout_is_for_training() -> None:
    encoder = TabularEncoder(50, dim=5, width=16, dropout=0.5)
    rows = torch.randn(4, 50)
    assert not torch.equal(encoder(rows), encoder(rows))
    torch.testing.assert_close(encoder.embed(rows), encoder.embed(rows))
    assert encoder.training  # as it was


def test_saved_and_loaded(tmp_path: Path) -> None:
    encoder = TabularEncoder(3, dim=2, width=8, blocks=1, dropout=0.1)
    encoder.columns = Columns(("bytes",), (2.0,), (3.0,), {"protocol": ("tcp", "udp")})
    encoder.save_pretrained(tmp_path / "model")
    again = load_tabular(str(tmp_path / "model"))
    assert again.columns == encoder.columns
    assert again.fingerprint() == encoder.fingerprint()
    rows = torch.randn(5, 3)
    torch.testing.assert_close(again.embed(rows), encoder.embed(rows))
    with torch.no_grad():
        again.head.bias += 1
    assert again.fingerprint() != encoder.fingerprint()


def test_raw_features_are_the_rows() -> None:
    rows = torch.randn(4, 3)
    assert torch.equal(RawFeatures(3).embed(rows), rows)
    assert not list(RawFeatures(3).parameters())


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TabularEncoder\(features=3\) got rows of shape \(4, 5\). Set its features"):
        TabularEncoder(3)(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"RawFeatures\(features=3\) got rows"):
        RawFeatures(3)(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="sizes are at least 1"):
        TabularEncoder(0)
    with pytest.raises(FileNotFoundError, match="is no folder of a tabular encoder"):
        TabularEncoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="nothing to save"):
        RawFeatures(3).save_pretrained(tmp_path)
