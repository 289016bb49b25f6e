"""One encoder for queries and another for documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hardneg.encoders.base import Encoder
from hardneg.encoders.images import ImageEncoder


class Towers(Encoder):
    """Two image encoders that share nothing: for views as different as radar and light, or a street and the sky.

    Args:
        query: of queries.
        document: of documents (references); its vectors are as long as the other's.

    Raises:
        ValueError: vectors of different lengths.
    """

    one_space = False

    def __init__(self, query: ImageEncoder, document: ImageEncoder) -> None:
        super().__init__()
        if query.dim != document.dim:
            raise ValueError(
                f"Towers of {query.dim} and {document.dim} dims cannot be compared. Set dim of both alike, with a head."
            )
        self.query, self.document = query, document

    @property
    def dim(self) -> int:
        return self.query.dim

    def forward(self, inputs: Any, kind: str) -> Tensor:
        return self.tower(kind)(inputs, kind)

    def tower(self, kind: str) -> ImageEncoder:
        """The encoder of ``kind``: "query" has one, everything else the other."""
        return self.query if kind == "query" else self.document

    def embed(self, inputs: Sequence[Any], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        return self.tower(kind).embed(inputs, kind, batch_size, progress)

    def fingerprint(self, kind: str) -> str:
        return self.tower(kind).fingerprint(kind)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both encoders, each in its folder; `load_towers` reads them."""
        folder = Path(folder)
        self.query.save_pretrained(folder / "query")
        self.document.save_pretrained(folder / "document")
        (folder / "hardneg.yaml").write_text(
            "# rebuilds these encoders in a recipe: model.init_args.encoder\n"
            f"class_path: hardneg.encoders.load_towers\ninit_args:\n  folder: {folder.name}\n"
        )


def load_towers(folder: str) -> Towers:
    """Read a folder that `Towers.save_pretrained` wrote; nothing in it is run.

    Args:
        folder: with the folders query and document.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: a backbone of an unknown class (read both with `ImageEncoder.from_pretrained` and make `Towers` of
            them), or weights of another network.
    """
    return Towers(*(ImageEncoder.from_pretrained(Path(folder) / side) for side in ("query", "document")))
