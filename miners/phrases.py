"""Where short names stand in texts, by whole words: for distant labels, and for names that contain one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from miners.draws import splitmix64
from miners.ragged import Ragged

NOT_IN_WORDS = "[^a-z0-9+#]+"
"""What separates words once texts are in lower case: "c++" and "c#" are words."""


class Occurrences(NamedTuple):
    """V places (V,) each: name ``name`` stands in text ``text`` at word ``start`` and is ``length`` words long."""

    text: Tensor
    name: Tensor
    start: Tensor
    length: Tensor

    def take(self, kept: Tensor) -> Occurrences:
        """Some of them, by mask or index."""
        return Occurrences(*(part[kept] for part in self))


def find_names(names: Sequence[str], texts: Sequence[str]) -> Occurrences:
    """All places where a whole name stands in a text, as a run of words; case and punctuation make no difference.

    Runs of each length are hashed to 64 bits and looked up among the names of that length: O(words x longest name).

    Returns:
        In order of text, start and length. Names without a word stand nowhere; equal names stand in the same places.

    Example:
        >>> found = find_names(["risk management", "management"], ["Enterprise Risk-Management"])
        >>> found.name.tolist(), found.start.tolist()
        ([0, 1], [1, 2])
    """
    words = _words([*names, *texts])
    scrambled = splitmix64(words.values + 1)
    own, other = words.select(torch.arange(len(names))), len(names)
    row, at = words.row_of_value, torch.arange(len(words.values))
    left = words.offsets[row + 1] - at  # words from here to the end of the text
    starts = words.offsets[:-1]
    runs = torch.zeros_like(scrambled)
    found: list[Tensor] = []
    for length in range(1, int(own.lengths.max()) + 1 if len(own) else 1):
        fits = at[left >= length]
        longer = torch.zeros_like(runs)
        longer[fits] = runs[fits] * 1_000_003 + scrambled[fits + length - 1]  # wraps, as hashes may
        runs = longer
        of_length = (own.lengths == length).nonzero()[:, 0]  # names
        keys, order = runs[starts[of_length]].sort()
        inside = fits[row[fits] >= other]
        first = torch.searchsorted(keys, runs[inside])
        number = torch.searchsorted(keys, runs[inside], right=True) - first
        within = torch.arange(int(number.sum())) - torch.repeat_interleave(number.cumsum(0) - number, number)
        name = of_length[order[torch.repeat_interleave(first, number) + within]]
        place = torch.repeat_interleave(inside, number)
        text = row[place]
        found.append(torch.stack([text - other, place - starts[text], torch.full_like(place, length), name], dim=1))
    table = torch.cat(found) if found else torch.zeros(0, 4, dtype=torch.long)
    table = table.unique(dim=0)  # sorted by text, start, length
    return Occurrences(table[:, 0], table[:, 3], table[:, 1], table[:, 2])


def without_nested(found: Occurrences) -> Occurrences:
    """Those that lie inside no longer one of the same text: the longest match wins."""
    if not len(found.text):
        return found
    spans, of_span = torch.stack([found.text, found.start, -found.length], dim=1).unique(dim=0, return_inverse=True)
    text, end = spans[:, 0], spans[:, 1] - spans[:, 2]
    reach = text * (int(end.max()) + 1) + end  # spans are sorted by text, start, longest first
    before = reach.cummax(0).values[:-1]
    nested = torch.cat([torch.zeros(1, dtype=torch.bool), (before >= reach[1:]) & (text[1:] == text[:-1])])
    return found.take(~nested[of_span])


def _words(texts: Sequence[str]) -> Ragged:
    """A number for each word of each text, in order."""
    import pyarrow as pa  # base dependency, kept out of `import miners` for its time
    import pyarrow.compute as pc

    plain = pc.replace_substring_regex(pc.utf8_lower(pa.array(texts, pa.large_string())), NOT_IN_WORDS, " ")
    lists = pc.split_pattern(plain, " ")
    flat, row = pc.list_flatten(lists), pc.list_parent_indices(lists)
    there = pc.not_equal(flat, "")
    codes = pc.filter(flat, there).dictionary_encode().indices
    rows = torch.from_numpy(pc.filter(row, there).to_numpy(zero_copy_only=False).astype("int64"))
    values = torch.from_numpy(codes.to_numpy(zero_copy_only=False).astype("int64"))
    return Ragged.from_pairs(rows, values, len(texts))
