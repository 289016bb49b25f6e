"""A frozen side is never encoded: queries are trained against a corpus that stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from datamodules import RetrievalData
from hardneg.losses import LambdaRank
from hardneg.modules import RetrievalModule
from miners import ADORE, InBatch
from miners.store import Store
from tests.distributed.tiny import TinyEncoder
from tests.hardneg.modules.runs import DOCUMENTS, write_data


class Asymmetric(TinyEncoder):
    """Remembers what kinds of things it was asked to encode."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kinds: set[str] = set()

    def forward(self, inputs: Any, kind: str) -> torch.Tensor:
        self.kinds.add(kind)
        return super().forward(inputs, kind)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "beir")


def corpus(names: Any = None, documents: int = DOCUMENTS) -> Store:
    texts = [f"w{(7 * i) % 40} w{(7 * i + 1) % 40} w{(7 * i + 4) % 40} w{(7 * i + 9) % 40}" for i in range(documents)]
    vectors = TinyEncoder().embed(texts, "document")
    return Store(torch.nn.functional.normalize(vectors, dim=1), names=names)


def fit(data: Path, folder: Path, module: RetrievalModule, epochs: int = 2) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, RetrievalData(str(data), batch_size=10))
    return trainer


def test_adore_trains_queries_and_never_encodes_a_document(data: Path, tmp_path: Path) -> None:
    store = corpus()
    before = store.vectors.clone()
    encoder = Asymmetric(dropout=0.1)
    store.save(tmp_path / "store")
    module = RetrievalModule(
        encoder,
        LambdaRank(cutoff=20, temperature=0.1),
        [ADORE(num_negatives=20)],
        learning_rate=0.02,
        schedule="constant",
        frozen={"document": str(tmp_path / "store")},
    )
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = fit(data, tmp_path, module, epochs=30)
    first = trainer.validate(module, RetrievalData(str(data)), verbose=False)[0]["val/nDCG@10"]
    assert encoder.kinds == {"query"}
    assert torch.equal(store.vectors, before)
    assert any(not torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    untrained = RetrievalModule(TinyEncoder(), LambdaRank(), [ADORE()], frozen={"document": store})
    start = trainer.validate(untrained, RetrievalData(str(data)), verbose=False)[0]["val/nDCG@10"]
    assert first > start + 0.15


def test_in_batch_works_on_a_frozen_side_too(data: Path, tmp_path: Path) -> None:
    encoder = Asymmetric()
    module = RetrievalModule(encoder, miners=[InBatch()], frozen={"document": corpus()}, chunk_size=3)
    fit(data, tmp_path, module)
    assert encoder.kinds == {"query"}


def test_a_frozen_store_of_another_data_set_says_so(data: Path, tmp_path: Path) -> None:
    named = corpus(names=[f"x{i}" for i in range(DOCUMENTS)])
    with pytest.raises(ValueError, match="id 0 is 'x0' in the store and 'd0' in this data set"):
        fit(data, tmp_path, RetrievalModule(TinyEncoder(), frozen={"document": named}))
    with pytest.raises(ValueError, match=r"frozen 'document': .*holds no id 60 .*Encode this data set"):
        fit(data, tmp_path, RetrievalModule(TinyEncoder(), frozen={"document": corpus(documents=60)}))


@pytest.mark.parametrize("spaces", [("image",), ("query", "document")])
def test_what_can_be_frozen(spaces: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="wants 'query' or 'document', and not both"):
        RetrievalModule(TinyEncoder(), frozen=dict.fromkeys(spaces, corpus()))


def test_adore_needs_a_frozen_side() -> None:
    with pytest.raises(ValueError, match=r"ADORE needs \['frozen'\]"):
        RetrievalModule(TinyEncoder(), LambdaRank(), [ADORE()])
