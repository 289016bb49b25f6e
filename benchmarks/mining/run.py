"""How long does mining take, how much memory, and do all find the same? One command, one table.

    python benchmarks/mining/run.py                     # all sizes of results.md (an hour on two quiet cores)
    python benchmarks/mining/run.py --corpus 100000 --dim 384 768 --repeats 5

Every case runs in a process of its own. Times: all methods take turns, `--repeats` times, so that a busy machine hits
all alike; the factor is the median over turns of (method / raw FAISS in the same turn). Threads that wait sleep
(OMP_WAIT_POLICY), for all methods alike: spinning ones make a machine that others use unmeasurable. Memory: the peak
above what the embeddings take, one more run of each method in a fresh process. Agreement: share of (query, place) with
the document that raw FAISS gives; documents whose scores differ by less than 1e-6 count as the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

QUERIES, K, NEGATIVES, MARGIN, SEED = 5000, 50, 10, 0.05, 0
APPROXIMATE = ("IVF1024,Flat", "HNSW32", "IVF1024,PQ48")
ROOT = Path(__file__).parents[2]


def embeddings(rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in 200 loose clusters; query i was made from document i, its positive."""
    draw = np.random.default_rng(SEED)
    centres = draw.normal(size=(200, dim)).astype(np.float32)
    corpus = centres[draw.integers(200, size=rows)] * 0.5 + draw.standard_normal((rows, dim), dtype=np.float32)
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    queries = corpus[:QUERIES] + draw.standard_normal((QUERIES, dim), dtype=np.float32) * (0.8 / dim**0.5)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return queries, corpus


