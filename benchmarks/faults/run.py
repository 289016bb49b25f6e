"""Kill every kind of writer: at each of its steps, and at random times; what is read afterwards?

    python benchmarks/faults/run.py --kills 200 --out benchmarks/faults/table.md
    python benchmarks/faults/run.py --tree ../an_older_checkout --out benchmarks/faults/before.md

A kind writes one version over another. Afterwards a reader finds the old version or the new one (right), another answer
(a mixture), or an error (nothing can be read). `tests/faults.py` ends a forked child before an open for writing, an
fsync, a rename or an unlink, or in the middle of a write. The times are drawn evenly over the time that writing takes.
About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
OUTCOMES = ("old", "new", "mixture", "nothing")
ROWS, DIM, QUERIES = 4000, 64, 300


@dataclass(frozen=True)
class Kind:
    """One writer.

    Args:
        write: writes version 1 or 2 into a folder.
        read: answers with something that tells versions apart; raises if there is nothing to read.
        first: there is an old version before.
        once_more: a second run of the same writer must come through after a kill.
        every: distance between the steps that are tried.
    """

    write: Callable[[Path, int], object]
    read: Callable[[Path], Any]
    first: bool = True
    once_more: bool = True
    every: int = 1


def kinds() -> dict[str, Kind]:
    """All kinds; what they need is imported before the first fork."""
    import numpy as np
    import pytorch_lightning as pl
    import torch
    from tqdm import tqdm

    from hardneg.mining.cache import EmbeddingCache
    from miners.index import FaissIndex, TorchIndex
    from miners.offline import MinedNegatives, mine
    from miners.store import Store
    from tests.distributed.tiny import TinyEncoder

    torch.set_num_threads(1)  # a forked child has no threads
    tqdm.set_lock(threading.RLock())  # its default is shared with children: a killed one would keep it for ever
    FaissIndex(Store(torch.eye(4)))
    import faiss

    faiss.omp_set_num_threads(1)

    def vectors(version: int, rows: int = ROWS) -> torch.Tensor:
        generator = torch.Generator().manual_seed(version)
        return torch.nn.functional.normalize(torch.randn(rows, DIM, generator=generator), dim=1)

    made = {(version, rows): vectors(version, rows) for version in (1, 2) for rows in (ROWS, ROWS + 50)}

    def store(version: int, grows: bool = False) -> Store:
        return Store(made[version, ROWS + 50 if grows and version == 2 else ROWS], version=version)

    def index(make: Any, grows: bool = False) -> Kind:
        indices = {version: make(store(version, grows)) for version in (1, 2)}

        def read(folder: Path) -> Any:
            loaded = type(indices[1]).load(folder / "F", device="cpu")
            scores, ids = loaded.search(made[1, ROWS][:20], 3)
            return loaded.store.version, loaded.store.vectors.sum().item(), scores.tolist(), ids.tolist()

        return Kind(lambda folder, version: indices[version].save(folder / "F"), read)

    def read_store(folder: Path) -> Any:
        loaded = Store.load(folder / "S")
        return loaded.version, loaded.vectors.double().sum().item()

    corpus, asked, known = made[1, ROWS], made[2, ROWS][:QUERIES], [[row] for row in range(QUERIES)]

    def mined(folder: Path, version: int) -> None:
        mine(
            asked,
            Store(corpus),
            known,
            num_negatives=2 * version,
            search_depth=20,
            chunk=100,
            out=folder / "mined.parquet",
            resume=False,
            progress=False,
        )

    def read_table(folder: Path) -> Any:
        table = MinedNegatives.load(folder / "mined.parquet")
        return table.table.to_pylist(), table.queries.to_pylist()

    texts = {version: [f"text {version} word{row}" for row in range(3000)] for version in (1, 2)}
    encoder = TinyEncoder()

    def cached(folder: Path, version: int) -> None:
        EmbeddingCache(folder / "cache").encode(encoder, texts[2], "document")

    def read_cache(folder: Path) -> Any:
        """What the next run gets: a kill costs the chunk that was being made."""
        return EmbeddingCache(folder / "cache").encode(encoder, texts[2], "document").vectors.double().sum().item()

    class Module(pl.LightningModule):
        def __init__(self, version: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((1_000_000,), float(version)))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([self.weight], 0.1)

    trainers = {}
    for version in (1, 2):
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, plugins=checkpoint_plugins(), max_steps=1,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.strategy.connect(Module(version))
        trainers[version] = trainer

    def read_checkpoint(folder: Path) -> Any:
        io = trainers[1].strategy.checkpoint_io
        return float(io.load_checkpoint(folder / "last.ckpt", weights_only=True)["state_dict"]["weight"].sum())

    def write_checkpoint(folder: Path, version: int) -> None:
        trainers[version].save_checkpoint(folder / "last.ckpt")

    np.random.seed(0)
    return {
        "Store.save": Kind(lambda folder, version: store(version).save(folder / "S"), read_store),
        "TorchIndex.save": index(lambda one: TorchIndex(one, device="cpu")),
        "FaissIndex.save": index(lambda one: FaissIndex(one, "Flat", device="cpu")),
        "FaissIndex.save, other size": index(lambda one: FaissIndex(one, "Flat", device="cpu"), grows=True),
        "mine, other settings": Kind(mined, read_table, every=3),
        "mine, first run": Kind(mined, read_table, first=False, every=3),
        "cache": Kind(cached, read_cache, first=False, every=2),
        "checkpoint": Kind(write_checkpoint, read_checkpoint),
    }


def checkpoint_plugins() -> list[Any]:
    """The writer of checkpoints, where the tree has one of its own."""
    try:
        from hardneg.checkpoints import WholeCheckpointIO
    except ImportError:
        return []
    return [WholeCheckpointIO()]


def outcome(kind: Kind, place: Path, versions: list[Any]) -> str:
    try:
        found = kind.read(place)
    except Exception:
        return "nothing"
    return "old" if found == versions[0] else "new" if found == versions[1] else "mixture"


def measure(kind: Kind, faults: Any, kills: int, workshop: Path) -> dict[str, Counter[str]]:
    """Count the outcomes of crashes at steps, and of kills at random times."""
    place, kept = workshop / "place", workshop / "kept"
    versions: list[Any] = []
    for version in (1, 2):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        kind.write(place, version)
        if version == 1:
            shutil.copytree(place, kept)
        versions.append(kind.read(place))
    if not kind.first:
        versions[0] = "nothing yet"
        shutil.rmtree(kept)
        kept.mkdir()

    def restore() -> None:
        shutil.rmtree(place)
        shutil.copytree(kept, place)

    def again() -> str:
        """The next run of the same writer, in a child of its own, as a user starts one."""
        return "stuck" if child(lambda: kind.write(place, 2)) else "ran"

    counts: dict[str, Counter[str]] = {"steps": Counter(), "kills": Counter()}
    restore()
    for _ in faults.crashes(lambda: kind.write(place, 2), kind.every):
        counts["steps"][outcome(kind, place, versions)] += 1
        counts["steps"][again()] += 1
        counts["steps"][f"then {outcome(kind, place, versions)}"] += 1
        restore()
    took = []
    for _ in range(5):
        restore()
        took.append(timed(lambda: kind.write(place, 2)))
    dice = random.Random(0)
    for _ in range(kills):
        restore()
        timed(lambda: kind.write(place, 2), dice.uniform(0, 1) * sorted(took)[2])
        counts["kills"][outcome(kind, place, versions)] += 1
        counts["kills"][again()] += 1
        counts["kills"][f"then {outcome(kind, place, versions)}"] += 1
    return counts


def child(action: Callable[[], object], report: int | None = None) -> int:
    """Run in a forked child, without a word; returns its process number, or its exit code where nothing is reported.

    Args:
        action: what it does.
        report: descriptor that it writes a byte to before, and its seconds after.
    """
    pid = os.fork()
    if pid == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            if report is not None:
                os.write(report, b"b")
            began = time.perf_counter()
            action()
            if report is not None:
                os.write(report, str(time.perf_counter() - began).encode())
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid if report is not None else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def timed(action: Callable[[], object], kill_after: float | None = None) -> float:
    """Measure the seconds of an action in a child process, or kill the child after ``kill_after`` seconds."""
    read, write = os.pipe()
    pid = child(action, write)
    os.close(write)
    os.read(read, 1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    seconds = os.read(read, 100)
    os.close(read)
    return float(seconds) if seconds else 0.0


def rows_of(name: str, kind: Kind, counts: dict[str, Counter[str]]) -> list[str]:
    lines = []
    for how, count in counts.items():
        tried = sum(count[one] for one in OUTCOMES)
        if not tried:
            continue
        cells = [count[one] for one in OUTCOMES]
        after = count["then new"]
        nothing = f"{cells[3]}" if kind.first else f"({cells[3]})"
        lines.append(
            f"| {name} | {how} | {tried} | {cells[0]} | {cells[1]} | {cells[2]} | {nothing} | {after} of {tried} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=HERE, help="checkout whose code is measured (default: this one)")
    parser.add_argument("--kills", type=int, default=200, help="kills at random times for each kind")
    parser.add_argument("--only", nargs="*", default=[], help="kinds to measure (default: all)")
    parser.add_argument("--out", type=Path, help="where to write the table")
    parser.add_argument("--temporary", type=Path, help="TMPDIR of the writers: on another file system than --work")
    parser.add_argument("--work", type=Path, help="folder to write in")
    options = parser.parse_args()
    if options.temporary:
        tempfile.tempdir = os.environ["TMPDIR"] = str(options.temporary)
    sys.path.insert(0, str(options.tree.resolve()))
    spec = importlib.util.spec_from_file_location("injected_faults", HERE / "tests" / "faults.py")
    assert spec is not None
    assert spec.loader is not None
    faults = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = faults
    spec.loader.exec_module(faults)
    lines = [
        "| writer | killed at | times | old | new | mixture | nothing to read | right after the next run |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, kind in kinds().items():
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory(dir=options.work) as workshop:
            lines += rows_of(name, kind, measure(kind, faults, options.kills, Path(workshop)))
        print("\n".join(lines[-2:]), flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
