"""Do text neighbourhoods make better negatives for a knowledge graph? On WN18RR, against uniform ones and a control.

    python -m benchmarks.lemon.run                                      # all, as in results.md
    python -m benchmarks.lemon.run --dry-run                            # what would run
    python -m benchmarks.lemon.run --folder runs/try --seeds 1 --epochs 1 --samplers uniform clusters

PyKEEN trains and evaluates: filtered ranks among all entities, heads and tails, of 1,000 test triples drawn once. Every
sampler is filtered with the training triples. A finished cell is kept: a run that was stopped goes on after its last
one. The control has neighbourhoods of the same sizes, of entities put together at random. Verdicts: over seeds and
queries, corrected for the comparisons of a table, differences below 0.005 counting as equivalent.

Budget: 15 minutes of one core (15 cells of 40 seconds, and the entities' texts encoded once, 4 minutes).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.step.measure import environment
from datamodules.triples import KnowledgeGraph, read_graph
from hardneg.benchmark.report import Table, as_markdown
from hardneg.benchmark.statistics import estimate, judge
from miners.draws import generator_for
from miners.neighbourhoods import Neighbourhoods
from miners.store import Store

SAMPLERS: dict[str, dict[str, Any]] = {
    "uniform": {"sampler": "basic"},
    "clusters": {"kind": "clusters", "mix": 0.5},
    "clusters, shuffled": {"kind": "clusters", "mix": 0.5, "shuffled": True},
    "nearest": {"kind": "nearest", "mix": 0.5},
    "nearest, shuffled": {"kind": "nearest", "mix": 0.5, "shuffled": True},
}
HITS = (1, 3, 10)
MARGIN, LEVEL = 0.005, 0.05
DIMS, BATCH, NEGATIVES, RATE = 64, 1024, 8, 0.01


def vectors_of(graph: KnowledgeGraph, folder: Path) -> torch.Tensor:
    """(n, d) of the entities' texts, encoded once: a later call reads them from the folder."""
    from hardneg.encoders import TextEncoder

    encoder = TextEncoder("packaged:all-MiniLM-L6-v2", max_seq_length=64)
    key, place = encoder.fingerprint("document"), folder / "entities"
    if place.exists() and (store := Store.load(place)).key == key and len(store) == len(graph.entities):
        return store.rows(torch.arange(len(store)))
    vectors = encoder.embed(graph.texts, "document", 256, progress="encode entities")
    Store(vectors, key=key).save(place)
    return vectors


def neighbourhoods(vectors: torch.Tensor, kind: str, size: int, shuffled: bool = False) -> Neighbourhoods:
    """Found anew in every call with the same seed: all seeds of training share them."""
    if kind == "nearest":
        near = Neighbourhoods.nearest(vectors, size)
    else:
        near = Neighbourhoods.clusters(vectors, max(2, round(len(vectors) / size)))
    return near.shuffled() if shuffled else near


def train(
    graph: KnowledgeGraph,
    asked: torch.Tensor,
    name: str,
    near: Neighbourhoods | None,
    seed: int,
    model: str,
    epochs: int,
) -> dict[str, Any]:
    """One cell: measures of the ``asked`` triples (n, 3), the rank of each query, seconds of training."""
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.models import model_resolver
    from pykeen.training import SLCWATrainingLoop
    from pykeen.utils import set_random_seed

    from hardneg.interop.pykeen import ClusterNegativeSampler, triples_factories

    set_random_seed(seed)
    factories = triples_factories(graph)
    factory = factories["train"]
    how = SAMPLERS[name]
    options: dict[str, Any] = {"num_negs_per_pos": NEGATIVES, "filterer": "bloom"}
    if near is not None:
        options |= {"neighbourhoods": near, "mix": how["mix"]}
    scorer = model_resolver.make(model, triples_factory=factory, embedding_dim=DIMS, random_seed=seed, loss="softplus")
    loop = SLCWATrainingLoop(
        model=scorer,
        triples_factory=factory,
        optimizer="adam",
        optimizer_kwargs={"lr": RATE},
        negative_sampler=how.get("sampler", ClusterNegativeSampler),
        negative_sampler_kwargs=options,
    )
    start = time.perf_counter()
    loop.train(factory, num_epochs=epochs, batch_size=BATCH, use_tqdm=False, pin_memory=False)
    seconds = time.perf_counter() - start
    evaluator = RankBasedEvaluator(
        metrics=["inverse_harmonic_mean_rank", *["hits_at_k"] * len(HITS)],
        metrics_kwargs=[None, *({"k": k} for k in HITS)],
        add_defaults=False,
        clear_on_finalize=False,
    )
    found = evaluator.evaluate(
        model=scorer,
        mapped_triples=asked,
        additional_filter_triples=list(graph.triples.values()),
        batch_size=256,
        use_tqdm=False,
    )
    ranks = np.concatenate([np.concatenate(evaluator.ranks[side, "realistic"]) for side in ("head", "tail")])
    measures = {"MRR": found.get_metric("both.realistic.inverse_harmonic_mean_rank")}
    measures |= {f"Hits@{k}": found.get_metric(f"both.realistic.hits_at_{k}") for k in HITS}
    return {"measures": {name: float(value) for name, value in measures.items()}, "ranks": ranks, "seconds": seconds}


