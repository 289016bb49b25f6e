"""Question: what share of a step does ADORE's live search take?

A step of MiniLM (six layers) on 32 queries of 16 tokens against a frozen corpus of 100,000 x 384: encode, search
the 200 best, read their vectors, LambdaRank, backward, AdamW. The bar: search takes at most 20 % of the step with
the exact index that is ADORE's default ("auto", `TorchIndex`).

    python -m benchmarks.step.adore
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

from datamodules.batch import Batch
from hardneg.encoders import TextEncoder
from hardneg.losses import LambdaRank
from hardneg.modules import RetrievalModule
from miners import ADORE, Items, Ragged
from miners.store import Store

DOCUMENTS, DIM, QUERIES, TOKENS = 100_000, 384, 32, 16


def measure(index: str, steps: int) -> tuple[float, float]:
    """Median milliseconds of a step, and of the search in it."""
    generator = torch.Generator().manual_seed(0)
    store = Store(torch.nn.functional.normalize(torch.randn(DOCUMENTS, DIM, generator=generator), dim=1))
    module = RetrievalModule(
        TextEncoder("packaged:all-MiniLM-L6-v2", max_seq_length=TOKENS),
        LambdaRank(cutoff=200),
        [ADORE(num_negatives=200, index=index, device="cpu")],
        frozen={"document": store},
    )
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    (miner,) = module.chains["query_to_document"]  # type: ignore[misc]
    miner.refresh({"document": store})
    searched: list[float] = []
    search = miner._index.search

    def timed(queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        started = time.perf_counter()
        answer = search(queries, k)
        searched.append(time.perf_counter() - started)
        return answer

    miner._index.search = timed
    optimizer = torch.optim.AdamW([one for one in module.parameters() if one.requires_grad], fused=True)
    rows = torch.arange(QUERIES)
    queries = [f"what is the {row} th word of a long question about many things and others" for row in range(QUERIES)]
    batch = Batch(
        {"query": queries, "document": [""] * QUERIES},
        {"query": Items(ids=rows, space="query"), "document": Items(ids=rows)},
        Ragged.from_lists([[row] for row in range(QUERIES)]),
        rows,
    )
    spent = []
    for _ in range(steps):
        started = time.perf_counter()
        module.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()
        spent.append(time.perf_counter() - started)
    return 1000 * statistics.median(spent[2:]), 1000 * statistics.median(searched[2:])


def main() -> int:
    """Measure, print and write the table; status 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    import faiss

    faiss.omp_set_num_threads(options.threads)
    lines = [
        "# ADORE: the live search's share of a step",
        "",
        f"MiniLM-L6, {QUERIES} queries of {TOKENS} tokens, {DOCUMENTS:,} x {DIM} documents, 200 retrieved, torch "
        f"{torch.__version__}, faiss {faiss.__version__}, {options.threads} threads, "
        f"{platform.processor() or platform.machine()}. Median of {options.steps - 2} steps. Made by "
        "`python -m benchmarks.step.adore`.",
        "",
        "| index | ms per step | ms of it searching | share |",
        "|---|---|---|---|",
    ]
    missed = False
    for index in ("auto", "Flat", "IVF316,Flat"):
        step, search = measure(index, options.steps)
        missed |= index == "auto" and search > 0.2 * step
        lines.append(f"| {index} | {step:.0f} | {search:.1f} | {100 * search / step:.0f} % |")
        print(lines[-1], flush=True)
    options.out.write_text("\n".join(lines) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
