from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from datamodules import RetrievalData
from hardneg.losses import InfoNCE
from hardneg.modules import RetrievalModule
from miners import InBatch
from tests.distributed.tiny import TinyEncoder
from tests.hardneg.modules.runs import DOCUMENTS, write_data


class Counting(TinyEncoder):
    """Remembers how often it embedded a corpus."""

    corpora = 0

    def embed(self, inputs: Any, kind: str, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.corpora += len(inputs) == DOCUMENTS
        return super().embed(inputs, kind, *args, **kwargs)


def test_dev_and_test_share_a_corpus_until_weights_or_data_change(tmp_path):
    encoder = Counting()
    module = RetrievalModule(encoder, InfoNCE(0.1), [InBatch()], learning_rate=0.02)
    data = RetrievalData(str(write_data(tmp_path / "data")), batch_size=8)
    options: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path}
    trainer = pl.Trainer(max_epochs=2, check_val_every_n_epoch=1, **options)
    trainer.fit(module, data)
    assert encoder.corpora == 2  # after each epoch
    found = trainer.test(module, data, verbose=False)
    assert encoder.corpora == 2
    with torch.no_grad():
        encoder.out.weight.mul_(-1)
    assert trainer.test(module, data, verbose=False) != found
    assert encoder.corpora == 3
    trainer.test(module, RetrievalData(str(tmp_path / "data"), batch_size=8), verbose=False)
    assert encoder.corpora == 4
