"""A corpus that is searched while it is encoded gives the table of one that is searched afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hardneg.mining import overlap as module
from hardneg.mining.overlap import Overlap
from miners.index import TorchIndex
from miners.store import Store
from tests.hardneg.mining.test_cli import Flattened, hardneg_mine


def gaussian(rows: int, dim: int, seed: int) -> Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("chunk", [1, 7, 50, 500])
def test_any_chunks_and_pieces_give_what_one_search_gives_ties_included(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(module, "PIECE", 40)
    monkeypatch.setattr(module, "QUERIES", 33)
    queries, corpus = Store(gaussian(100, 8, 0), space="query"), gaussian(300, 8, 1)
    corpus[150:] = corpus[:150]  # every document twice: equal scores, the first row first
    whole = TorchIndex(Store(corpus), "cpu").search(queries.vectors, 60)
    overlap = Overlap(queries, 60, "cpu")
    for start in range(0, 300, chunk):
        overlap.take(start, corpus[start : start + chunk])
    source = overlap.source(300, "auto", 5)
    assert source is not None
    rows, scores = source.propose(torch.arange(100), queries.vectors, 60)
    assert torch.equal(rows, whole[1])
    assert scores is not None
    assert torch.equal(scores, whole[0])


def test_a_corpus_that_came_from_the_cache_has_to_be_searched() -> None:
    assert Overlap(Store(gaussian(3, 4, 0)), 2, "cpu").source(10, "auto", 5) is None


def test_a_broken_vector_is_told_by_its_row_in_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 10)
    overlap, corpus = Overlap(Store(gaussian(3, 4, 0)), 2, "cpu"), gaussian(20, 4, 1)
    corpus[15, 0] = torch.nan
    overlap.take(0, corpus[:10])
    overlap.take(10, corpus[10:])
    with pytest.raises(ValueError, match=r"\(id 15\) holds NaN"):
        overlap.source(20, "auto", 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ninety documents of which every tenth is a twin, and thirty queries."""
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("abcdefgh"), 12)) for _ in range(90)]
    texts[1::10] = texts[0::10]
    corpus = [json.dumps({"_id": f"d{row}", "text": text}) for row, text in enumerate(texts)]
    queries = [json.dumps({"_id": f"q{row}", "text": texts[3 * row][:6]}) for row in range(30)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    judged = "".join(f"q{row}\td{3 * row}\t1\n" for row in range(30))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


ENCODER = ("--encoder", "tests.hardneg.mining.test_cli.Flattened")


def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.mining.cache.CHUNK", 8)
    monkeypatch.setattr(module, "PIECE", 16)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--no-cache",),
        ("--relative-margin", 0.02, "--first-rank", 3, "--ranks", "survivors"),
        ("--sampling", "random", "--num-negatives", 3, "--search-depth", 40, "--dot"),
        ("--bm25", 2),
    ],
    ids=["plain", "no cache", "margin", "random", "bm25"],
)
def test_the_file_is_the_same_byte_for_byte(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...]
) -> None:
    if "--bm25" in options:
        pytest.importorskip("bm25s")
    small_steps(monkeypatch)
    for name, more in (("with", ()), ("without", ("--no-overlap",))):
        out = ("--out", tmp_path / f"{name}.parquet", "--cache", tmp_path / name)
        hardneg_mine(folder, *ENCODER, *out, *options, *more)
    for file in ("{}.parquet", "{}.queries.parquet"):
        assert (tmp_path / file.format("with")).read_bytes() == (tmp_path / file.format("without")).read_bytes()


def test_it_searches_while_it_encodes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder does not give its last chunk before a first piece has been searched."""
    small_steps(monkeypatch)
    searched, search, embed = threading.Event(), Overlap._search, Flattened.embed

    def tell(self: Overlap, documents: Tensor, first: int) -> None:
        search(self, documents, first)
        searched.set()

    def wait(self: Flattened, inputs, kind, **how):  # type: ignore[no-untyped-def]
        assert len(inputs) == 8 or kind == "query" or searched.wait(20)
        return embed(self, inputs, kind, **how)

    monkeypatch.setattr(Overlap, "_search", tell)
    monkeypatch.setattr(Flattened, "embed", wait)
    hardneg_mine(folder, *ENCODER, "--out", tmp_path / "mined.parquet", "--no-cache")


def test_an_interrupted_encoding_is_searched_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_steps(monkeypatch)
    embed, calls = Flattened.embed, []

    def stop(self: Flattened, inputs, kind, **how):  # type: ignore[no-untyped-def]
        calls.append(kind)
        if len(calls) == 9:  # four chunks of queries, four of the corpus
            raise KeyboardInterrupt
        return embed(self, inputs, kind, **how)

    run = (folder, *ENCODER, "--cache", tmp_path / "cache")
    monkeypatch.setattr(Flattened, "embed", stop)
    with pytest.raises(KeyboardInterrupt):
        hardneg_mine(*run, "--out", tmp_path / "a.parquet")
    monkeypatch.setattr(Flattened, "embed", embed)
    hardneg_mine(*run, "--out", tmp_path / "a.parquet")
    hardneg_mine(*run, "--out", tmp_path / "b.parquet", "--no-overlap")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


RUN = """
import sys, time
import hardneg.mining.cache, hardneg.mining.overlap
from hardneg.cli import main
from tests.hardneg.mining.test_cli import Flattened
hardneg.mining.cache.CHUNK, hardneg.mining.overlap.PIECE = 8, 16
embed = Flattened.embed
Flattened.embed = lambda self, *given, **how: (time.sleep(0.05), embed(self, *given, **how))[1]
print("ready", flush=True)
sys.exit(main(["mine", *sys.argv[1:], "--chunk", "3", "--sampling", "random"]))
"""


@pytest.mark.slow
def test_killed_while_it_encodes_searches_and_writes_it_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        arguments = (folder, *ENCODER, "--out", tmp_path / f"{name}.parquet", "--cache", tmp_path / f"{name} cache")
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RUN, *map(str, arguments)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=tmp_path
        )

    assert start("whole").wait() == 0
    killed = 0
    for moment in (0.1, 0.25, 0.4, 0.3, 0.15):  # encoding alone takes 0.8 s
        run = start("broken")
        assert run.stdout is not None
        run.stdout.readline()
        try:
            run.wait(moment)
        except subprocess.TimeoutExpired:
            run.kill()
            killed += 1
        run.wait()
    assert killed >= 3
    assert start("broken").wait() == 0
    for file in ("{}.parquet", "{}.queries.parquet"):
        assert (tmp_path / file.format("broken")).read_bytes() == (tmp_path / file.format("whole")).read_bytes()
    assert not list(tmp_path.rglob("*.parts"))
