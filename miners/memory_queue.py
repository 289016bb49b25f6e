"""A memory queue: the embeddings of past batches as further negatives."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from miners.base import PoolMiner
from miners.pool import Block, Items, NegativePool


class MemoryQueue(PoolMiner):
    """Keep the last candidates of past steps, without gradient, and add them as negatives.

    With a module's ``momentum`` this is MoCo's queue (the keys come from the slow copy of the encoder), without it the
    cross-batch memory of XBM, whose vectors are as old as the queue is long. Ids, content, labels and guide vectors are
    queued along, so that the pool masks an anchor's own positive when it is met again, and a guide can judge.

    The queue is written after backward, with the batch of all processes in the order of their ranks: it is the same on
    each. Evaluation reads it and never writes. What is not written yet is no candidate.

    Args:
        size: candidates kept; the oldest are overwritten.
        side: what is queued: the batch's "positives", or its "anchors" (which are candidates only in families whose
            anchors and positives come from one encoder).

    Shapes:
        Adds one block of (B, written), written <= size.

    Source:
        MoCo, arXiv 1911.05722, section 3.2; XBM, arXiv 1912.06798. Differs: unwritten slots hold nothing instead of
        random vectors; any batch size, since the ring is written modulo its size.
    """

    needs = frozenset({"sides", "embeddings"})

    def __init__(self, size: int = 4096, side: Literal["positives", "anchors"] = "positives") -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"MemoryQueue(size={size}): wants at least 1.")
        if side not in ("positives", "anchors"):
            raise ValueError(f"MemoryQueue(side='{side}'): wants 'positives' or 'anchors'.")
        self.size = size
        self.side = side
        # plain tensors, not buffers: their shape is known with the first batch, and every process has the same ones,
        # so that DDP need not send them before each step
        self._ring: Items | None = None  # (min(size, seen), ...)
        self._pointer = 0  # the slot that is written next

    def __len__(self) -> int:
        """How many candidates are queued."""
        return 0 if self._ring is None else len(self._ring)

    def forward(self, pool: NegativePool) -> NegativePool:
        if self._ring is None:
            return pool
        return pool.add(Block(self._ring.to(pool.anchors._need("embeddings").device), "queue"))

    @torch.no_grad()
    def commit(self, pool: NegativePool) -> None:
        """Queue the candidates of all processes."""
        if not pool.context.training:
            return
        if self.side not in pool.sides:
            raise ValueError(
                f"MemoryQueue(side='{self.side}'): the pool's sides are {sorted(pool.sides)}; queue another."
            )
        new = pool.sides[self.side]
        if not isinstance(new, Items) or new.embeddings is None:
            raise ValueError(f"MemoryQueue queues vectors; the side '{self.side}' has scores only. Leave it out.")
        names = [name for name in new.tensors() if name != "rows"]  # a row of a past batch says nothing
        new = Items(space=new.space, **{name: getattr(new, name) for name in names}).detach()
        new = new.take(slice(-self.size, None))  # a batch may be longer than the queue
        if not len(new):
            return
        ring = new.take(slice(0, 0)) if self._ring is None else self._ring
        slots = (self._pointer + torch.arange(len(new), device=new._need("embeddings").device)) % self.size
        length = min(self.size, max(len(ring), self._pointer + len(new)))
        self._ring = Items(
            space=new.space,
            **{name: _written(getattr(ring, name), getattr(new, name), slots, length) for name in names},
        )
        self._pointer = (self._pointer + len(new)) % self.size

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the queue, and where it is written next."""
        ring = None if self._ring is None else {"space": self._ring.space, **self._ring.tensors()}
        return {"ring": ring, "pointer": self._pointer}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with the queue of a checkpoint.

        Raises:
            ValueError: a queue longer than this one.
        """
        ring = None if state["ring"] is None else Items(**state["ring"])
        if ring is not None and (len(ring) > self.size or state["pointer"] >= self.size):
            raise ValueError(
                f"the checkpoint's queue holds {len(ring)} candidates, and MemoryQueue(size={self.size}) has no room "
                "for them. Set the size that it was trained with."
            )
        if ring is not None and 0 < len(ring) < self.size and state["pointer"] != len(ring):
            raise ValueError(
                f"the checkpoint's queue of {len(ring)} was full, and MemoryQueue(size={self.size}) would not be. Set "
                "the size that it was trained with."
            )
        self._ring, self._pointer = ring, int(state["pointer"])


def _written(old: Tensor, new: Tensor, slots: Tensor, length: int) -> Tensor:
    """(length, ...) ``old`` with ``new`` in ``slots``; a copy, since this step's pool still shows the old queue."""
    out = old.new_empty(length, *old.shape[1:])
    out[: len(old)] = old
    out[slots] = new.to(old.dtype)
    return out
