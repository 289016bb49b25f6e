"""What the rows of a column are, told by what the tokenizer made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from miners.draws import splitmix64
from miners.ragged import Ragged

MORE_THAN_TOKENS = ("pixel_values", "pixel_values_videos", "input_features", "input_values")


def content_of(features: Mapping[str, Any]) -> Tensor | None:
    """(n,) int64 hash of each row's tokens, however they are padded; None where tokens do not say everything."""
    if any(name in features for name in MORE_THAN_TOKENS):
        return None
    tokens, offsets = tokens_of(features)
    if not len(offsets):
        return None
    lists = Ragged(offsets, tokens)
    row = lists.row_of_value
    place = torch.arange(len(tokens), device=tokens.device) - offsets[row]
    mixed = splitmix64(splitmix64(tokens) + place)
    total = torch.zeros(len(lists), dtype=torch.long, device=tokens.device).index_add_(0, row, mixed)
    return splitmix64(total + lists.lengths) & 0x7FFF_FFFF_FFFF_FFFF  # never NOBODY


def tokens_of(features: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Tokens of all rows end to end (V,), and where rows begin (n + 1,); no offsets where the layout is unknown."""
    ids = features.get("input_ids")
    if not isinstance(ids, Tensor) or ids.is_floating_point():
        return torch.empty(0), torch.empty(0)
    if "cu_seq_lens_q" in features:  # flattened for attention without padding
        return ids.flatten().long(), features["cu_seq_lens_q"].long()
    if "offsets" in features:  # bags of words
        starts = features["offsets"].long()
        return ids.long(), torch.cat([starts, starts.new_tensor([len(ids)])])
    mask = features.get("attention_mask", torch.ones_like(ids)).bool()
    lengths = mask.sum(1)
    return ids[mask].long(), torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def device_of(features: Mapping[str, Any]) -> torch.device:
    """Where a column's tensors are."""
    return next(value.device for value in features.values() if isinstance(value, Tensor))


def rows_in(features: Mapping[str, Any]) -> int:
    """How many rows a column of anything has."""
    return next(len(value) for value in features.values() if isinstance(value, Tensor) and value.ndim)