class ReadyEmbeddings:
    """A SentenceTransformer whose texts are row numbers and whose embeddings are ready."""

    device = torch.device("cpu")
    model_card_data = SimpleNamespace(base_model=None)

    def __init__(self, queries: np.ndarray, corpus: np.ndarray) -> None:
        self.queries, self.corpus = queries, corpus

    def encode_query(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        return self.queries[[int(text) for text in texts]]

    def encode_document(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        return self.corpus[[int(text) for text in texts]]

    def similarity(self, one: Any, other: Any) -> torch.Tensor:
        return torch.as_tensor(one) @ torch.as_tensor(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> torch.Tensor:
        return (torch.as_tensor(one) * torch.as_tensor(other)).sum(-1)

    def get_embedding_dimension(self) -> int:
        return self.corpus.shape[1]


def faiss_flat(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    import faiss

    index = faiss.IndexFlatIP(corpus.shape[1])
    index.add(corpus)
    return index.search(queries, K)[1]


def torch_topk(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """`torch.matmul + topk`, 256 queries at a time."""
    documents = torch.from_numpy(corpus)
    return torch.cat([(part @ documents.T).topk(K).indices for part in torch.from_numpy(queries).split(256)]).numpy()


def torch_index(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    from miners.index import TorchIndex
    from miners.store import Store

    return TorchIndex(Store(corpus), device="cpu").search(queries, K)[1].numpy()


def our_mine(queries: np.ndarray, corpus: np.ndarray) -> Any:
    from miners.offline import RelativeMargin, SameContent, mine

    rules = [SameContent(np.arange(len(corpus))), RelativeMargin(MARGIN)]
    known = (np.arange(QUERIES + 1), np.arange(QUERIES))
    return mine(queries, corpus, known, num_negatives=NEGATIVES, search_depth=K, filters=rules)


def their_mine(use_faiss: bool) -> Callable[[np.ndarray, np.ndarray], Any]:
    def run(queries: np.ndarray, corpus: np.ndarray) -> Any:
        from datasets import Dataset
        from sentence_transformers.util import mine_hard_negatives

        names = [str(row) for row in range(len(corpus))]
        data = Dataset.from_dict({"anchor": names[:QUERIES], "positive": names[:QUERIES]})
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return mine_hard_negatives(
                data,
                ReadyEmbeddings(queries, corpus),
                corpus=names,
                range_max=K - 1,
                relative_margin=MARGIN,
                num_negatives=NEGATIVES,
                output_format="labeled-list",
                use_faiss=use_faiss,
                verbose=False,
            )

    return run


def approximate(factory: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def run(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
        from miners.index import FaissIndex
        from miners.store import Store

        parameters = "nprobe=32" if factory.startswith("IVF") else "efSearch=128"
        return FaissIndex(Store(corpus), factory, "cpu", parameters).search(queries, K)[1].numpy()

    return run


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "faiss.IndexFlatIP": faiss_flat,
    "torch.matmul + topk": torch_topk,
    "TorchIndex": torch_index,
    "mine": our_mine,
    "sentence-transformers": their_mine(False),
    "sentence-transformers, faiss": their_mine(True),
} | {f"FaissIndex {factory}": approximate(factory) for factory in APPROXIMATE}


def pairs_of(name: str, answer: Any) -> dict[int, list[int]]:
    """The mined negatives of each query."""
    if name == "mine":
        table = answer.table
        lists: dict[int, list[int]] = {}
        for query, document in zip(table["query_id"].to_pylist(), table["doc_id"].to_pylist(), strict=True):
            lists.setdefault(query, []).append(document)
        return lists
    return {int(row["anchor"]): [int(one) for one in row["positive"][1:]] for row in answer}


def agreement(name: str, answer: Any, queries: np.ndarray, corpus: np.ndarray, exact: np.ndarray) -> float:
    """Share of places that hold the right document, equal scores counting as equal."""
    if isinstance(answer, np.ndarray):
        if name.startswith("FaissIndex"):  # recall: order does not matter
            return float(np.mean([len(np.intersect1d(*rows)) / K for rows in zip(answer, exact, strict=True)]))
        row, place = np.nonzero(answer != exact)
        one = np.einsum("nd,nd->n", queries[row].astype(np.float64), corpus[answer[row, place]])
        other = np.einsum("nd,nd->n", queries[row].astype(np.float64), corpus[exact[row, place]])
        return 1 - float((abs(one - other) > 1e-6).sum()) / exact.size
    found = pairs_of(name, answer)
    right = total = 0
    for query, candidates in enumerate(exact):
        scores = corpus[candidates].astype(np.float64) @ queries[query]
        positive = float(corpus[query].astype(np.float64) @ queries[query])
        expected = scores[(candidates != query) & (scores <= positive - abs(positive) * MARGIN + 1e-7)][:NEGATIVES]
        got = corpus[found.get(query, [])].astype(np.float64) @ queries[query]
        total += len(expected)
        right += sum(abs(one - other) < 1e-6 for one, other in zip(got, expected, strict=False))
    return right / max(total, 1)


def measure(rows: int, dim: int, names: Sequence[str], repeats: int, memory: bool, threads: int) -> dict[str, Any]:
    """One case in this process: seconds by turn, or peak bytes of one run."""
    torch.set_num_threads(threads)
    import faiss

    faiss.omp_set_num_threads(threads)
    queries, corpus = embeddings(rows, dim)
    if memory:
        METHODS[names[0]](queries[:QUERIES], corpus[: QUERIES + 64])  # imports and thread pools are no part of it
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = resident("VmRSS")
        METHODS[names[0]](queries, corpus)
        return {"megabytes": max(0, resident("VmHWM") - before) / 1024}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    answers: dict[str, Any] = {}
    for _ in range(repeats):
        for name in names:
            start = time.perf_counter()
            answers[name] = METHODS[name](queries, corpus)
            seconds[name].append(time.perf_counter() - start)
    exact = answers["faiss.IndexFlatIP"]
    agree = {name: agreement(name, answers[name], queries, corpus, exact) for name in names}
    return {"seconds": seconds, "agreement": agree}


def resident(field: str) -> int:
    """A line of /proc/self/status, in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def child(settings: dict[str, Any]) -> dict[str, Any]:
    """Run `measure` in a process of its own."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--child", json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr else f"exit {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def processor() -> str:
    """Name of the CPU, and whether it multiplies bfloat16."""
    from miners.index.torch_index import cpu_has_bfloat16

    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, bfloat16 units: {'yes' if cpu_has_bfloat16() else 'no'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=int, nargs="+", default=[20_000, 100_000, 300_000])
    parser.add_argument("--dim", type=int, nargs="+", default=[384, 768, 1024])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.md"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(**json.loads(given.child))))
        return
    shown = " ".join(sys.argv[1:]).split("--out")[0].strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "faiss-cpu", "sentence-transformers"))
    lines = [
        "# Mining, measured",
        "",
        f"{QUERIES:,} queries, k = {K}, {NEGATIVES} negatives, relative margin {MARGIN}, seed {SEED}, "
        f"{given.repeats} turns, {given.threads} threads.",
        f"{processor()}; {packages}. Load when it began: {os.getloadavg()[0]:.1f}.",
        f"Made by `python benchmarks/mining/run.py {shown}`; documents x dims: {given.corpus} x {given.dim}.",
        "",
        "x = median over turns of the time relative to raw FAISS in the same turn. MB = peak above the embeddings.",
        "For approximate indices, agreement is recall@50, and the time includes training and filling.",
        "",
        "| documents | dims | method | s (median) | x raw FAISS | MB | agreement |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows in given.corpus:
        for dim in given.dim:
            case = {"rows": rows, "dim": dim, "repeats": given.repeats, "threads": given.threads}
            names = list(dict.fromkeys(["faiss.IndexFlatIP", *given.methods]))
            timed = child(case | {"names": names, "memory": False})
            for name in names:
                peak = {} if given.no_memory else child(case | {"names": [name], "memory": True})
                if "failed" in timed:
                    lines.append(f"| {rows:,} | {dim} | {name} | failed: {timed['failed']} | | | |")
                    continue
                ours, raw = np.array(timed["seconds"][name]), np.array(timed["seconds"]["faiss.IndexFlatIP"])
                memory = f"{peak['megabytes']:,.0f}" if "megabytes" in peak else peak.get("failed", "")
                row = f"| {rows:,} | {dim} | {name} | {np.median(ours):.2f} | {np.median(ours / raw):.2f} | {memory} "
                lines.append(row + f"| {timed['agreement'][name]:.5f} |")
                print(lines[-1], flush=True)
            given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
