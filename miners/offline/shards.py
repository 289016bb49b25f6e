"""A run on disk: one shard per chunk of queries, each written whole or not at all, joined at the end."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miners.offline.mined import MinedNegatives, beside, write_joined, write_table
from miners.store import write_json

if TYPE_CHECKING:
    import pyarrow as pa

PLAN = "plan.json"


class Shards:
    """The folder ``<out>.parts`` beside the table that is being made.

    A run that is killed at any moment leaves finished shards and perhaps a hidden temporary file. The next run with the
    same plan skips the finished ones; the joined table is the same byte for byte.

    Args:
        out: path of the Parquet file that the run will write.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.out = Path(out)
        self.folder = self.out.with_name(self.out.name + ".parts")

    def make_folder(self) -> Path:
        """Create the folder, or say why it cannot be."""
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def open(self, plan: dict[str, Any], resume: bool) -> None:
        """Start a run, or go on with the one found here if it has the same plan.

        Raises:
            ValueError: the run found here had other inputs or settings; the message names what differs.
        """
        self.plan = json.loads(json.dumps(plan, sort_keys=True))
        path = self.folder / PLAN
        if path.exists() and resume:
            before = json.loads(path.read_text())
            if changed := sorted(differences(before, self.plan)):
                raise ValueError(
                    f"mine(out={str(self.out)!r}): a run with other inputs or settings was interrupted here; changed: "
                    f"{', '.join(changed)}. Finish that run, choose another out, or start anew with resume=False."
                )
        elif self.folder.exists():
            for part in self.folder.glob("*.parquet"):
                part.unlink()
        self.make_folder()
        with explained(path):
            write_json(path, self.plan)

    def path(self, number: int) -> Path:
        """Path of a shard's table of negatives; its table of queries stands beside it."""
        return self.folder / f"{number:06d}.parquet"

    def has(self, number: int) -> bool:
        """Whether a shard is finished: the negatives are written last."""
        return self.path(number).exists()

    def write(self, number: int, tables: tuple[pa.Table, pa.Table]) -> None:
        """Write one shard so that it is there whole or not at all."""
        negatives, queries = tables
        path = self.path(number)
        with explained(path):
            write_table(queries, beside(path))
            write_table(negatives, path)

    def finish(self, count: int) -> MinedNegatives:
        """Join the shards, one in memory at a time, and remove them."""
        paths = [self.path(number) for number in range(count)]
        record = {key: value for key, value in self.plan.items() if key != "fingerprints"}
        with explained(self.out):
            write_joined([beside(path) for path in paths], beside(self.out), record)
            write_joined(paths, self.out, record)
        shutil.rmtree(self.folder)
        return MinedNegatives.load(self.out)


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Name the places where two plans differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one sentence what went wrong on the disk and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            advice = "no room on the disk. What is finished is kept: make room and run again to go on"
        else:
            advice = "cannot be written there. Choose another place, or change the permissions"
        raise OSError(error.errno, f"{path}: {advice} ({error.strerror or error}).") from error
