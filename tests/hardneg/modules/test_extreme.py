"""Three stages on planted data: the encoder is trained, classifiers start from it and learn more, scores are fused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from datamodules import ExtremeData
from hardneg.callbacks import RefreshNegatives
from hardneg.losses import NGAMEClassifierHinge, NGAMEHinge
from hardneg.modules import ExtremeModule
from miners import GIST, NGAME, StepContext
from miners.ragged import Ragged
from tests.distributed.tiny import TinyEncoder

COLOURS = ["red", "green", "blue", "grey", "pink", "teal"]


def write(folder: Path) -> None:
    """Labels are colours; an instance names one or two animals, and animal n always has colour n % 6."""
    labels = [{"title": colour, "content": f"the colour {colour}"} for colour in COLOURS]
    (folder / "lbl.json").write_text("\n".join(map(json.dumps, labels)))
    for split, rows in (("trn", range(60)), ("tst", range(60, 90))):
        records = []
        for row in rows:
            animals = [row % 12] + ([(row + 5) % 12] if row % 3 == 0 else [])
            text = " ".join(f"animal{one}" for one in animals)
            records.append({"title": f"{text} seen {row}", "target_ind": sorted({one % 6 for one in animals})})
        (folder / f"{split}.json").write_text("\n".join(map(json.dumps, records)))
    (folder / "filter_labels_test.txt").write_text("0 1\n")


def fit(folder: Path, module: ExtremeModule, epochs: int, **options: Any) -> tuple[pl.Trainer, ExtremeData]:
    data = ExtremeData(str(folder), batch_size=12, batch_miner=NGAME(4), **options)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[RefreshNegatives(every_n_epochs=4)],
    )
    trainer.fit(module, datamodule=data)
    return trainer, data


def stage_2(**options: Any) -> ExtremeModule:
    return ExtremeModule(TinyEncoder(), classifiers=True, learning_rate=0.05, depth=5, propensity=(0.6, 2.6), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    write(folder)
    return folder


def test_stage_1_is_retrieval_with_the_measures_of_the_repository(folder: Path) -> None:
    module = ExtremeModule(TinyEncoder(), learning_rate=0.01)
    assert isinstance(module.loss, NGAMEHinge)
    trainer, data = fit(folder, module, epochs=1)
    trainer.test(module, datamodule=data, verbose=False)
    names = [f"{measure}@{k}" for measure in ("P", "nDCG", "PSP", "PSnDCG") for k in (1, 3, 5)]
    assert list(module.measures.means) == names
    assert len(module.measures.by_query["P@1"]) == 30
    first = module.measures.ids[0].tolist()
    assert 1 not in first  # the filter says that instance 0 and label 1 are one thing
    assert first[-1] == -1


def test_classifiers_start_from_label_embeddings_and_learn_what_texts_do_not_say(folder: Path) -> None:
    module = stage_2()
    assert isinstance(module.loss, NGAMEClassifierHinge)
    before = [weight.clone() for weight in module.encoder.parameters()]
    trainer, data = fit(folder, module, epochs=20)
    trainer.test(module, datamodule=data, verbose=False)
    means = module.measures.means
    assert means["P@1 classifier"] > means["P@1 encoder"] + 0.2
    assert means["P@1"] >= means["P@1 classifier"] - 0.1
    assert all(torch.equal(*pair) for pair in zip(before, module.encoder.parameters(), strict=True))


def test_before_training_classifiers_are_the_embeddings_of_their_labels(folder: Path) -> None:
    module = stage_2()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(module, datamodule=ExtremeData(str(folder)), verbose=False)
    assert module.classifiers is not None
    torch.testing.assert_close(module.classifiers.weight.detach(), module.embed("document").vectors)
    assert module.measures.means["P@1 classifier"] == module.measures.means["P@1 encoder"]


def test_a_step_touches_the_labels_of_its_batch_only(folder: Path) -> None:
    module = stage_2(dropout=0.0)
    _, data = fit(folder, module, epochs=1)
    batch = next(iter(data.train_dataloader()))
    batch.known = Ragged.from_lists([[0, 3]] * len(batch))
    assert module.classifiers is not None
    optimizer = torch.optim.SparseAdam(module.classifiers.parameters(), lr=0.1)
    before = module.classifiers.weight.detach().clone()
    module.classifiers.weight.grad = None
    (pool,) = module.pools(module.encode(batch), batch, StepContext(rows=12))
    assert pool.positives.items.ids is not None
    assert pool.positives.items.ids.tolist() == [0, 3]
    module.classifiers(pool.positives.items.ids).sum().backward()
    assert module.classifiers.weight.grad.is_sparse
    optimizer.step()
    changed = (module.classifiers.weight.detach() != before).any(1)
    assert changed.tolist() == [True, False, False, True, False, False]


def test_a_checkpoint_brings_its_classifiers_back(folder: Path, tmp_path: Path) -> None:
    module = stage_2()
    trainer, data = fit(folder, module, epochs=2)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    trainer.test(module, datamodule=data, verbose=False)
    again = stage_2()
    trainer.test(again, datamodule=ExtremeData(str(folder)), ckpt_path=str(tmp_path / "it.ckpt"), verbose=False)
    assert again.measures.means == module.measures.means


def test_what_has_no_use_in_stage_2_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no use for chunk_size, momentum\. Set classifiers to false"):
        stage_2(chunk_size=4, momentum=0.9)
    with pytest.raises(ValueError, match="no use for other directions"):
        stage_2(directions=["document_to_query"])
    with pytest.raises(ValueError, match=r"GIST needs \['guide'\]"):
        stage_2(miners=[GIST()])
    with pytest.raises(ValueError, match=r"dropout=1.0"):
        stage_2(dropout=1.0)
