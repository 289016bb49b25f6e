"""Texts with names: external ids become positions, equal texts get equal hashes, and millions of them stay small."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

import pyarrow as pa
import torch
from torch import Tensor

from datamodules.readers import Place

BLOCK_TEXTS = 1024  # texts that are Python strings at one time while a collection is built


def normalise(text: str) -> str:
    """Fold what makes no difference to a reader: compatibility forms (NFKC), case, and runs of white space.

    Idempotent: the fold is applied twice, since folding case may open a form that composes anew (Unicode D146).

    Example:
        >>> normalise("  The ﬁrst\\tSTRASSE ") == normalise("the first straße")
        True
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKD", text)
    for _ in range(2):
        folded = unicodedata.normalize("NFKD", folded.casefold())
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def content_hash(text: str) -> int:
    """Hash the normalised text to 63 bits, alike in every process and on every machine; never negative.

    Two of a million different texts collide with a chance of 5e-8.
    """
    return int.from_bytes(blake2b(normalise(text).encode(), digest_size=8).digest(), "little") >> 1


class Vocabulary(Sequence[str]):
    """External names <-> int64 positions: the name of position ``i`` is ``vocabulary[i]``.

    Args:
        names: all different.

    Raises:
        ValueError: a name is there twice; it is named.

    Example:
        >>> names = Vocabulary(["MED-10", "MED-14"])
        >>> names.ids(["MED-14", "MED-10"]), names[1]
        (tensor([1, 0]), 'MED-14')
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: list[str] = []
        self._positions: dict[str, int] = {}
        for name in names:
            if not self.add(name):
                raise ValueError(f"'{name}' stands twice among the names; each must be there once.")

    def add(self, name: str) -> bool:
        """Give ``name`` the next position; False where it has one already."""
        if name in self._positions:
            return False
        self._positions[name] = len(self._names)
        self._names.append(name)
        return True

    def position(self, name: str) -> int | None:
        """The position of one name, None where it is unknown."""
        return self._positions.get(name)

    def ids(self, names: Iterable[str]) -> Tensor:
        """(n,) positions of the names.

        Raises:
            KeyError: an unknown name; it is named.
        """
        return torch.tensor([self._positions[name] for name in names], dtype=torch.long)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, at):
        return self._names[at]


class Texts(Sequence[str]):
    """M texts in one Arrow array, with names and content hashes; the id of a text is its position.

    A list of Python strings costs 50 bytes more for each and is copied into every loader worker page by page, because
    counting references writes to it; an Arrow array is neither.

    Args:
        texts: an Arrow array of strings.
        names: external id of each.
        content: (M,) `content_hash` of each.
        space: "query" or "document".
    """

    def __init__(self, texts: pa.LargeStringArray, names: Vocabulary, content: Tensor, space: str) -> None:
        self._texts = texts
        self.names = names
        self.content = content
        self.space = space

    @classmethod
    def read(cls, records: Iterable[tuple[Place, str, str]], space: str) -> Texts:
        """Collect (place, name, text) records.

        Raises:
            ValueError: a name that was there before, or a text without a letter in it; file and line are named.
        """
        builder = TextsBuilder(space)
        for place, name, text in records:
            builder.add(place, name, text)
        return builder.build()

    def take(self, ids: Tensor | Sequence[int]) -> list[str]:
        """The texts of ``ids`` (n,), in that order.

        Raises:
            IndexError: an id outside [0, M).
        """
        return self._texts.take(pa.array(torch.as_tensor(ids, dtype=torch.long).numpy())).to_pylist()

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK_TEXTS):
            yield from self._texts.slice(start, BLOCK_TEXTS).to_pylist()

    def __getitem__(self, at):
        if isinstance(at, slice):
            return self.take(range(len(self))[at])
        return self._texts[at].as_py()


class TextsBuilder:
    """Collect texts one by one; only a block of them is Python strings at any time.

    Args:
        space: "query" or "document".
    """

    def __init__(self, space: str) -> None:
        self.space = space
        self.names = Vocabulary()
        self._content: list[int] = []
        self._block: list[str] = []
        self._chunks: list[pa.Array] = []

    def add(self, place: Place, name: str, text: str) -> int:
        """Take one text; give its id.

        Raises:
            ValueError: a name that was there before, or a text without a letter in it; file and line are named.
        """
        if not self.names.add(name):
            raise ValueError(f"{place}: duplicate id: {self.space} '{name}' was there before; ids must be unique.")
        if not text or text.isspace():
            raise ValueError(f"{place}: empty text: {self.space} '{name}' has nothing to encode. Remove or fill it.")
        self._content.append(content_hash(text))
        self._block.append(text)
        if len(self._block) == BLOCK_TEXTS:
            self._flush()
        return len(self.names) - 1

    def add_once(self, place: Place, text: str) -> int:
        """Take a text that has no name; the same text again has the same id, and a name made of its hash.

        Raises:
            ValueError: a text without a letter in it; file and line are named.
        """
        name = blake2b(text.encode(), digest_size=12).hexdigest()
        known = self.names.position(name)
        return self.add(place, name, text) if known is None else known

    def build(self) -> Texts:
        """All texts taken so far."""
        self._flush()
        texts = pa.chunked_array(self._chunks, pa.large_string()).combine_chunks()
        return Texts(texts, self.names, torch.tensor(self._content, dtype=torch.long), self.space)

    def _flush(self) -> None:
        self._chunks.append(pa.array(self._block, pa.large_string()))
        self._block = []
