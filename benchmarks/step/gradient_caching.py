"""Question: what memory and time does a batch of 2,048 take with gradient caching (`chunk_size`)?

Each cell is a process of its own that trains MiniLM (all six layers) for one step on pairs of texts of 64 tokens, with
AdamW, and reports the most memory that it ever held. The bar: B = 2,048 in chunks of 32
holds at most 1.3 x what B = 32 holds.

    python -m benchmarks.step.gradient_caching
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

CELLS = ((32, None), (2048, 32))


def measure(batch_size: int, chunk_size: int | None, threads: int, tokens: int) -> dict[str, float]:
    """Peak resident memory (MB) of the process and seconds of the step, weights touched for the first time."""
    import torch

    from datamodules.batch import Batch
    from hardneg.encoders import TextEncoder
    from hardneg.modules import RetrievalModule
    from miners import Items, Ragged

    torch.set_num_threads(threads)
    encoder = TextEncoder("packaged:all-MiniLM-L6-v2", max_seq_length=tokens)
    module = RetrievalModule(encoder, chunk_size=chunk_size)
    module._warned = True
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    rows = torch.arange(batch_size)
    texts = {
        side: [f"{side} {row} " + "many words make a text long " * 12 for row in range(batch_size)] for side in "qd"
    }
    batch = Batch(
        {"query": texts["q"], "document": texts["d"]},
        {"query": Items(ids=rows, space="query"), "document": Items(ids=rows)},
        Ragged.empty(batch_size),
        rows,
    )
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    module.training_step(batch, 0).backward()
    optimizer.step()
    return {
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loaded_mb": loaded,
        "seconds": time.perf_counter() - started,
    }


def main() -> int:
    """Run every cell, print and write the table; status 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a text")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(*options.cell, options.threads, options.tokens)))
        return 0
    import torch

    found = []
    for cell in CELLS:
        command = [sys.executable, "-m", "benchmarks.step.gradient_caching", "--cell", json.dumps(cell)]
        answer = subprocess.run(
            [*command, "--threads", str(options.threads), "--tokens", str(options.tokens)],
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(answer.stdout.splitlines()[-1]))
        print(cell, found[-1], flush=True)
    base = found[0]["peak_mb"]
    lines = [
        "# Gradient caching: memory and time of one step",
        "",
        f"MiniLM-L6 (22.7 M weights), texts of {options.tokens} tokens, AdamW, torch {torch.__version__}, "
        f"{options.threads} threads, {platform.processor() or platform.machine()}. "
        "Made by `python -m benchmarks.step.gradient_caching`.",
        "",
        "| B | chunk_size | peak MB | x B = 32 | MB before the first step | s per step | ms per row |",
        "|---|---|---|---|---|---|---|",
    ]
    for (batch_size, chunk_size), row in zip(CELLS, found, strict=True):
        lines.append(
            f"| {batch_size} | {chunk_size or '-'} | {row['peak_mb']:.0f} | {row['peak_mb'] / base:.2f} | "
            f"{row['loaded_mb']:.0f} | {row['seconds']:.1f} | {1000 * row['seconds'] / batch_size:.0f} |"
        )
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out.read_text())
    return int(found[-1]["peak_mb"] > 1.3 * base)


if __name__ == "__main__":
    sys.exit(main())
