"""MoCo: keys from a slow copy, shuffled batch norm, a queue that masks a picture's own old keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules.batch import Batch
from datamodules.two_crops import AGAIN, SPACE, TwoCropsData
from hardneg.callbacks import DrawNeighbours, MeasureWaiting, ProbeClasses
from hardneg.modules.moco import MoCoModule
from miners import Items, MemoryQueue, MoCHi, Ragged
from miners.base import process_rank
from tests.distributed.processes import in_processes
from tests.pictures import tiny_encoder, write_classes


def crops(rows: Tensor) -> Batch:
    """Two crops of each of some pictures."""
    everything = torch.rand(2, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    items = Items(ids=rows, space=SPACE)
    inputs = {SPACE: everything[0, rows], AGAIN: everything[1, rows]}
    return Batch(inputs, {SPACE: items, AGAIN: items}, Ragged.from_lists([[i] for i in rows.tolist()]), rows)


def module(**options: Any) -> MoCoModule:
    made = MoCoModule(tiny_encoder(), **{"miners": [MemoryQueue(size=32)], "momentum": 0.9, **options})
    made.slow.update_parameters(made.encoder)
    with torch.no_grad():
        for weight in made.slow.parameters():
            weight.add_(0.1)
    return made.train()


def encoded(rows: Tensor, groups: int, steps: int) -> dict[str, Tensor]:
    """Vectors of both sides, after some steps."""
    made = module(batch_norm_groups=groups)
    made.batches_trained = steps
    return {side: items.embeddings.detach() for side, items in made.encode(crops(rows)).items()}


def of_process(steps: int) -> dict[str, Tensor]:
    return encoded(torch.arange(7).tensor_split([4])[process_rank()], 1, steps)


def test_two_processes_shuffle_like_two_groups_of_one(tmp_path: Path) -> None:
    """Four rows here and three there; every step in another order."""
    found = in_processes(2, of_process, tmp_path, 3)
    expected = encoded(torch.arange(7), 2, 3)
    for side in (SPACE, AGAIN):
        torch.testing.assert_close(torch.cat([process[side] for process in found]), expected[side])


def test_a_keys_batch_is_not_its_partners() -> None:
    rows, whole = torch.arange(8), encoded(torch.arange(8), 1, 0)
    grouped, later = encoded(rows, 2, 0), encoded(rows, 2, 1)
    first, second = (encoded(part, 1, 0) for part in rows.split(4))
    torch.testing.assert_close(grouped[SPACE], torch.cat([first[SPACE], second[SPACE]]))
    unshuffled = torch.cat([first[AGAIN], second[AGAIN]])
    for keys in (grouped[AGAIN], whole[AGAIN], later[AGAIN]):
        assert not torch.allclose(keys, unshuffled, atol=1e-4)
    assert not torch.allclose(grouped[AGAIN], later[AGAIN], atol=1e-4)
    made = module()
    torch.testing.assert_close(whole[AGAIN], made.slow(crops(rows).inputs[AGAIN]))  # with one group, all in one


def test_keys_are_the_slow_copys_and_have_no_gradient() -> None:
    sides = module().encode(crops(torch.arange(6)))
    assert sides[SPACE].embeddings.requires_grad
    assert not sides[AGAIN].embeddings.requires_grad


@pytest.mark.parametrize("groups", [0, -1])
def test_bad_arguments(groups: int) -> None:
    with pytest.raises(ValueError, match="batch_norm_groups"):
        module(batch_norm_groups=groups)


def fit(folder: Path, *callbacks: pl.Callback, epochs: int = 3, **options: Any) -> tuple[MoCoModule, pl.Trainer]:
    data = TwoCropsData(str(folder), size=16, batch_size=6, drop_last=True)
    mixes = MoCHi(num_hard=8, num_pairs=5, num_with_anchor=3, warmup_epochs=1, min_hard=4)
    made = MoCoModule(tiny_encoder(), miners=[MemoryQueue(size=64), mixes], momentum=0.9, learning_rate=0.01, **options)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=str(folder),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(made, data)
    return made, trainer


def test_a_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    waiting = MeasureWaiting()
    before = [weight.clone() for weight in tiny_encoder().parameters()]
    made, trainer = fit(write_classes(tmp_path), waiting, batch_norm_groups=2)
    logged = trainer.callback_metrics
    assert {"val/accuracy", "val/macro-F1", "val/kNN", "train/loss", "train/waiting_share"} <= set(logged)
    assert {"train/MoCHi/accuracy", "train/MoCHi/accuracy_with_mixes"} <= set(logged)
    assert float(logged["val/accuracy"]) > 0.9  # colours are easily told
    assert 0 < waiting.share < 1
    assert float(logged["train/dropped/positive"]) == 6 * 2  # both old keys of each of six pictures
    assert float(logged["train/negatives_per_anchor"]) == 48 - 2  # eight batches of keys, mixes not counted
    for start, slow, now in zip(before, made.slow.parameters(), made.encoder.parameters(), strict=True):
        if not torch.equal(start, now):
            assert not torch.equal(slow, now)
            assert float((slow - start).norm()) < float((now - start).norm()) * 1.5
    assert made.measures.vectors.shape == (18, 6)
    assert len(made.embed(SPACE)) == 18
    assert "left 100 %" not in caplog.text  # the first step has no queue yet, which is no mistake


def test_neighbours_are_drawn_after_fit_and_test(tmp_path: Path) -> None:
    made, trainer = fit(write_classes(tmp_path, ("train", "val", "test")), DrawNeighbours(found=2), epochs=1)
    page = tmp_path / "neighbours.html"
    for split in ("val", "test"):
        text = page.read_text()
        assert f"Split ‘{split}’" in text
        assert f"<small>{split}/" in text
        assert 'title="train/' in text
        page.unlink()
        if split == "val":
            trainer.test(made, trainer.datamodule, verbose=False)


def test_the_evaluation_can_be_ones_own(tmp_path: Path) -> None:
    own = ProbeClasses(neighbours=1, label_share=0.5)
    _, trainer = fit(write_classes(tmp_path), own, epochs=1)
    assert [callback for callback in trainer.callbacks if isinstance(callback, ProbeClasses)] == [own]
    _, trainer = fit(tmp_path, epochs=1)
    assert sum(isinstance(callback, ProbeClasses) for callback in trainer.callbacks) == 1
