"""`hardneg mine` on texts' stand-ins, images, sensor windows and ready vectors."""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hardneg.encoders.base import Encoder
from hardneg.mining import EmbeddingCache
from hardneg.mining.cli import add_arguments, run
from miners.offline import MinedNegatives

DATA = Path(os.environ.get("HARDNEG_DATA", "/nowhere"))


class Flattened(Encoder):
    """A fixed random projection of whatever comes in: any array, or texts by how often each letter occurs."""

    def __init__(self, dim: int = 16, seed: int = 0, prompt: str = "") -> None:
        super().__init__()
        self.seed, self.prompt, self.calls = seed, prompt, 0
        self.weight = torch.nn.Parameter(
            torch.randn(20_000, dim, generator=torch.Generator().manual_seed(seed)), requires_grad=False
        )

    @property
    def dim(self) -> int:
        return self.weight.shape[1]

    def forward(self, inputs, kind):  # type: ignore[no-untyped-def]
        if len(inputs) and isinstance(inputs[0], str):
            letters = [np.frombuffer((self.prompt + one).encode(), np.uint8) for one in inputs]
            rows = [np.bincount(row, minlength=256) for row in letters]
            inputs = np.stack(rows)
        flat = torch.as_tensor(np.array(inputs, dtype=np.float32)).flatten(1)
        return (flat - flat.mean(1, keepdim=True)) @ self.weight[: flat.shape[1]]

    def embed(self, inputs, kind, batch_size=64, progress=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        return torch.cat([self(inputs[at : at + batch_size], kind) for at in range(0, len(inputs), batch_size)])

    def fingerprint(self, kind: str) -> str:
        return hashlib.sha256(self.weight.numpy().tobytes() + self.prompt.encode() + kind.encode()).hexdigest()

    def save_pretrained(self, folder) -> None:  # type: ignore[no-untyped-def]
        raise NotImplementedError


def hardneg_mine(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(one) for one in arguments]))


def check_classes(table: MinedNegatives, labels: np.ndarray) -> None:
    """No negative of the query's own class, and every query has some."""
    query, document = table.table["query_id"].to_numpy(), table.table["doc_id"].to_numpy()
    assert len(query) == 3 * len(labels)
    assert (labels[query] != labels[document]).all()


def test_images_are_mined(tmp_path, capsys) -> None:
    from PIL import Image

    if not (DATA / "omniglot_small" / "images.zip").exists():
        pytest.skip("HARDNEG_DATA holds no omniglot_small")
    images, labels = [], []
    with zipfile.ZipFile(DATA / "omniglot_small" / "images.zip") as archive:
        for name in sorted(archive.namelist())[:200]:
            if name.endswith(".png"):
                image = Image.open(io.BytesIO(archive.read(name))).convert("L").resize((28, 28))
                images.append(np.asarray(image))
                labels.append(name.rsplit("/", 1)[0])
    classes = np.unique(labels, return_inverse=True)[1]
    np.save(tmp_path / "images.npy", np.stack(images))
    np.save(tmp_path / "labels.npy", classes)
    hardneg_mine(
        *("--corpus", tmp_path / "images.npy", "--labels", tmp_path / "labels.npy", "--num-negatives", 3),
        *("--encoder", "tests.hardneg.mining.test_cli.Flattened", "--cache", tmp_path / "cache", "--search-depth", 60),
        *("--out", tmp_path / "mined.parquet"),
    )
    check_classes(MinedNegatives.load(tmp_path / "mined.parquet"), classes)
    assert "negatives of" in capsys.readouterr().out


def test_sensor_windows_are_mined(tmp_path) -> None:
    path = DATA / "utd_mhad" / "windows.npz"
    if not path.exists():
        pytest.skip("HARDNEG_DATA holds no utd_mhad")
    windows = np.load(path)
    np.save(tmp_path / "windows.npy", windows["inertial"])
    np.save(tmp_path / "actions.npy", windows["action"])
    hardneg_mine(
        *("--corpus", tmp_path / "windows.npy", "--labels", tmp_path / "actions.npy", "--num-negatives", 3),
        *("--encoder", "tests.hardneg.mining.test_cli.Flattened", "--no-cache", "--search-depth", 100),
        *("--out", tmp_path / "mined.parquet"),
    )
    check_classes(MinedNegatives.load(tmp_path / "mined.parquet"), windows["action"])


