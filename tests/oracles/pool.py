"""The pool's rules as loops over anchors and candidates: slow, obvious, and never in the product."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from miners import Block, NegativePool


def may_be_negative(pool: NegativePool, block: Block) -> list[list[bool]]:
    """Which candidates of a block are no positive, no known one, no copy, no classmate and not the anchor itself."""
    anchors, positives = pool.anchors, pool.positives
    usable = pool.usable_of(positives).tolist()
    known = pool.known.to_lists() if pool.known is not None else [[] for _ in usable]
    rows = []
    for i, own in enumerate(usable):
        mine = {name: _values(getattr(positives.items, name), i, own) for name in ("ids", "content")}
        row = []
        for j in range(len(block.items)):
            bad = False
            identity = _one(block.items.ids, i, j)
            if identity != -1:
                bad |= block.items.space == positives.items.space and identity in mine["ids"]
                bad |= block.items.space == positives.items.space and identity in known[i]
                bad |= block.items.space == anchors.space and identity == _one(anchors.ids, i, i)
            content = _one(block.items.content, i, j)
            bad |= content != -1 and (content in mine["content"] or content == _one(anchors.content, i, i))
            label = _one(block.items.labels, i, j)
            bad |= label != -1 and label == _one(anchors.labels, i, i)
            row.append(not bad)
        rows.append(row)
    return rows


def info_nce(pool: NegativePool, smoothing: float = 0.0) -> float:
    """Mean over anchors of the mean over their positives of one cross-entropy each, positive first."""
    losses = []
    columns = [(pool.scores(block), block) for block in pool.negatives]
    positives = pool.scores(pool.positives)
    for i in range(len(pool)):
        negatives = []
        for scores, block in columns:
            weight = torch.zeros_like(scores) if block.log_weight is None else block.log_weight.expand_as(scores)
            usable = pool.usable_of(block)
            negatives += [
                float(scores[i, j]) / float(pool.temperature) + float(weight[i, j])
                for j in range(scores.shape[1])
                if usable[i, j]
            ]
        own = []
        for p in range(positives.shape[1]):
            if pool.usable_of(pool.positives)[i, p]:
                logits = [float(positives[i, p]) / float(pool.temperature), *negatives]
                top = max(logits)
                log_z = top + math.log(sum(math.exp(z - top) for z in logits))
                even = sum(log_z - z for z in logits) / len(logits)
                own.append((1 - smoothing) * (log_z - logits[0]) + smoothing * even)
        if own:
            losses.append(sum(own) / len(own))
    return sum(losses) / len(losses) if losses else 0.0


def _one(values: Tensor | None, i: int, j: int) -> int:
    if values is None:
        return -1
    return int(values[j] if values.ndim == 1 else values[i, j])


def _values(values: Tensor | None, i: int, usable: list[bool]) -> set[int]:
    if values is None:
        return set()
    row = values.tolist() if values.ndim == 1 else values[i].tolist()
    return {value for value, allowed in zip(row, usable, strict=True) if allowed and value != -1}
