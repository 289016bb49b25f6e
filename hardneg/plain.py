"""Words out of a file, for a terminal."""

from __future__ import annotations

import re

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    r"""Write the characters that a terminal obeys as escapes: names in a file could clear it, or hide what came before.

    Example:
        >>> plain("query 'a\x1b[2Jb' is unknown")
        "query 'a\\x1b[2Jb' is unknown"
    """
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)
