"""Small pictures of things, as a page holds them: base64 of a JPEG, which loads nothing."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

FILE = "thumbnails.json"
MOST_HIGH, MOST_WIDE = 112, 336  # pixels: twice what a page shows, and a panorama is wider than high


@dataclass(frozen=True)
class Thumbnails:
    """What ``thumbnails.json`` of a run's folder holds, each a base64 JPEG.

    Args:
        things: by "SPACE/ID", of what was recorded.
        queries, documents: by the name that an evaluation knows them by.
    """

    things: Mapping[str, str] = field(default_factory=dict)
    queries: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)


def thumbnail(picture: Tensor) -> str:
    """A picture uint8 (C, H, W), never enlarged, as a base64 JPEG."""
    from PIL import Image

    from hardneg.report.svg import as_shown

    image = Image.fromarray(as_shown(picture))
    image.thumbnail((MOST_WIDE, MOST_HIGH))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


def thumbnail_of(data: Any, i: int, space: str) -> str | None:
    """A thing of a data module as a thumbnail; None where it has no picture."""
    picture = data.depict(i, space) if hasattr(data, "depict") else None
    return None if picture is None else thumbnail(picture)


def read_thumbnails(folder: Path) -> Thumbnails:
    """Read ``thumbnails.json`` of a folder; none where there is no such file.

    Raises:
        ValueError: the file is not of the form that `save_thumbnails` writes.
    """
    file = folder / FILE
    if not file.exists():
        return Thumbnails()
    try:
        return Thumbnails(**{part: dict(of) for part, of in json.loads(file.read_text(encoding="utf-8")).items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: not thumbnails as WriteReport writes them ({error}). Remove the file; the page then shows texts."
        ) from None