def test_ready_vectors_and_a_table_of_positives(tmp_path) -> None:
    draw = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(60, 8, generator=draw), dim=1).numpy()
    np.save(tmp_path / "q.npy", vectors[:10])
    np.save(tmp_path / "d.npy", vectors)
    (tmp_path / "known.tsv").write_text("query-id\tcorpus-id\n" + "".join(f"{row}\t{row}\n" for row in range(10)))
    arguments = ("--queries", tmp_path / "q.npy", "--corpus", tmp_path / "d.npy", "--known", tmp_path / "known.tsv")
    hardneg_mine(*arguments, "--out", tmp_path / "mined.parquet", "--relative-margin", 0.1, "--sampling", "random")
    mined = MinedNegatives.load(tmp_path / "mined.parquet")
    assert mined.queries["found"].to_pylist() == [5] * 10
    assert mined.metadata["settings"]["filters"] == [{"relative_margin": {"margin": 0.1, "positive": "lowest"}}]
    hardneg_mine(*arguments, "--out", tmp_path / "o.parquet", "--export", "nemo", tmp_path / "n.json")
    assert (tmp_path / "n.json").exists()

    np.save(tmp_path / "d.npy", vectors * 3)
    with pytest.raises(ValueError, match=r"lengths between 3 and 3\. Scale"):
        hardneg_mine(*arguments, "--out", tmp_path / "p.parquet")
    hardneg_mine(*arguments, "--out", tmp_path / "p.parquet", "--dot")
    (tmp_path / "known.tsv").write_text("query-id\tcorpus-id\n0\t99\n")
    with pytest.raises(ValueError, match=r"row \(0, 99\); there are 10 queries, 60 documents"):
        hardneg_mine(*arguments, "--out", tmp_path / "q.parquet", "--dot")


def test_a_beir_folder_and_a_second_run_from_the_cache(tmp_path, monkeypatch, caplog) -> None:
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    texts = [
        "alpha one",
        "beta two",
        "gamma three",
        "delta four",
        "alpha one",
    ]  # the last is the first under another id
    lines = [f'{{"_id": "d{row}", "text": "{text}"}}' for row, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "queries.jsonl").write_text('{"_id": "q0", "text": "alpha"}\n{"_id": "q1", "text": "unjudged"}\n')
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    common = (folder, "--encoder", "tests.hardneg.mining.test_cli.Flattened", "--cache", tmp_path / "cache")
    hardneg_mine(*common, "--out", tmp_path / "mined.parquet", "--num-negatives", 3)
    mined = MinedNegatives.load(tmp_path / "mined.parquet")
    assert set(mined.table["query_id"].to_pylist()) == {"q0"}
    assert set(mined.table["doc_id"].to_pylist()) == {"d1", "d2", "d3"}  # d4 is the positive's text

    monkeypatch.setattr(Flattened, "embed", lambda *_, **__: pytest.fail("encoded again"))
    caplog.set_level("INFO")
    hardneg_mine(*common, "--out", tmp_path / "again.parquet", "--num-negatives", 1)
    assert "read from the cache" in caplog.text
    with pytest.raises(ValueError, match="needs a model"):
        hardneg_mine(folder, "--out", tmp_path / "x.parquet")


def test_the_cache_knows_weights_prompts_and_content_not_names(tmp_path) -> None:
    cache, texts = EmbeddingCache(tmp_path), ["one", "two", "three"]
    first = Flattened(seed=0)
    kept = cache.encode(first, texts, "document")
    assert torch.equal(cache.encode(Flattened(seed=0), texts, "document").vectors, kept.vectors)
    for other in (Flattened(seed=1), Flattened(prompt="passage: ")):
        assert not torch.equal(cache.encode(other, texts, "document").vectors, kept.vectors)
        assert other.calls == 1
    cache.encode(first, ["one", "two", "tree"], "document")
    cache.encode(first, ["one", "twot", "hree"], "document")
    cache.encode(first, texts, "query")
    assert first.calls == 4


