"""Question: how many positives that nobody labelled pass as negatives, and what does that cost?

MedQuAD's training questions with several answers: one answer keeps its label, the others are hidden, so that mining
takes them for hard negatives. Every chain mines with the model as it begins (four negatives per question), trains for
the same steps from the same seeds, and is tested on all labels. "all labels" hides nothing: what there is to win back.
The corpus is what these questions and the other splits judge, and a random fill.

    python -m benchmarks.hidden_positives        # 18 minutes on two cores; budget 30

A hidden positive that a chain meets passes if the chain leaves it among the negatives. Its weight is relative to that
of the other negatives that are left; masks weigh 1 or nothing, so they are judged by how many pass.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from datamodules import RetrievalData
from datamodules.beir import open_folder
from datamodules.judgements import Judgements
from datamodules.readers import read_records
from hardneg.benchmark.statistics import estimate, judge
from hardneg.callbacks import RefreshNegatives
from hardneg.encoders import TextEncoder
from hardneg.losses import InfoNCE
from hardneg.modules import RetrievalModule
from miners import CET, GIST, InBatch, MinedOnRefresh, PoolMiner, PositiveAware, Ragged
from miners.cet import SelectionTower
from miners.draws import RowGenerator
from miners.pool import IDENTITY, NegativePool, among

ALL_LABELS, BASELINE, MEASURE = "all labels", "none", "nDCG@10"
MODEL = "packaged:all-MiniLM-L6-v2"


class HiddenPositives(RetrievalData):
    """A retrieval set whose training queries keep one of their positives as a label.

    Args:
        folder: in the BEIR layout.
        hide: take the labels away; False trains on all of them, and still knows which would have been hidden.
        single: also train on queries that have one positive only.
        options: as in `RetrievalData`.

    Attributes:
        hidden: ids of the hidden positives, by query id.
    """

    def __init__(self, folder: str, hide: bool = True, single: bool = False, **options: Any) -> None:
        super().__init__(folder, **options)
        self.hide, self.single = hide, single
        self.hidden = Ragged.empty(0)

    def training_queries(self) -> Collection[str] | None:
        if self.single:
            return super().training_queries()
        rows = read_records(open_folder(self.folder) / "qrels" / f"{self.train_split}.tsv")
        positives = Counter(row["query-id"] for _, row in rows if int(row["score"]) >= self.min_score)
        return {query for query, number in positives.items() if number > 1}

    def read_judgements(self, split: str) -> Judgements:
        judged = super().read_judgements(split)
        if split != self.train_split:
            return judged
        judged = judged.at_least(self.min_score)
        queries, documents = judged.queries, judged.documents
        content = self.corpus_texts.content
        # by texts, so that equal questions keep equal answers
        lottery = RowGenerator(0, 0).uniform(31 * self.query_texts.content[queries] + content[documents], 1)[:, 0]
        order = lottery.argsort()
        order = order[queries[order].argsort(stable=True)]
        first = torch.searchsorted(queries[order], queries[order]) == torch.arange(len(order))
        kept = torch.zeros(len(order), dtype=torch.bool).scatter_(0, order, first)
        label = torch.zeros(len(self.query_texts), dtype=torch.long)
        label[queries[kept]] = content[documents[kept]]
        other = ~kept & (content[documents] != label[queries])  # an equal text is known by its label
        self.hidden = Ragged.from_pairs(queries[other], documents[other], len(self.query_texts))
        rows = torch.ones_like(kept) if self.single else self.hidden.lengths[queries] > 0
        rows = rows & kept if self.hide else rows
        return Judgements(queries[rows], documents[rows], judged.grades[rows])


class Count(pl.Callback):
    """Adds up what became of the hidden positives that training met.

    Args:
        data: knows what is hidden.
    """

    def __init__(self, data: HiddenPositives) -> None:
        self.data = data
        self.sums: dict[str, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        for pool in pl_module.finished:  # type: ignore[union-attr]
            self._add(pool)

    @torch.no_grad()
    def _add(self, pool: NegativePool) -> None:
        assert pool.anchors.ids is not None
        hidden = self.data.hidden.to(pool.anchors.ids.device).select(pool.anchors.ids)
        found = dict.fromkeys(("met", "passed", "weight_hidden", "left", "weight_others"), 0.0)
        for block in pool.negatives:
            ids, usable = block.items.ids, pool.usable_of(block)
            assert ids is not None
            mask = among(ids, hidden)  # (B, N)
            weight = torch.ones_like(pool.scores(block)) if block.log_weight is None else block.log_weight.exp()
            found["met"] += int(mask.sum())
            found["passed"] += int((mask & usable).sum())
            found["left"] += int((usable & ~mask).sum())
            found["weight_hidden"] += float(weight.where(mask & usable, 0).sum())
            found["weight_others"] += float(weight.where(usable & ~mask, 0).sum())
        judged = sum(int(number) for reason, number in pool.dropped.items() if reason not in IDENTITY)
        if self.data.hide:  # else labels have taken them out, and no judge was asked
            judged -= int(found["met"] - found["passed"])
        found |= {"dropped_others": judged, "anchors": len(pool)}
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in found.items()}

    def rates(self) -> dict[str, float]:
        """Shares and ratios of the sums; nan where nothing hidden was met."""
        of = self.sums
        met, passed = max(of["met"], 1), max(of["passed"], 1)
        others = of["weight_others"] / max(of["left"], 1)
        none = float("nan")
        return {
            "met per 100 anchors": 100 * of["met"] / max(of["anchors"], 1),
            "passed": of["passed"] / met if of["met"] else none,
            "relative weight": of["weight_hidden"] / passed / others if of["passed"] and others else none,
            "true negatives dropped": of["dropped_others"] / max(of["dropped_others"] + of["left"], 1),
        }


def chain_of(name: str, dim: int) -> Sequence[PoolMiner]:
    """The miners of a row of the table."""
    judges: dict[str, list[PoolMiner]] = {
        "PositiveAware": [PositiveAware(relative_margin=0.05)],
        "GIST": [GIST()],
        "CET": [CET(SelectionTower(dim), temperature=2.0, learning_rate=1e-3)],
        "CET posterior": [CET(SelectionTower(dim), 2.0, weights="posterior", learning_rate=1e-3)],
    }
    return [InBatch(), *judges.get(name, [])]


CHAINS = (ALL_LABELS, BASELINE, "PositiveAware", "GIST", "CET", "CET posterior")


def run(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One fit and one test of one chain; queries' own measures and the rates of `Count`."""
    text = {"model": MODEL, "max_seq_length": options.tokens}
    encoder = TextEncoder(**text, num_layers=options.layers, dropout=0.0)
    module = RetrievalModule(
        encoder,
        InfoNCE(0.05),
        chain_of(name, encoder.dim),
        guide=TextEncoder(**text) if name == "GIST" else None,
        guide_folder=str(options.work / "guide") if name == "GIST" else None,
        learning_rate=2e-4,
        seed=seed,
    )
    data = HiddenPositives(
        options.folder,
        hide=name != ALL_LABELS,
        single=options.single,
        max_documents=options.max_documents,
        batch_size=options.batch_size,
        sources=[MinedOnRefresh(num_negatives=4, search_depth=options.search_depth)],
        seed=seed,
    )
    count = Count(data)
    trainer = pl.Trainer(
        max_epochs=-1,
        max_steps=options.steps,
        callbacks=[RefreshNegatives(every_n_epochs=10**6, spaces=["query", "document"]), count],
        accelerator=options.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        default_root_dir=options.work,
    )
    began = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - began
    trainer.test(module, data, verbose=False)
    assert module.measures is not None
    hidden = {"rows": len(data.table), "hidden": len(data.hidden.values), "documents": len(data.corpus_texts)}
    found = {"chain": name, "seed": seed, "seconds": seconds, **hidden, **count.rates()}
    return found | {MEASURE: module.measures.means[MEASURE], "by_query": module.measures.by_query[MEASURE]}


