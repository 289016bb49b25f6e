"""Harmless payloads: each touches a file when it runs, and the tests look for the file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from miners.transaction import _own_checksum, checksum, manifest_in
from tests.distributed.tiny import TinyEncoder


class Harmless(TinyEncoder):
    """A tiny encoder that can be saved."""

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)


class Marking(TinyEncoder):
    """An encoder that touches a file when it is made."""

    def __init__(self, mark: str, trust_remote_code: bool = False) -> None:
        super().__init__()
        Path(mark).touch()


class Pickled:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def sign(manifest: Path, **names: str) -> None:
    """Give a manifest the checksums of its files as they are now, and names of files by role: a stranger can."""
    record = json.loads(manifest.read_text())
    for role, entry in record["files"].items():
        entry["name"] = names.get(role, entry["name"])
        file = manifest.parent / entry["name"]
        file = manifest_in(file) if file.is_dir() else file
        entry |= {"bytes": file.stat().st_size, "sha256": checksum(file)}
    record["checksum"] = _own_checksum(record)
    manifest.write_text(json.dumps(record))


def pickled_type(mark: Path) -> dict[str, bytes]:
    """Metadata of a column: a type that is a pickle, which old versions of pyarrow unpickled with the schema."""
    return {
        "ARROW:extension:name": b"arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Pickled(mark)),
    }


def not_annotated(mark: str):
    """A function that does not say what it returns; it must not be called to find out."""
    Path(mark).touch()
    return TinyEncoder()


def custom_code(folder: Path, mark: Path) -> Path:
    """A sentence-transformers folder whose modules.json names a class of a Python file beside it."""
    folder.mkdir(parents=True)
    (folder / "modeling_evil.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from sentence_transformers.sentence_transformer.modules import Pooling\nclass Evil(Pooling): pass\n"
    )
    (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "modeling_evil.Evil"}]')
    (folder / "config.json").write_text('{"model_type": "bert", "auto_map": {"AutoModel": "modeling_evil.Evil"}}')
    return folder
