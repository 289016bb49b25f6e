"""Which weights a vector depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def leaves_behind(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Every leaf that wants a gradient from ``tensors``, each once, found along their graph without running backward.

    Raises:
        ValueError: a reentrant checkpoint on the way, which hides the weights behind it.
    """
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    ahead = [tensor.grad_fn for tensor in tensors]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        elif node.name() == "CheckpointFunctionBackward":
            raise ValueError(
                "the encoder checkpoints its activations in the old, reentrant way, which hides its weights. Set "
                "use_reentrant=False (transformers: gradient_checkpointing_kwargs), or chunk_size: null."
            )
        ahead += [following for following, _ in node.next_functions]
    return list(found.values())
