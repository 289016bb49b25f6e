"""How long does mining take, how much memory, and do all find the same? One command, one table.

    python benchmarks/mining/run.py                     # all sizes of results.md (two hours on two quiet cores)
    python benchmarks/mining/run.py --corpus 100000 --dim 384 768 --repeats 5
    python benchmarks/mining/run.py --methods "FaissIndex HNSW32"       # one more method in the same table

Every turn runs in a process of its own: each method once, one after the other, raw FAISS among them, so that a busy
machine hits all alike; the factor is the median over turns of (method / raw FAISS in the same turn). Threads that wait
sleep (OMP_WAIT_POLICY), for all methods alike: spinning ones make a machine that others use unmeasurable. Memory: the
peak above what the embeddings take, one more run of each method in a fresh process. Agreement: share of (query, place)
with the document that raw FAISS gives; documents whose scores differ by less than 1e-6 count as the same.

A finished turn is a line of turns.jsonl, and a run that was killed goes on after its last one; so does a run with more
sizes, methods or repeats. Lines of another machine, other versions or another number of threads are left alone and do
not enter the table. --anew measures again what the arguments name.
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
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

K, NEGATIVES, MARGIN, SEED = 50, 10, 0.05, 0
APPROXIMATE = ("IVF1024,Flat", "HNSW32", "IVF1024,SQ8")
FLAG_BATCH = 64  # queries that FlagEmbedding's script searches together
RAW = "faiss.IndexFlatIP"
ROOT = Path(__file__).parents[2]


def embeddings(count: int, rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in 200 loose clusters; query i was made from document i, its positive."""
    draw = np.random.default_rng(SEED)
    centres = draw.normal(size=(200, dim)).astype(np.float32)
    corpus = centres[draw.integers(200, size=rows)] * 0.5 + draw.standard_normal((rows, dim), dtype=np.float32)
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    queries = corpus[:count] + draw.standard_normal((count, dim), dtype=np.float32) * (0.8 / dim**0.5)
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
    known = (np.arange(len(queries) + 1), np.arange(len(queries)))
    return mine(queries, corpus, known, num_negatives=NEGATIVES, search_depth=K, filters=rules)


def their_mine(use_faiss: bool) -> Callable[[np.ndarray, np.ndarray], Any]:
    def run(queries: np.ndarray, corpus: np.ndarray) -> Any:
        from datasets import Dataset
        from sentence_transformers.util import mine_hard_negatives

        names = [str(row) for row in range(len(corpus))]
        data = Dataset.from_dict({"anchor": names[: len(queries)], "positive": names[: len(queries)]})
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


