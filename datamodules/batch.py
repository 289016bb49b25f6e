"""What travels from the loader to a module: raw inputs by side, and who is who."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from miners.pool import Items
from miners.ragged import Ragged


@dataclass
class Batch:
    """B training rows of one process.

    Args:
        inputs: what the family encodes, by side: a list of texts, a tensor of pictures or windows, ...
            For retrieval the sides are "query" (B), "document" (B, each row's drawn positive) and, with sources,
            "drawn" (all drawn negatives of the batch, flat).
        items: identities of the same things, by side, without embeddings yet: ids, content, labels, rows.
        known: B lists of ids, in the positives' space, that must never be the row's negatives.
        rows: (B,) int64 row numbers in the training set.
    """

    inputs: Mapping[str, Any]
    items: Mapping[str, Items]
    known: Ragged
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Move tensors to a device; texts stay as they are."""
        inputs = {
            side: value.to(*args, **kwargs) if isinstance(value, Tensor) else value
            for side, value in self.inputs.items()
        }
        items = {side: value.to(*args, **kwargs) for side, value in self.items.items()}
        return Batch(inputs, items, self.known.to(*args, **kwargs), self.rows.to(*args, **kwargs))
