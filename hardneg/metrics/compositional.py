"""Does a picture know its caption from one that differs in one fact? Sets of minimal pairs, as in Winoground."""

from __future__ import annotations

import torch
from torch import Tensor

from miners.ragged import Ragged


def compositional_scores(images: Tensor, captions: Tensor, families: Tensor) -> dict[str, Tensor]:
    """Score each picture among the captions of its set, each caption among the pictures of its set, and both.

    "text": the picture's own caption is above all others of the set; "image": the caption's own picture is; "group":
    both. "... of all": the whole set is right, Winoground's score where sets have two pairs. A tie is wrong.

    Args:
        images, captions: (N, d) vectors of equal length each; row i of both is a true pair.
        families: (N,) int64 set of each pair; -1 = none, not scored.

    Returns:
        float64 0 or 1 by name, each (n,): pairs in a set of at least two, in their order.

    Source:
        Winoground, arXiv 2204.03162, section 3; sets of any size: Generative-Negative-Mining's code.

    Example:
        >>> picture = torch.tensor([[1.0, 0], [0, 1]])
        >>> compositional_scores(picture, picture, torch.tensor([0, 0]))["group"].tolist()
        [1.0, 1.0]
    """
    scored = chosen_pairs(families)
    if not len(scored):
        names = ("text", "image", "group", "text of all", "image of all", "group of all")
        return {name: torch.zeros(0, dtype=torch.float64) for name in names}
    number, code = families[scored].unique(return_inverse=True)
    members = Ragged.from_pairs(code, scored, len(number)).padded()  # (F, m)
    there = members >= 0
    at = members.clamp_min(0)
    scores = torch.einsum("fid,fjd->fij", images[at], captions[at])  # pictures down, captions across
    own = scores.diagonal(dim1=1, dim2=2)
    other = ~torch.eye(at.shape[1], dtype=torch.bool) & there[:, None, :] & there[:, :, None]
    text = ~((scores >= own[:, :, None]) & other).any(2)
    image = ~((scores >= own[:, None, :]) & other).any(1)
    found = {"text": text, "image": image, "group": text & image}
    found |= {f"{name} of all": (of | ~there).all(1, keepdim=True).expand_as(there) for name, of in found.items()}
    order = members[there].argsort()
    return {name: of[there][order].double() for name, of in found.items()}


def chosen_pairs(families: Tensor) -> Tensor:
    """(n,) the pairs that `compositional_scores` scores."""
    _, code, size = families.unique(return_inverse=True, return_counts=True)
    return ((families >= 0) & (size[code] > 1)).nonzero()[:, 0]
