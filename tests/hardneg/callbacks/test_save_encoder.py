from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from sentence_transformers import SentenceTransformer

from hardneg.callbacks import SaveEncoder
from hardneg.encoders import TextEncoder


def test_the_folder_loads_and_gives_the_trained_vectors(fit: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    trainer = fit(SaveEncoder(), logger=CSVLogger(tmp_path, name=None))
    folder = tmp_path / "version_0" / "model"
    texts = ["the cat of the zoo", "where lives the owl?"]
    loaded = SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)
    trained = trainer.lightning_module.encoder.embed(texts, "document")
    assert torch.equal(loaded, trained)
    assert torch.equal(TextEncoder(str(folder)).embed(texts, "document"), trained)
    assert "model: model\n" in (folder / "hardneg.yaml").read_text()  # no trace of the folder it was written in
    assert [file.name for file in folder.parent.iterdir() if file.name.startswith(".")] == [".model.lock"]


def test_takes_the_place_of_an_older_one(fit: Callable[..., pl.Trainer], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "older.txt").write_text("a file of before")
    fit(SaveEncoder(str(folder)), logger=False)
    assert (folder / "modules.json").exists()
    assert not (folder / "older.txt").exists()


def test_a_failed_write_leaves_the_older_one(
    fit: Callable[..., pl.Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "older.txt").write_text("a file of before")

    def breaks(self: TextEncoder, folder: str) -> None:
        Path(folder).mkdir()
        (Path(folder) / "half.txt").write_text("half")
        raise OSError("the disk is full")

    monkeypatch.setattr(TextEncoder, "save_pretrained", breaks)
    with pytest.raises(OSError, match="the disk is full"):
        fit(SaveEncoder(str(folder)), logger=False)
    assert [file.name for file in folder.iterdir()] == ["older.txt"]
    assert not list(tmp_path.glob(".mine-*"))


def test_a_module_that_cannot_be_saved_is_refused_before_training(tmp_path: Path) -> None:
    class Plain(pl.LightningModule):
        pass

    with pytest.raises(ValueError, match=r"Plain has no save_pretrained\(folder\)"):
        SaveEncoder().on_fit_start(pl.Trainer(logger=False, accelerator="cpu"), Plain())
