"""Say how hard, how fresh and how false a table of mined negatives is.

  hardneg audit negatives.parquet
  hardneg audit negatives.parquet --folder data/scifact --split train --html audit.html
  hardneg audit negatives.parquet --folder data/scifact --max-false-negative-rate 0.1     # exit status 1 if above

With --folder, the false-negative rate is estimated: a random tenth of the known positives is hidden, the table is mined
again in the same way, and what comes back as a negative is counted. --checkpoint scores the table with another model
(how stale is it?), --guide with a judge.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from hardneg.audit.measure import audit, hide, interval, staleness
from hardneg.audit.page import as_html, as_text, hardest
from hardneg.mining import EmbeddingCache
from hardneg.mining.cli import (
    Inputs,
    encode,
    make_encoder,
    make_filters,
    make_sampling,
    read_beir,
    text_encoder,
)
from hardneg.mining.cli import (
    add_arguments as add_mining_arguments,
)
from miners.offline import Dense, Lexical, MinedNegatives, mine
from miners.ragged import Ragged

HIDDEN_SHARE = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hardneg audit``."""
    add = parser.add_argument
    add("table", type=Path, help="Parquet file of `hardneg mine` or `miners.mine`")
    add("--folder", help="BEIR folder it was mined from: for texts, and for the false-negative rate")
    add("--split", default="train", help="judgements it was mined with")
    add("--checkpoint", help="text model that scores the table again: how stale is it?")
    add("--guide", help="text model that judges the negatives")
    add("--cache", type=Path, default=Path(".hardneg_cache"), help="folder where encoded vectors are kept")
    add("--device", default="auto", help="where to encode and search")
    add("--seed", type=int, default=0, help="which positives are hidden")
    add("--no-false-negatives", action="store_true", help="do not mine again; quicker")
    add("--max-false-negative-rate", type=float, help="exit status 1 if the estimate is above")
    add("--max-known-positives", type=int, default=0, help="exit status 1 if more negatives are known positives")
    add("--json", type=Path, help="also write the numbers")
    add("--html", type=Path, help="also write a page with pictures and examples")


def run(args: argparse.Namespace) -> int:
    """Audit, print, write; exit status 1 where a threshold is passed.

    Raises:
        FileNotFoundError, ValueError: each text stands alone.
    """
    mined = MinedNegatives.load(args.table)
    inputs = read_beir(args.folder, args.split) if args.folder else None
    queries: dict[str, str] | None = None
    corpus: dict[str, str] | None = None
    if inputs is not None:
        queries, corpus = inputs.queries_by_name(), inputs.documents_by_name()
        check_names(mined, queries or {}, corpus or {}, args)
    elif args.max_false_negative_rate is not None or args.checkpoint or args.guide:
        raise ValueError("--max-false-negative-rate, --checkpoint and --guide need the texts: give --folder.")
    report = audit(mined, corpus)
    if inputs is not None:
        cache = EmbeddingCache(args.cache)
        if not args.no_false_negatives:
            report["false_negatives"] = false_negatives(mined, inputs, cache, args)
        for name, model in (("staleness", args.checkpoint), ("guide", args.guide)):
            if model:
                report[name] = {"model": model} | rescored(mined, inputs, cache, model, args.device)
    print(as_text(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.html:
        args.html.write_text(as_html(report, mined, hardest(mined, queries, corpus)), encoding="utf-8")
        print(f"written: {args.html}")
    failed = []
    if report["known_positives"] > args.max_known_positives:
        failed.append(f"{report['known_positives']} negatives are known positives")
    limit, rate = args.max_false_negative_rate, report.get("false_negatives")
    if limit is not None:
        if rate is None or not rate["hidden"]:
            failed.append("the false-negative rate could not be estimated")
        elif rate["rate"] > limit:
            failed.append(f"the false-negative rate {rate['rate']:.3f} is above {limit}")
    for reason in failed:
        print(f"FAILED: {reason}")
    return int(bool(failed))


def check_names(
    mined: MinedNegatives, queries: dict[Any, str], corpus: dict[Any, str], args: argparse.Namespace
) -> None:
    """Refuse a table that was mined from other data."""
    unknown = [one for one in mined.queries["query_id"].to_pylist() if one not in queries]
    unknown += [one for one in mined.table["doc_id"].unique().to_pylist() if one is not None and one not in corpus]
    if unknown:
        raise ValueError(
            f"{args.table} names {unknown[0]!r}, which {args.folder} (split {args.split}) does not have; "
            "give the data it was mined from."
        )


def false_negatives(
    mined: MinedNegatives, inputs: Inputs, cache: EmbeddingCache, args: argparse.Namespace
) -> dict[str, Any]:
    """Hide a tenth of the positives, mine again in the same way, count what comes back as a negative."""
    arguments = mined.metadata["inputs"]["model"].get("arguments")
    if arguments is None:
        raise ValueError(
            f"{args.table} was not mined by `hardneg mine`: it cannot be mined again. Use --no-false-negatives."
        )
    parser = argparse.ArgumentParser()
    add_mining_arguments(parser)
    with tempfile.TemporaryDirectory() as folder:
        again = parser.parse_args(["--out", f"{folder}/again.parquet"])
        vars(again).update(arguments | {"device": args.device})
        encoder = make_encoder(again)
        assert inputs.content is not None  # a BEIR folder has texts
        left, query, document = hide(inputs.known, inputs.content, HIDDEN_SHARE, args.seed)
        queries, corpus = encode(inputs, encoder, cache, again)
        sources: list[Any] = [Dense(again.index, again.num_negatives - again.bm25, device=args.device)]
        if again.bm25:
            sources.append(Lexical(inputs.queries, inputs.corpus, again.bm25))
        table = mine(
            queries,
            corpus,
            left,
            num_negatives=again.num_negatives,
            search_depth=mined.metadata["settings"]["search_depth"],
            filters=make_filters(again, inputs, cache),
            sampling=make_sampling(again),
            sources=sources,
            ranks=again.ranks,
            too_few=again.too_few,
            seed=again.seed,
        )
    names = set(zip(table.table["query_id"].to_pylist(), table.table["doc_id"].to_pylist(), strict=True))
    pairs = zip(query.tolist(), document.tolist(), strict=True)
    passed = sum((inputs.query_names[one], inputs.document_names[other]) in names for one, other in pairs)  # type: ignore[index]
    low, high = interval(passed, len(query))
    return {
        "hidden": len(query),
        "passed": passed,
        "rate": passed / len(query) if len(query) else None,
        "low": low,
        "high": high,
        "seed": args.seed,
    }


def rescored(mined: MinedNegatives, inputs: Inputs, cache: EmbeddingCache, model: str, device: str) -> dict[str, Any]:
    """Score the table with another text model."""
    encoder = text_encoder(model, device)
    queries = cache.encode(encoder, inputs.queries, "query").vectors
    corpus = cache.encode(encoder, inputs.corpus, "document").vectors
    valid = mined.table.filter(mined.table["doc_id"].is_valid())
    place = {name: row for row, name in enumerate(inputs.query_names or ())}
    spot = {name: row for row, name in enumerate(inputs.document_names or ())}
    query = torch.tensor([place[name] for name in valid["query_id"].to_pylist()], dtype=torch.long)
    document = torch.tensor([spot[name] for name in valid["doc_id"].to_pylist()], dtype=torch.long)
    known: Ragged = inputs.known
    return staleness(mined, queries, corpus, (query, document, known))
