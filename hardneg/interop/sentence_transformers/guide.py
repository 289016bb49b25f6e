"""A frozen model that judges candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from hardneg.interop.sentence_transformers.content import device_of, tokens_of


class Guide:
    """The guide's vectors of what the student is about to read.

    No module: a guide has no gradient, and belongs into no optimiser and no checkpoint of the student.

    Args:
        model: of the guide.
        student: whose tokens it is given, as they are where both read alike, else decoded.
        allow_same: let the guide start from the student's own weights.

    Raises:
        ValueError: the student's own weights, or a student whose tokens cannot be turned back into text.
    """

    def __init__(self, model: SentenceTransformer, student: SentenceTransformer, allow_same: bool = False) -> None:
        if not allow_same and _same_weights(student, model):
            raise ValueError(
                "the guide has the student's own weights: it would judge by what the student already believes. "
                "Give a stronger guide, or set allow_same_guide=True."
            )
        self.model = model.eval()
        self.tokenizer = getattr(student, "tokenizer", None)
        self.retokenize = _read_otherwise(student, model)

    @torch.no_grad()
    def vectors(self, features: Mapping[str, Any]) -> Tensor:
        """(n, g) vectors of a column's rows."""
        device = device_of(features)
        if self.model.device != device:
            self.model.to(device)
        if self.retokenize:
            tokens, offsets = tokens_of(features)
            lists = [part.tolist() for part in tokens.tensor_split(offsets[1:-1].cpu())]
            texts = self.tokenizer.batch_decode(lists, skip_special_tokens=True)  # type: ignore[union-attr]
            features = batch_to_device(self.model.preprocess(texts), device)
        found: Tensor = self.model(dict(features))["sentence_embedding"]  # a copy: models write into what they get
        return found


def _same_weights(student: nn.Module, guide: nn.Module) -> bool:
    left, right = student.state_dict(), guide.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name].cpu(), right[name].cpu()) for name in left)


def _read_otherwise(student: SentenceTransformer, guide: SentenceTransformer) -> bool:
    """Whether the guide must be given text, since the student's tokens would mean something else to it."""
    ours, theirs = getattr(student, "tokenizer", None), getattr(guide, "tokenizer", None)
    if ours is not None and theirs is not None and ours.get_vocab() == theirs.get_vocab():
        # tokens cut for the student may still be too many for the guide
        return (guide.max_seq_length or 0) < (student.max_seq_length or 0)
    if not hasattr(ours, "batch_decode"):
        raise ValueError(
            "the guide reads other tokens than the student, and the student's cannot be turned back into text. Give a "
            "guide with the student's tokenizer, or a student with a tokenizer of transformers."
        )
    return True
