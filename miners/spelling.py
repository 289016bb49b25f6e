"""Names that are spelled alike: Levenshtein distances of many names at once, and each name's nearest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from miners.ragged import Ragged

LONGEST = 63  # characters that are compared: one bit each in an int64
BLOCK_NAMES = 64  # names compared with all others at a time


def edit_distances(names: Sequence[str], texts: Sequence[str]) -> Tensor:
    """(n, N) fewest insertions, deletions and replacements that turn a name into a text; upper case differs.

    Bit-parallel: a column of the table of distances is two int64 per pair, so that a pair costs some seventeen
    operations per character of the text. What stands behind the first 63 characters is not compared.

    Source:
        Myers, JACM 46(3), 1999; for whole strings: Hyyrö, 2003.

    Example:
        >>> edit_distances(["manage staff"], ["manage stock", "manage a team"]).tolist()
        [[3, 5]]
    """
    if not len(names) or not len(texts):
        return torch.zeros(len(names), len(texts), dtype=torch.long)
    codes, lengths = _codes([*names, *texts])
    own, own_lengths = codes[: len(names)], lengths[: len(names), None]  # (n, L), (n, 1)
    longest_first = lengths[len(names) :].argsort(descending=True)
    other, other_lengths = codes[len(names) :][longest_first], lengths[len(names) :][longest_first]
    place = torch.arange(codes.shape[1])
    bits = (torch.ones_like(place) << place).where(place < own_lengths, 0)  # (n, L)
    where = torch.zeros(len(names), int(codes.max()) + 1, dtype=torch.long).scatter_add_(1, own, bits)
    last = (torch.ones_like(own_lengths) << (own_lengths - 1).clamp_min(0)).where(own_lengths > 0, 0)
    distance = own_lengths.expand(-1, len(texts)).clone()
    up = torch.full_like(distance, -1)  # bit i: going down by row i of the column adds 1
    down = torch.zeros_like(distance)  # ... takes 1 away
    for column in range(int(other_lengths.max())):
        live = int((other_lengths > column).sum())  # the texts that are long enough stand in front
        up, down, score = up[:, :live], down[:, :live], distance[:, :live]
        equal = where[:, other[:live, column]]
        vertical = equal | down
        horizontal = (((equal & up) + up) ^ up) | equal
        more, less = down | ~(horizontal | up), up & horizontal
        score += ((more & last) != 0).long() - ((less & last) != 0).long()
        more, less = (more << 1) | 1, less << 1
        up, down = less | ~(vertical | more), more & vertical
    distance = distance.where(own_lengths > 0, other_lengths)
    return distance[:, longest_first.argsort()]


def nearest_names(names: Sequence[str], number: int, excluded: Ragged) -> Ragged:
    """The ``number`` names nearest in lower case to each name, by distance, then by id; never itself.

    Args:
        names: N; an empty one is near to nobody.
        number: neighbours of each.
        excluded: N lists of ids that are no neighbours.
    """
    lower = [name.lower() for name in names]
    there = torch.tensor([bool(name) for name in lower])
    ids, many = torch.arange(len(names)), min(number, max(len(names) - 1, 0))
    nobody = (LONGEST + 1) * len(names)
    lists = []
    for start in range(0, len(names), BLOCK_NAMES):
        rows = ids[start : start + BLOCK_NAMES]
        ranked = edit_distances([lower[row] for row in rows.tolist()], lower) * len(names) + ids  # (n, N)
        ranked[torch.arange(len(rows)), rows] = nobody
        out = excluded.select(rows)
        ranked[out.row_of_value, out.values] = nobody
        ranked[~there[rows]] = nobody
        ranked[:, ~there] = nobody
        nearest = ranked.topk(many, dim=1, largest=False).values.sort(dim=1).values
        row = (nearest < nobody).nonzero()[:, 0]
        lists.append(torch.stack([rows[row], nearest[nearest < nobody] % len(names)], dim=1))
    pairs = torch.cat(lists) if lists else torch.zeros(0, 2, dtype=torch.long)
    return Ragged.from_pairs(pairs[:, 0], pairs[:, 1], len(names))


def _codes(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(N, L) numbers of characters, 0 behind the end, and (N,) lengths."""
    letters = np.array([text[:LONGEST] for text in texts])
    lengths = torch.from_numpy(np.char.str_len(letters).astype(np.int64))
    points = letters.astype(f"<U{max(1, int(lengths.max()))}").view(np.uint32).reshape(len(letters), -1)
    kinds, codes = np.unique(points, return_inverse=True)
    codes = codes.reshape(points.shape) + (0 if kinds[0] == 0 else 1)  # 0 stays the padding's
    return torch.from_numpy(codes.astype(np.int64)), lengths
