from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from datamodules import RetrievalData
from hardneg.losses import InfoNCE
from hardneg.modules import RetrievalModule
from miners import GIST, InBatch, SelfBlocks
from tests.distributed.tiny import TinyEncoder
from tests.hardneg.modules.runs import DOCUMENTS, QUERIES, write_data


class Counting(TinyEncoder):
    """Remembers how many texts it embedded without gradient."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.embedded: list[int] = []

    def embed(self, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.embedded.append(len(inputs))
        return super().embed(inputs, *args, **kwargs)


def train(folder: Path, guide: TinyEncoder, data: Path, out: Path) -> RetrievalModule:
    module = RetrievalModule(
        TinyEncoder(), InfoNCE(0.1), [InBatch(), SelfBlocks(), GIST()], guide=guide, guide_folder=str(folder)
    )
    options: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "limit_val_batches": 0, "default_root_dir": out}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", use_distributed_sampler=False, **options)
    trainer.fit(module, RetrievalData(str(data), batch_size=8))
    return module


def test_a_guide_encodes_once_for_all_runs_that_ask_the_same_of_it(tmp_path):
    data, kept = write_data(tmp_path / "data"), tmp_path / "guide"
    first, again = Counting(3), Counting(3)
    one = train(kept, first, data, tmp_path)
    assert first.embedded == [QUERIES, DOCUMENTS]
    assert one.guide_seconds_saved == 0
    two = train(kept, again, data, tmp_path)
    assert again.embedded == []
    assert two.guide_seconds_saved > 0
    for space in ("query", "document"):
        assert two.guide_stores[space].vectors.equal(one.guide_stores[space].vectors)
    for name, weight in two.state_dict().items():
        assert weight.equal(one.state_dict()[name]), name


def test_another_guide_or_a_changed_text_is_encoded_anew(tmp_path):
    data, kept = write_data(tmp_path / "data"), tmp_path / "guide"
    train(kept, Counting(3), data, tmp_path)
    other = Counting(4)
    train(kept, other, data, tmp_path)
    assert other.embedded == [QUERIES, DOCUMENTS]
    corpus = data / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("w0 ", "w1 ", 1))
    changed = Counting(3)
    module = train(kept, changed, data, tmp_path)
    assert changed.embedded == [DOCUMENTS]
    assert module.guide_seconds_saved > 0
    assert not [entry for entry in kept.iterdir() if entry.name.startswith(".") and entry.suffix != ".lock"]


def test_a_folder_without_a_guide_is_a_mistake():
    with pytest.raises(ValueError, match="guide_folder='x' without a guide"):
        RetrievalModule(TinyEncoder(), InfoNCE(0.1), [InBatch()], guide_folder="x")