def verdicts(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Each chain against none, by query and seed, judged together as ``hardneg benchmark`` does."""
    by_query = {
        name: np.array([[of[q] for q in sorted(of)] for of in (r["by_query"] for r in runs if r["chain"] == name)])
        for name in CHAINS
    }
    others = [name for name in CHAINS if name != BASELINE and len(by_query[name])]
    found = judge([estimate(by_query[name] - by_query[BASELINE]) for name in others])
    return [
        f"- {name} against none: {one.estimate.mean:+.4f} {MEASURE} (95 % from {one.low:+.4f} to {one.high:+.4f}): "
        f"{one.verdict}."
        for name, one in zip(others, found, strict=True)
    ]


def table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """One line per chain: means over seeds."""
    columns = ("met per 100 anchors", "passed", "relative weight", "true negatives dropped", MEASURE, "seconds")
    lines = ["| chain | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name in CHAINS:
        mine = [one for one in runs if one["chain"] == name]
        if not mine:
            continue
        values = [float(np.mean([one[column] for one in mine])) for column in columns]
        shown = ("{:.1f}", "{:.1%}", "{:.2f}", "{:.1%}", "{:.4f}", "{:.0f}")
        cells = ["-" if value != value else form.format(value) for form, value in zip(shown, values, strict=True)]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="$HARDNEG_DATA/medquad", help="BEIR folder")
    parser.add_argument("--chains", nargs="+", default=list(CHAINS), choices=CHAINS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--search-depth", type=int, default=20, help="documents from which negatives are drawn")
    parser.add_argument("--layers", type=int, default=2, help="of MiniLM that the student keeps")
    parser.add_argument("--tokens", type=int, default=32, help="after which texts are cut")
    parser.add_argument("--max-documents", type=int, default=6500, help="to which the corpus is cut")
    parser.add_argument(
        "--single", action="store_true", help="also train on questions with one answer; wants a larger --max-documents"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--work", type=Path, help="where the guide's vectors are kept; a temporary folder if left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all chains with each seed; print and write the table, and the numbers of each run beside it."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        options.work = options.work or Path(temporary)
        runs = []
        for seed in range(options.seeds):
            for name in options.chains:
                runs.append(run(name, seed, options))
                print({key: value for key, value in runs[-1].items() if key != "by_query"}, flush=True)
    first = runs[0]
    command = " ".join(["python -m benchmarks.hidden_positives", *(sys.argv[1:] if arguments is None else arguments)])
    lines = [
        "# Hidden positives: what passes as a negative, and what it costs",
        "",
        f"{options.folder}: {first['rows']} training questions, {first['hidden']} positives hidden, "
        f"{first['documents']} documents; MiniLM-L6 cut to {options.layers} layers and {options.tokens} tokens, "
        f"{options.steps} steps of {options.batch_size}, {options.seeds} seeds, torch {torch.__version__}, "
        f"{options.threads} threads, {platform.processor() or platform.machine()}. Made by `{command}`.",
        "",
        *table(runs),
        "",
        *(verdicts(runs) if BASELINE in options.chains and options.seeds > 1 else []),
    ]
    options.out.write_text("\n".join(lines) + "\n")
    records = "".join(json.dumps({k: v for k, v in one.items() if k != "by_query"}) + "\n" for one in runs)
    options.out.with_suffix(".jsonl").write_text(records)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
