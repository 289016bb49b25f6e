"""How the families are evaluated: what Lightning calls, once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from datamodules.batch import Batch
from hardneg.modules.base import ContrastiveModule
from hardneg.modules.gather import joined
from miners.base import process_count, process_rank
from miners.pool import Items


class EvaluatedModule(ContrastiveModule):
    """A family that measures a split when its epoch is over.

    It writes ``_evaluate``, and ``_collect`` where the batches of a split are encoded one by one: of W processes, each
    is handed all batches and encodes every W-th. The data module names its splits ``val_split`` and ``test_split``.
    """

    _kept: tuple[dict[str, Tensor], ...] = ()

    def _collect(self, batch: Batch, split: str) -> dict[str, Tensor] | None:
        """Tensors (n, ...) to keep of a batch of a split; None where ``_evaluate`` encodes the split itself."""
        return None

    def _evaluate(self, split: str, prefix: str) -> None:
        """Measure a split, alike on every process: set ``measures``, and log their means below ``prefix``."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is evaluated: write _evaluate.")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._keep(batch, batch_idx, self.data.val_split)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._keep(batch, batch_idx, self.data.test_split)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._evaluate(self.data.val_split, "val")
        self._kept = ()

    def on_test_epoch_end(self) -> None:
        self._evaluate(self.data.test_split, "test")
        self._kept = ()

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Items:
        (side,) = batch.items
        encoder: Any = self.encoder
        return replace(batch.items[side], embeddings=encoder(batch.inputs[side], side).float())

    def _keep(self, batch: Batch, batch_idx: int, split: str) -> None:
        if batch_idx % process_count() == process_rank() and (found := self._collect(batch, split)) is not None:
            self._kept = (*self._kept, found)

    def _kept_by_all(self, nothing: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What all processes have kept, end to end; ``nothing`` (0, ...) is what one without a batch adds."""
        mine = self._kept or [{name: part.to(self.device) for name, part in nothing.items()}]
        return joined({name: torch.cat([part[name] for part in mine]) for name in nothing})

    def _vectors_of_all(self, split: str, ids: Tensor, dim: int, things: str = "queries") -> Tensor:
        """(n, dim), on the CPU, of the things ``ids`` (n,), ascending, whose "ids" and "vectors" were kept.

        Raises:
            ValueError: other things than those have been encoded.
        """
        found = self._kept_by_all({"ids": torch.empty(0, dtype=torch.long), "vectors": torch.empty(0, dim)})
        order = found["ids"].argsort()
        if found["ids"][order].tolist() != ids.tolist():
            raise ValueError(
                f"{len(found['ids'])} {things} of the split '{split}' were encoded, and it has {len(ids)}: the loader "
                "did not hand all of them to every process. Set trainer.use_distributed_sampler=false, and no limit "
                "on batches."
            )
        return found["vectors"][order].cpu()
