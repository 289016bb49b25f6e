"""A run on disk: one shard per chunk of queries, each written whole or not at all, joined at the end."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from miners.offline.mined import MinedNegatives, beside_names, write_both
from miners.transaction import NEW, checksum, explained, locked, remove, write_file, write_json

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

PLAN = "plan.json"
DIGITS = 32  # of a part's checksum, in its name


class Shards:
    """The folder ``<out>.parts`` beside the table that is being made; holds the lock of ``out`` while it is open.

    A run that is killed at any moment leaves finished shards and perhaps hidden temporary files. The next run with the
    same plan skips the finished ones; the joined table is the same byte for byte. A shard's files carry a checksum in
    their names: one that was damaged is made again, and the log says so.

    Args:
        out: path of the Parquet file that the run will write.

    Raises:
        InUse: another run writes to ``out``.
        OSError: the place cannot be written.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.out = Path(out)
        self.folder = self.out.with_name(self.out.name + ".parts")
        self._parts: dict[str, list[Path]] = {}  # files by the number of their shard

    def __enter__(self) -> Self:
        self._lock = ExitStack()
        names = [*beside_names(self.out), self.folder.name]
        self._lock.enter_context(locked(self.out, "choose another out", also=names))
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

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
            if changed := sorted(differences(self._earlier(path), self.plan)):
                raise ValueError(
                    f"mine(out={str(self.out)!r}): a run with other inputs or settings was interrupted here; changed: "
                    f"{', '.join(changed)}. Finish that run, choose another out, or start anew with resume=False."
                )
        elif self.folder.exists():
            for part in self.folder.glob("*.parquet"):
                part.unlink()
        self.make_folder()
        with explained(path):
            for half in self.folder.glob(f".*{NEW}"):
                half.unlink()
            write_json(path, self.plan)
        self._parts.clear()
        for part in self.folder.glob("*.parquet"):
            self._parts.setdefault(part.name.partition(".")[0], []).append(part)

    def _earlier(self, path: Path) -> dict[str, Any]:
        """The plan of the run that was interrupted here."""
        try:
            plan = json.loads(path.read_bytes())
            if isinstance(plan, dict):
                return plan
        except ValueError:
            pass
        raise ValueError(
            f"{path} is damaged, so the interrupted run cannot go on. Start anew with resume=False (--no-resume)."
        )

    def path(self, number: int) -> Path | None:
        """Path of a finished shard's table of negatives, its table of queries beside it; None where there is none.

        Both are compared with their checksums; a damaged shard is removed.
        """
        found: dict[str, list[Path]] = {"": [], ".queries": []}
        for part in self._parts.pop(f"{number:06d}", []):
            if match := re.fullmatch(rf"\d+\.([0-9a-f]{{{DIGITS}}})((?:\.queries)?)\.parquet", part.name):
                if checksum(part)[:DIGITS] == match.group(1):
                    found[match.group(2)].append(part)
                    continue
                logger.warning("%s is damaged: its chunk of queries is mined again", part)
            part.unlink()
        if len(found[""]) == len(found[".queries"]) == 1:
            self._parts[f"{number:06d}"] = [found[""][0], found[".queries"][0]]
            return found[""][0]
        for part in (*found[""], *found[".queries"]):  # half of a shard, of a run that was killed
            part.unlink()
        return None

    def write(self, number: int, tables: tuple[pa.Table, pa.Table]) -> None:
        """Write one shard: its queries, then its negatives, each whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for table, kind in zip(reversed(tables), (".queries", ""), strict=True):
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            content = sink.getvalue()
            digest = hashlib.sha256(content).hexdigest()[:DIGITS]
            path = self.folder / f"{number:06d}.{digest}{kind}.parquet"
            with write_file(path) as file:
                file.write(content)
            self._parts.setdefault(f"{number:06d}", []).append(path)

    def finish(self, count: int) -> MinedNegatives:
        """Join the shards, one in memory at a time, and remove them."""
        import pyarrow.parquet as pq

        paths = [self.path(number) for number in range(count)]
        if missing := [number for number, path in enumerate(paths) if path is None]:
            raise ValueError(f"{self.folder}: shard {missing[0]} is missing or damaged. Run again: it is made again.")
        negatives = [path for path in paths if path is not None]
        queries = [self._parts[f"{number:06d}"][1] for number in range(count)]
        record = {key: value for key, value in self.plan.items() if key != "fingerprints"}
        write_both(
            self.out,
            record,
            pq.read_schema(negatives[0]),
            map(pq.read_table, negatives),
            pq.read_schema(queries[0]),
            map(pq.read_table, queries),
        )
        remove(self.folder)
        return MinedNegatives.load(self.out)


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Name the places where two plans differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path