def flag_embedding(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """Search as FlagEmbedding's scripts/hn_mine.py does: few queries at a time, answers as Python lists."""
    import faiss

    index = faiss.IndexFlatIP(corpus.shape[1])
    index.add(corpus)
    found: list[list[int]] = []
    for start in range(0, len(queries), FLAG_BATCH):
        found += index.search(queries[start : start + FLAG_BATCH], K)[1].tolist()
    return np.array(found)


def approximate(factory: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def run(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
        from miners.index import FaissIndex
        from miners.store import Store

        parameters = "nprobe=32" if factory.startswith("IVF") else "efSearch=128"
        return FaissIndex(Store(corpus), factory, "cpu", parameters).search(queries, K)[1].numpy()

    return run


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    RAW: faiss_flat,
    "torch.matmul + topk": torch_topk,
    "TorchIndex": torch_index,
    "mine": our_mine,
    "sentence-transformers": their_mine(False),
    "sentence-transformers, faiss": their_mine(True),
    "FlagEmbedding's way": flag_embedding,
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
        # the margin is applied to scores rounded to float32, as the table stores them
        scores = (corpus[candidates].astype(np.float64) @ queries[query]).astype(np.float32)
        positive = np.float32(corpus[query].astype(np.float64) @ queries[query])
        highest = positive - abs(positive) * np.float32(MARGIN)
        expected = scores[(candidates != query) & (scores <= highest)][:NEGATIVES]
        got = corpus[found.get(query, [])].astype(np.float64) @ queries[query]
        total += len(expected)
        right += sum(abs(one - other) < 1e-6 for one, other in zip(got, expected, strict=False))
    return right / max(total, 1)


def turn(case: Mapping[str, int], names: Sequence[str]) -> dict[str, Any]:
    """Seconds and agreement of every method, one after the other; one that fails says why."""
    queries, corpus = prepared(case)
    seconds: dict[str, float] = {}
    agree: dict[str, float] = {}
    failed: dict[str, str] = {}
    exact = None
    for name in [RAW, *(name for name in names if name != RAW)]:
        try:
            METHODS[name](queries, corpus[: len(queries) + 2048])  # imports and thread pools are no part of it
            start = time.perf_counter()
            answer = METHODS[name](queries, corpus)
            seconds[name] = time.perf_counter() - start
        except Exception as error:  # the other methods go on
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        exact = answer if exact is None else exact
        agree[name] = agreement(name, answer, queries, corpus, exact)
    return {"seconds": seconds, "agreement": agree, "failed": failed}


def memory(case: Mapping[str, int], names: Sequence[str]) -> dict[str, Any]:
    """Peak megabytes of one method above the embeddings."""
    queries, corpus = prepared(case)
    (name,) = names
    METHODS[name](queries, corpus[: len(queries) + 2048])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    METHODS[name](queries, corpus)
    return {"megabytes": {name: max(0, resident("VmHWM") - before) / 1024}}


def prepared(case: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Set the threads and draw the embeddings."""
    import faiss

    torch.set_num_threads(case["threads"])
    faiss.omp_set_num_threads(case["threads"])
    return embeddings(case["queries"], case["rows"], case["dim"])


def resident(field: str) -> int:
    """A line of /proc/self/status, in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def too_large(name: str, case: Mapping[str, int]) -> str | None:
    """Why a method is not tried on this machine; None if it is."""
    if name != "sentence-transformers":
        return None
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 1e6
    # all scores of all pairs in float32, a tenth for the selection, and the embeddings twice
    needs = (4.4 * case["queries"] + 8 * case["dim"]) * case["rows"] / 1e9
    return None if needs < free else f"needs {needs:.1f} GB for all scores at once, {free:.1f} GB are free"


def child(what: str, case: Mapping[str, int], names: Sequence[str]) -> dict[str, Any]:
    """Run `turn` or `memory` in a process of its own."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--child", json.dumps([what, case, names])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"
        return {"failed": dict.fromkeys(names, reason)}
    return json.loads(done.stdout.splitlines()[-1])


def processor() -> str:
    """Name of the CPU, and whether it multiplies bfloat16."""
    from miners.index.torch_index import cpu_has_bfloat16

    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, bfloat16 units: {'yes' if cpu_has_bfloat16() else 'no'}"


def setup(threads: int) -> str:
    """What lines of one table have in common."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "faiss-cpu", "sentence-transformers"))
    return f"{processor()}; {threads} threads; {packages}"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines measured so far; a line that was cut off is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def of_case(lines: Sequence[dict[str, Any]], case: Mapping[str, int]) -> list[dict[str, Any]]:
    """The lines of one case."""
    return [line for line in lines if line["case"] == case]


def turns_left(
    lines: Sequence[dict[str, Any]], case: Mapping[str, int], names: Sequence[str], repeats: int
) -> list[list[str]]:
    """The methods of each turn that is still to be run; approximate indices, slow to build, run in one."""
    have = {name: sum(name in line.get("seconds", {}) for line in of_case(lines, case)) for name in names}
    left = {name: (1 if name.startswith("FaissIndex") else repeats) - have[name] for name in names}
    return [[name for name in names if left[name] > number] for number in range(max(left.values(), default=0))]


def table(lines: Sequence[dict[str, Any]], threads: int) -> str:
    """The table of all lines of one machine, as Markdown."""
    here = setup(threads)
    lines = [line for line in lines if line["setup"] == here]
    cases = sorted({tuple(line["case"].values()) for line in lines})
    loads = [line["load"] for line in lines if "load" in line]
    rows = [
        "# Mining, measured",
        "",
        f"{here}. Load meanwhile: {min(loads, default=0):.1f} to {max(loads, default=0):.1f}.",
        f"k = {K}, {NEGATIVES} negatives, relative margin {MARGIN}, seed {SEED}.",
        "Made by `python benchmarks/mining/run.py`.",
        "",
        "x = median over turns of the time relative to raw FAISS in the same turn. MB = peak above the embeddings. For",
        "approximate indices, agreement is recall@50, and the time includes training and filling. FlagEmbedding mines",
        "with a script that is no part of its package; its search is written again here: the same index, 64 queries at",
        "a time, answers as Python lists (reading, filtering and encoding left out).",
        "",
        "| queries | documents | dims | method | turns | s (median) | x raw FAISS | MB | agreement |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for values in cases:
        case = dict(zip(CASE, values, strict=True))
        known = of_case(lines, case)
        size = f"{case['queries']:,} | {case['rows']:,} | {case['dim']}"
        cells = {name: table_row(name, known) for name in METHODS}
        rows += [f"| {size} | {name} | {row} |" for name, row in cells.items() if row]
    return "\n".join(rows) + "\n"


def table_row(name: str, lines: Sequence[dict[str, Any]]) -> str | None:
    """Turns, seconds, factor, megabytes and agreement of one method in one case; None where nothing is known."""
    timed = [line for line in lines if name in line.get("seconds", {})]
    peaks = [line["megabytes"][name] for line in lines if name in line.get("megabytes", {})]
    reasons = [line["failed"][name].replace("|", "/") for line in lines if name in line.get("failed", {})]
    if not timed:
        return f"0 | not run: {reasons[-1]} | | |" if reasons else None
    ours = np.array([line["seconds"][name] for line in timed])
    raw = np.array([line["seconds"][RAW] for line in timed])
    peak = f"{peaks[-1]:,.0f}" if peaks else ""
    agree = min(line["agreement"][name] for line in timed)
    return f"{len(timed)} | {np.median(ours):.2f} | {np.median(ours / raw):.2f} | {peak} | {agree:.5f}"


CASE = ("queries", "rows", "dim", "threads")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--corpus", type=int, nargs="+", default=[20_000, 100_000, 300_000], help="numbers of documents")
    add("--dim", type=int, nargs="+", default=[384, 768, 1024], help="lengths of a vector")
    add("--queries", type=int, default=5_000, help="number of queries")
    add("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="what is measured; all if left out")
    add("--repeats", type=int, default=3, help="turns of exact methods; approximate indices have one")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch and FAISS")
    add("--no-memory", action="store_true", help="times only")
    add("--anew", action="store_true", help="forget what turns.jsonl has of these sizes and methods")
    add("--out", type=Path, default=Path(__file__).with_name("results.md"), help="table; turns.jsonl stands beside it")
    add("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, case, names = json.loads(given.child)
        print(json.dumps({"turn": turn, "memory": memory}[what](case, names)))
        return
    if min(given.corpus) < given.queries + 2048:
        parser.error(f"--corpus {min(given.corpus)}: wants at least {given.queries + 2048}, 2,048 more than --queries.")
    turns, here = given.out.with_name("turns.jsonl"), setup(given.threads)

    def note(case: Mapping[str, int], found: Mapping[str, Any]) -> None:
        with open(turns, "a") as file:
            file.write(json.dumps({"setup": here, "case": case, "load": os.getloadavg()[0], **found}) + "\n")
        given.out.write_text(table(read(turns), given.threads))

    sizes = [(rows, dim) for rows in given.corpus for dim in given.dim]
    cases = [dict(zip(CASE, (given.queries, rows, dim, given.threads), strict=True)) for rows, dim in sizes]
    if given.anew:
        forget(turns, here, cases, given.methods)
    for case in cases:
        reasons = {name: reason for name in given.methods if (reason := too_large(name, case))}
        if reasons:
            note(case, {"failed": reasons})
        names = [name for name in given.methods if name not in reasons]
        lines = [line for line in read(turns) if line["setup"] == here]
        for methods in turns_left(lines, case, names, given.repeats):
            note(case, child("turn", case, methods))
        peaks = {name for line in of_case(lines, case) for name in line.get("megabytes", {})}
        for name in names if not given.no_memory else ():
            if name not in peaks:
                note(case, child("memory", case, [name]))
        print(f"{case['rows']:,} x {case['dim']}: done", flush=True)
    given.out.write_text(table(read(turns), given.threads))
    print(given.out.read_text())


def forget(turns: Path, here: str, cases: Sequence[Mapping[str, int]], names: Sequence[str]) -> None:
    """Take methods out of the lines of some cases; raw FAISS stays for the methods that stay."""
    kept = []
    for line in read(turns):
        if line["setup"] == here and line["case"] in cases:
            for part in ("seconds", "agreement", "megabytes", "failed"):
                line[part] = {name: value for name, value in line.get(part, {}).items() if name not in names}
            if not line["seconds"] and not line["megabytes"]:
                continue
            if line["seconds"] and RAW not in line["seconds"]:
                continue  # others' factors would have nothing to stand on
        kept.append(line)
    turns.write_text("".join(json.dumps(line) + "\n" for line in kept))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
