"""The probe of frozen features, on features that a test makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hardneg.callbacks import ProbeClasses


def test_it_evaluates_any_module_with_features() -> None:
    labels = torch.arange(20) % 2
    vectors = torch.nn.functional.one_hot(labels, 2).float() + 0.1 * torch.rand(20, 2)
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(
        features=lambda data, ids, space: vectors[ids], log_dict=lambda values, **how: logged.update(values)
    )
    data = SimpleNamespace(
        labelled=lambda share, seed: torch.arange(10),
        queries=lambda split: (torch.arange(10, 20), None),
        spaces=("image",),
        labels=labels,
        names=lambda space: [str(i) for i in range(20)],
        val_split="dev",
        test_split="test",
    )
    trainer: Any = SimpleNamespace(sanity_checking=False, datamodule=data)
    ProbeClasses(neighbours=3).on_validation_epoch_end(trainer, module)
    ProbeClasses().on_test_epoch_end(trainer, module)
    names = ("accuracy", "macro-F1", "kNN")
    assert logged == {f"{split}/{name}": 1.0 for split in ("val", "test") for name in names}
    assert module.measures.truth.tolist() == labels[10:].tolist()


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="neighbours=0"):
        ProbeClasses(neighbours=0)
    with pytest.raises(ValueError, match="has no features"):
        ProbeClasses().setup(SimpleNamespace(), SimpleNamespace(), "fit")  # type: ignore[arg-type]