def test_an_interrupted_encoding_goes_on(tmp_path, monkeypatch) -> None:
    import hardneg.mining.cache as module

    monkeypatch.setattr(module, "CHUNK", 2)
    texts = [f"text {number}" for number in range(7)]
    encoder = Flattened()
    embed = Flattened.embed

    def stop(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if self.calls == 2:
            raise KeyboardInterrupt
        return embed(self, *args, **kwargs)

    monkeypatch.setattr(Flattened, "embed", stop)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(tmp_path).encode(encoder, texts, "document")
    monkeypatch.setattr(Flattened, "embed", embed)
    store = EmbeddingCache(tmp_path).encode(encoder, texts, "document")
    assert encoder.calls == 4  # two before, two after
    assert torch.equal(store.vectors, EmbeddingCache(None).encode(Flattened(), texts, "document").vectors)
    assert not list(tmp_path.glob("*.parts"))


def test_wrong_arguments_are_told(tmp_path) -> None:
    out = ("--out", tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="Give a BEIR folder, or --corpus"):
        hardneg_mine(*out)
    np.save(tmp_path / "d.npy", np.eye(4, dtype=np.float32))
    np.save(tmp_path / "l.npy", np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match=r"\(3,\) labels for 4 items"):
        hardneg_mine(*out, "--corpus", tmp_path / "d.npy", "--labels", tmp_path / "l.npy")
    np.save(tmp_path / "l.npy", np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match=r"--encoder must be .* got 'builtins.dict', which is no subclass"):
        hardneg_mine(*out, "--corpus", tmp_path / "d.npy", "--labels", tmp_path / "l.npy", "--encoder", "builtins.dict")


def broken(vectors: np.ndarray, known: str, tmp_path: Path) -> tuple[object, ...]:
    """Ten queries of four dims and these documents."""
    np.save(tmp_path / "q.npy", np.eye(10, 4, dtype=np.float32) + np.eye(10, 4, -4) + np.eye(10, 4, -8))
    np.save(tmp_path / "d.npy", vectors)
    (tmp_path / "known.tsv").write_text("query-id\tcorpus-id\n" + known)
    files = ("--queries", tmp_path / "q.npy", "--corpus", tmp_path / "d.npy", "--known", tmp_path / "known.tsv")
    return (*files, "--out", tmp_path / "mined.parquet")


def test_broken_vectors_end_in_one_sentence_and_leave_nothing(tmp_path) -> None:
    every = "".join(f"{row}\t0\n" for row in range(10))
    vectors = np.eye(20, 4, dtype=np.float32)
    vectors[4:, 0] = 1
    nan = vectors.copy()
    nan[7, 1] = np.nan
    for documents, known, message in [
        (nan, every, r"row 7 \(id 7\) holds NaN or infinity"),
        (np.eye(20, 20, dtype=np.float32), every, "queries have 4 dims, documents 20"),
        (vectors, "0\t0\n", "9 of 10 queries have no known positive, the first is query 1"),
        (vectors.astype(np.int64), every, "expected float16, float32 or float64 values, got int64"),
        (vectors[0], every, r"have shape \(n, d\), got \(4,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            hardneg_mine(*broken(documents, known, tmp_path))
        assert not list(tmp_path.glob("mined*"))
    (tmp_path / "d.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"d\.npy is no \.npy array"):
        hardneg_mine(
            "--corpus", tmp_path / "d.npy", "--labels", tmp_path / "q.npy", "--out", tmp_path / "mined.parquet"
        )


def test_a_full_disk_while_encoding_is_told_and_the_next_run_goes_on(tmp_path, monkeypatch) -> None:
    import hardneg.mining.cache as module
    from miners import transaction

    monkeypatch.setattr(module, "CHUNK", 2)
    texts, synced, sync = [f"text {number}" for number in range(7)], [], transaction.sync

    def full(descriptor: int) -> None:
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced.append(descriptor)
        sync(descriptor)

    monkeypatch.setattr(transaction, "sync", full)
    with pytest.raises(OSError, match=r"000000000004\.[0-9a-f]+\.npy: no room on the disk\. What is finished is kept"):
        EmbeddingCache(tmp_path).encode(Flattened(), texts, "document")
    monkeypatch.setattr(transaction, "sync", sync)
    encoder = Flattened()
    store = EmbeddingCache(tmp_path).encode(encoder, texts, "document")
    assert encoder.calls == 2
    assert torch.equal(store.vectors, EmbeddingCache(None).encode(Flattened(), texts, "document").vectors)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written there\. Choose another place"):
        EmbeddingCache(tmp_path / "file").encode(Flattened(), texts, "document")
