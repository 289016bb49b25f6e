"""Small edits that make a true caption false: a number, an attribute, the order of words, the name of a polygon."""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

NUMBER = re.compile(r"(?<![\w.,])(?:0|[1-9]\d*)(?:\.\d+)?(?!\w|[.,]\d)")  # neither "1,000" nor "007"
POLYGON = re.compile(r"(?<!\w)[A-Z]{3,}(?!\w)")


class CaptionEdit(ABC):
    """Turns a caption into captions that differ from it in one fact. Which of them are false is the edit's promise.

    Attributes:
        kind: label of what it makes, for caps and audits.
        wants: what a caption must hold to be edited, for messages.
    """

    kind: str
    wants: str

    @abstractmethod
    def __call__(self, caption: str) -> list[str]:
        """All edits of ``caption``, each once, in the order of the text; none where there is nothing to edit."""


class NumberEdit(CaptionEdit):
    """Change one number by a step.

    Args:
        steps: added to a number; a decimal keeps its digits.
        lowest, highest: of what is written; None = no bound.

    Example:
        >>> NumberEdit()("2 circles and 4 squares")
        ['1 circles and 4 squares', '3 circles and 4 squares', '2 circles and 3 squares', '2 circles and 5 squares']
    """

    kind, wants = "number", "a number in digits"

    def __init__(
        self, steps: Sequence[float] = (-1, 1), lowest: float | None = 0, highest: float | None = None
    ) -> None:
        if not steps or 0 in steps:
            raise ValueError(f"NumberEdit(steps={list(steps)}): wants steps other than 0; 0 would leave it true.")
        self.steps, self.lowest, self.highest = tuple(steps), lowest, highest

    def __call__(self, caption: str) -> list[str]:
        found = []
        for match in NUMBER.finditer(caption):
            digits = len(match[0].partition(".")[2])
            for step in self.steps:
                value = float(match[0]) + step
                if (self.lowest is None or value >= self.lowest) and (self.highest is None or value <= self.highest):
                    found.append(_put(caption, match, f"{value:.{digits}f}"))
        return _different(found, caption)


class AttributeEdit(CaptionEdit):
    """Put another word of its list in a word's place: a colour for a colour, a shape for a shape.

    Args:
        lists: of words (or phrases) that exclude each other; matched whole, as they are written.

    Raises:
        ValueError: a list with fewer than two words.

    Example:
        >>> AttributeEdit([["red", "blue"], ["left of", "above"]])("a red dot left of a dot")
        ['a blue dot left of a dot', 'a red dot above a dot']
    """

    kind, wants = "attribute", "a word of its lists"

    def __init__(self, lists: Sequence[Sequence[str]]) -> None:
        if not lists or any(len(set(words)) < 2 for words in lists):
            raise ValueError("AttributeEdit(lists=...): wants lists of two words or more, which exclude each other.")
        self.lists = tuple(tuple(words) for words in lists)

    def __call__(self, caption: str) -> list[str]:
        found = []
        for words in self.lists:
            for match in _matches(words, caption):
                found += [_put(caption, match, word) for word in words if word != match[0]]
        return _different(found, caption)


class OrderEdit(CaptionEdit):
    """Exchange two words of one list: "a red dot on a blue square" and "a blue dot on a red square".

    Args:
        lists: as for `AttributeEdit`.
    """

    kind, wants = "order", "two different words of one of its lists"

    def __init__(self, lists: Sequence[Sequence[str]]) -> None:
        self.lists = AttributeEdit(lists).lists

    def __call__(self, caption: str) -> list[str]:
        found = []
        for words in self.lists:
            for first, second in itertools.combinations(_matches(words, caption), 2):
                found.append(_put(_put(caption, second, first[0]), first, second[0]))
        return _different(found, caption)


class LettersEdit(CaptionEdit):
    """Exchange two vertex letters of a polygon, where that names another polygon.

    ABCD, its rotations and their mirror images are one polygon, so that triangles and segments have no such edit.

    Source:
        MMCLIP, arXiv 2505.20152, section 2 (which refuses rotations; mirror images are ours).

    Example:
        >>> LettersEdit()("square ABCD")
        ['square BACD', 'square ACBD']
    """

    kind, wants = "letters", "the name of a polygon, four capital letters or more"

    def __call__(self, caption: str) -> list[str]:
        found = []
        for match in POLYGON.finditer(caption):
            seen = {polygon(match[0])}
            for i, j in itertools.combinations(range(len(match[0])), 2):
                letters = list(match[0])
                letters[i], letters[j] = letters[j], letters[i]
                name = "".join(letters)
                if polygon(name) not in seen:
                    seen.add(polygon(name))
                    found.append(_put(caption, match, name))
        return _different(found, caption)


def polygon(letters: str) -> str:
    """The same name for every way to go round a polygon: the first in the alphabet.

    Example:
        >>> polygon("DCBA") == polygon("BCDA") == "ABCD"
        True
    """
    turned = [way[at:] + way[:at] for way in (letters, letters[::-1]) for at in range(len(letters))]
    return min(turned)


def _matches(words: Sequence[str], caption: str) -> list[re.Match[str]]:
    either = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return list(re.finditer(rf"(?<!\w)(?:{either})(?!\w)", caption))


def _put(caption: str, match: re.Match[str], word: str) -> str:
    return caption[: match.start()] + word + caption[match.end() :]


def _different(found: Sequence[str], caption: str) -> list[str]:
    return [one for one in dict.fromkeys(found) if one != caption]
