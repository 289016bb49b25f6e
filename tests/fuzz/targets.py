"""What is damaged, and how it is read."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch

from hardneg.benchmark.suite import read_suite
from hardneg.checkpoints import WholeCheckpointIO
from hardneg.mining.cache import EmbeddingCache, write_chunk
from miners.index import FaissIndex, TorchIndex
from miners.offline import MinedNegatives, mine
from miners.static_negatives import read_lists
from miners.store import Store
from tests.distributed.tiny import TinyEncoder

CLEAN = (ValueError, OSError)
BEFORE = Path(__file__).parents[1] / "samples" / "before"


@dataclass(frozen=True)
class Target:
    """One kind of files.

    Args:
        write: writes valid files into an empty folder.
        read: reads them, and returns something comparable; checks what holds for every answer.
        repairs: a reader that makes damaged files again instead of refusing them.
        free: the bytes are the user's own words (a suite): another answer is right, as long as it is a sound one.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    repairs: bool = False
    free: bool = False


def vectors(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def small_store() -> Store:
    return Store(vectors(20), space="document", key="k", version=2, names=[f"d{row}" for row in range(20)])


def read_store(folder: Path) -> Any:
    store = Store.load(folder / "store")
    assert torch.isfinite(store.vectors).all()
    assert len(store.ids.unique()) == len(store) == len(set(store.names or ()))
    return store.vectors.tolist(), store.ids.tolist(), store.space, store.key, store.version, store.names


def read_index(kind: Any) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        index = kind.load(folder / "index", device="cpu")
        scores, ids = index.search(vectors(5, 1), 4)
        assert torch.isfinite(scores).all()
        assert bool((ids >= 0).all())
        assert bool((ids < len(index.store)).all())
        return scores.tolist(), ids.tolist(), index.store.names

    return read


def write_table(folder: Path) -> None:
    mined().to_parquet(folder / "mined.parquet")


def mined(**how: Any) -> MinedNegatives:
    queries = Store(vectors(9, 1), space="query", names=[f"q{row}" for row in range(9)])
    return mine(queries, small_store(), [[row, row + 9] for row in range(9)], num_negatives=3, chunk=4, **how)


def sound(table: MinedNegatives) -> Any:
    """Ids in range, counts equal, numbers finite, names unique."""
    rows, queries = table.table.to_pylist(), table.queries.to_pylist()
    names = [query["query_id"] for query in queries]
    assert len(set(names)) == len(names)
    for query in queries:
        own = [row for row in rows if row["query_id"] == query["query_id"] and row["doc_id"] is not None]
        assert len(own) == query["found"]
    for row in rows:
        assert row["query_id"] in names
        assert all(row[name] is None or abs(row[name]) < float("inf") for name in ("score", "positive_score"))
    return rows, queries, json.dumps(table.metadata, sort_keys=True)


def read_table(folder: Path) -> Any:
    lists = read_lists(folder / "mined.parquet", [f"q{row}" for row in range(9)], [f"d{row}" for row in range(20)])
    return sound(MinedNegatives.load(folder / "mined.parquet")), lists.to_lists()


ENCODER = TinyEncoder()
TEXTS = [f"word{number} text" for number in range(30)]


def read_cache(folder: Path) -> Any:
    store = EmbeddingCache(folder / "cache").encode(ENCODER, TEXTS, "document")
    return store.vectors.tolist(), store.ids.tolist()


def write_parts(folder: Path) -> None:
    """A cache whose run was killed after some chunks."""
    import hardneg.mining.cache as module

    place = folder / "cache" / module.digest([ENCODER.fingerprint("document"), "document", "True"], TEXTS)
    parts = place.with_name(f"{place.name}.8.parts")
    parts.mkdir(parents=True)
    for at in (0, 8, 24):
        chunk = EmbeddingCache(None).encode(ENCODER, TEXTS[at : at + 8], "document")  # by itself, as a run encodes it
        write_chunk(parts, at, chunk.vectors.numpy())


def read_parts(folder: Path) -> Any:
    import hardneg.mining.cache as module

    size, module.CHUNK = module.CHUNK, 8
    try:
        return read_cache(folder)
    finally:
        module.CHUNK = size


def write_shards(folder: Path) -> None:
    """A run of `mine` that was killed before its end."""
    import miners.offline.shards as module

    class Killed(Exception):
        pass

    def killed(self: Any, count: int) -> None:
        raise Killed

    finish, module.Shards.finish = module.Shards.finish, killed  # type: ignore[assignment, method-assign]
    try:
        mined(out=folder / "mined.parquet")
    except Killed:
        pass
    finally:
        module.Shards.finish = finish  # type: ignore[method-assign]


def read_shards(folder: Path) -> Any:
    return sound(mined(out=folder / "mined.parquet"))


def write_checkpoint(folder: Path) -> None:
    state = {"state_dict": {"weight": vectors(20)}, "epoch": 3, "global_step": 40, "loops": {}}
    state["pytorch-lightning_version"] = pytorch_lightning.__version__
    WholeCheckpointIO().save_checkpoint(state, folder / "last.ckpt")


def read_checkpoint(folder: Path) -> Any:
    found = WholeCheckpointIO().load_checkpoint(folder / "last.ckpt", weights_only=True)
    return found["state_dict"]["weight"].tolist(), found["epoch"], found["global_step"]


SUITE = """
name: tiny
data: {tiny: [data/retrieval]}
models: {small: [models/text]}
chains:
  random: [miners/random]
  gist: [miners/gist]
seeds: 3
budget: {steps: 20}
margin: 0.01
"""


def read_any_suite(folder: Path) -> Any:
    suite = read_suite(folder / "suite.yaml", lambda name: folder / f"{name}.yaml")
    numbers = (suite.margin, suite.level, *suite.budget.values())
    assert all(abs(number) < float("inf") for number in numbers)
    assert all((suite.chains, suite.data, suite.models))
    assert len(set(suite.seeds)) == len(suite.seeds)
    return None


def write_suite(folder: Path) -> None:
    (folder / "suite.yaml").write_text(SUITE, encoding="utf-8")
    for name in ("data/retrieval", "models/text", "miners/random", "miners/gist"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text("{}")


TARGETS = {
    "store": Target(lambda folder: small_store().save(folder / "store"), read_store),
    "torch index": Target(
        lambda folder: TorchIndex(small_store(), device="cpu").save(folder / "index"), read_index(TorchIndex)
    ),
    "faiss index": Target(
        lambda folder: FaissIndex(small_store(), "Flat", device="cpu").save(folder / "index"), read_index(FaissIndex)
    ),
    "table": Target(write_table, read_table),
    "cache": Target(read_cache, read_cache, repairs=True),
    "cache, interrupted": Target(write_parts, read_parts, repairs=True),
    "mining, interrupted": Target(write_shards, read_shards, repairs=True),
    "checkpoint": Target(write_checkpoint, read_checkpoint),
    "suite": Target(write_suite, read_any_suite, free=True),
}


def mutate(content: bytes, others: Sequence[bytes], dice: random.Random) -> tuple[str, bytes]:
    """One way in which a file may be broken."""
    size = len(content)
    at = dice.randrange(size)
    end = min(size, at + dice.choice((1, 4, 64, 512)))
    how = dice.choice(("flip", "flip", "flip", "cut", "cut", "zeros", "random", "insert", "double", "other", "empty"))
    if how == "flip":
        return how, content[:at] + bytes([content[at] ^ (1 << dice.randrange(8))]) + content[at + 1 :]
    if how == "cut":
        return how, content[:at]
    if how == "zeros":
        return how, content[:at] + bytes(end - at) + content[end:]
    if how == "random":
        return how, content[:at] + dice.randbytes(end - at) + content[end:]
    if how == "insert":
        return how, content[:at] + dice.randbytes(end - at) + content[at:]
    if how == "double":
        return how, content[:end] + content[at:end] + content[end:]
    if how == "other":
        return how, dice.choice(others)
    return how, b""


class Fuzzer:
    """Tries mutations of one target; keeps a valid copy to begin from.

    Args:
        name: of the target.
        workshop: an empty folder.
    """

    def __init__(self, name: str, workshop: Path) -> None:
        self.target = TARGETS[name]
        self.valid, self.place = workshop / "valid", workshop / "place"
        self.valid.mkdir(parents=True)
        self.target.write(self.valid)
        shutil.copytree(self.valid, self.place)
        self.right = self.target.read(self.place)
        self.files = sorted(
            path.relative_to(self.valid)
            for path in self.valid.rglob("*")
            if path.is_file() and path.stat().st_size and not path.name.endswith((".lock", ".holder"))
        )

    def try_one(self, dice: random.Random) -> str:
        """Damage one file and read.

        Returns:
            "refused", "harmless", or "right" for a target that repairs or whose bytes are free.

        Raises:
            AssertionError: a failure, with what was done to which file.
        """
        shutil.rmtree(self.place)
        shutil.copytree(self.valid, self.place)
        name = dice.choice(self.files)
        others = [(self.valid / other).read_bytes() for other in self.files]
        how, broken = mutate((self.valid / name).read_bytes(), others, dice)
        (self.place / name).write_bytes(broken)
        return self.outcome(f"{how} in {name}")

    def outcome(self, what: str) -> str:
        """Read what lies in the place, and judge the answer."""
        try:
            found = self.target.read(self.place)
        except CLEAN as error:
            text = str(error)
            if str(self.place) not in text or "Traceback" in text:
                raise AssertionError(f"{what}: the error names no file: {text[:300]!r}") from error
            return "refused"
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error!s:.300}") from error
        if self.target.free:
            return "right"
        if found != self.right:
            raise AssertionError(f"{what}: another answer was accepted")
        return "right" if self.target.repairs else "harmless"


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings about damaged files are expected by the thousand."""
    loggers = [logging.getLogger(name) for name in ("miners", "hardneg")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