def cell(folder: Path, name: str, seed: int, options: argparse.Namespace) -> Path:
    """Where a cell is kept; other settings have other places."""
    words = f"{name.replace(', ', '_').replace(' ', '_')}-{options.model}-{options.epochs}-{options.size}"
    words += f"-{options.test}-{seed}"
    return folder / "cells" / f"{words}.npz"


def table(found: dict[str, list[dict]]) -> Table:
    """Samplers down, measures across, with verdicts of MRR against uniform draws and against the control."""
    names = list(found)
    pairs = [(name, "uniform") for name in names if name != "uniform" and "uniform" in found]
    pairs += [(name, f"{name}, shuffled") for name in names if f"{name}, shuffled" in found]
    reciprocal = {name: np.stack([1.0 / one["ranks"] for one in cells]) for name, cells in found.items()}
    compared = dict(
        zip(pairs, judge([estimate(reciprocal[a] - reciprocal[b]) for a, b in pairs], MARGIN, LEVEL), strict=True)
    )

    def said(pair: tuple[str, str]) -> str:
        if pair not in compared:
            return ""
        one = compared[pair]
        return f"{one.estimate.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}], {one.verdict}"

    rows = []
    for name, cells in found.items():
        values = {key: np.array([one["measures"][key] for one in cells]) for key in cells[0]["measures"]}
        shown = [f"{of.mean():.4f}" + (f" ± {of.std(ddof=1):.4f}" if len(of) > 1 else "") for of in values.values()]
        seconds = np.mean([one["seconds"] for one in cells])
        rows.append((name, *shown, said((name, "uniform")), said((name, f"{name}, shuffled")), f"{seconds:.0f}"))
    head = ("sampler", *cells[0]["measures"], "MRR against uniform", "MRR against its control", "seconds of training")
    return Table("WN18RR", "", head, tuple(rows))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/lemon"), help="of the cells; a later call goes on")
    parser.add_argument("--graph", default="$HARDNEG_DATA/kg_wn18rr", help="entities, relations and three splits")
    parser.add_argument("--model", default="transe", help="of PyKEEN; its DistMult learns nothing in so few epochs")
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=64, help="entities of a neighbourhood")
    parser.add_argument("--test", type=int, default=1000, help="triples of the test split that are asked")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="say which cells are left, and stop")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.md"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    wanted = [(name, seed) for name in options.samplers for seed in range(options.seeds)]
    left = [one for one in wanted if not cell(options.folder, *one, options).exists()]
    print(f"{len(wanted)} cells, {len(left)} left to train")
    if options.dry_run:
        return
    if left:
        (options.folder / "cells").mkdir(parents=True, exist_ok=True)
        graph = read_graph(options.graph)
        asked = graph.triples["test"]
        asked = asked[torch.randperm(len(asked), generator=generator_for(0))[: options.test]]
        how = {name: SAMPLERS[name] for name, _ in left}
        vectors = vectors_of(graph, options.folder) if any("kind" in one for one in how.values()) else None
        for name, kinds in how.items():
            near = None
            if vectors is not None and "kind" in kinds:
                near = neighbourhoods(vectors, kinds["kind"], options.size, kinds.get("shuffled", False))
            for seed in [seed for other, seed in left if other == name]:
                one = train(graph, asked, name, near, seed, options.model, options.epochs)
                place = cell(options.folder, name, seed, options)
                unfinished = place.with_suffix(".part.npz")
                np.savez_compressed(
                    unfinished, ranks=one["ranks"], measures=json.dumps(one["measures"]), seconds=one["seconds"]
                )
                unfinished.rename(place)  # a cell that is there is whole
                print(f"{name}, seed {seed}: {one['measures']}, {one['seconds']:.0f} s of training", flush=True)
    found: dict[str, list[dict]] = {}
    for name, seed in wanted:
        with np.load(cell(options.folder, name, seed, options), allow_pickle=False) as kept:
            one = {"measures": json.loads(str(kept["measures"])), "ranks": kept["ranks"]}
            found.setdefault(name, []).append(one | {"seconds": float(kept["seconds"])})
    text = "\n\n".join(
        [
            "# Text neighbourhoods as negatives on WN18RR",
            f"`python -m benchmarks.lemon.run --model {options.model} --epochs {options.epochs} --size {options.size}`",
            as_markdown(table(found)),
            f"- {options.test:,} test triples, both sides, filtered; mean over {options.seeds} seed(s) ± standard "
            "deviation; intervals of "
            f"95 % over seeds and queries, verdicts with margin {MARGIN}, corrected (Holm).\n"
            f"- {options.model}, {DIMS} dims, {options.epochs} epochs, batches of {BATCH}, {NEGATIVES} negatives, Adam "
            f"{RATE}, softplus loss; {options.threads} thread(s).\n"
            f"- Neighbourhoods of {options.size} entities from all-MiniLM-L6-v2 (encoding takes minutes, once).\n"
            f"- {environment('torch', 'pykeen', 'sentence-transformers')}",
        ]
    )
    options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
