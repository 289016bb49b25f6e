"""Say how hard, how fresh and how false a table of mined negatives is.

  hardneg audit negatives.parquet
  hardneg audit negatives.parquet --folder data/scifact --split train --html audit.html
  hardneg audit negatives.parquet --folder data/scifact --model sentence-transformers/all-MiniLM-L6-v2 \\
      --max-false-negative-rate 0.1                                # exit status 1 if above

With --folder and --model, the false-negative rate is estimated: a random tenth of the known positives is hidden, the
table is mined again in the same way, and what comes back as a negative is counted. Margins, ranks and prompts are those
that the table names. Models are not: a name in a table of somebody else may be a folder of theirs. So name the model
that it was mined with (--model, or --encoder), and --mined-guide or --mined-cross-encoder if there was one; the audit
says whether their weights are those of the table. --checkpoint scores the table with another model (how stale is it?),
--guide with a judge.

Triplets, n-tuples and other trainers' files (csv, tsv, jsonl, parquet) bring their texts with them; --model scores
them, and --mined-with says how they were mined, if you know:
  hardneg audit triplets.csv --model sentence-transformers/all-MiniLM-L6-v2
  hardneg audit minedHN.jsonl --model BAAI/bge-small-en-v1.5 --mined-with '{"first_rank": 11, "num_negatives": 15}'

Two checkpoints, before one replaces the other: what does the new one break that the old one got right? With --far,
pairs of pictures:
  hardneg audit --checkpoint runs/new/model --against runs/old/model --folder data/scifact --html flips.html
  hardneg audit --checkpoint runs/new/model --against runs/old/model --folder faces --pairs pairs.csv --far 0.01
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hardneg.audit.flips import check_arguments, failures, run_flips, write_page
from hardneg.audit.foreign import Columns, is_ours, read_foreign, scored_by
from hardneg.audit.made import NAMED, Making, check_options, read_making
from hardneg.audit.measure import audit, came_back, hide, opinion
from hardneg.audit.page import as_html, as_text, hardest
from hardneg.mining import EmbeddingCache
from hardneg.mining.cli import (
    add_arguments as add_mining_arguments,
)
from hardneg.mining.cli import (
    encode,
    make_encoder,
    make_filters,
    make_sampling,
    text_encoder,
)
from hardneg.mining.inputs import Inputs, read_beir
from hardneg.plain import plain
from miners.offline import Dense, Lexical, MinedNegatives, mine
from miners.store import Store
from miners.transaction import write_text

HIDDEN_SHARE = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hardneg audit``."""
    add = parser.add_argument
    add(
        "table",
        type=Path,
        nargs="?",
        help="Parquet file of `hardneg mine` or `miners.mine`, or a file with texts of its own; none with --against",
    )
    add("--folder", help="BEIR folder it was mined from: for texts, and for the false-negative rate")
    add("--split", help="judgements it was mined with, train if left out; with --against those compared on, test")
    add("--checkpoint", help="text model that scores the table again: how stale is it? With --against: the new model")
    add("--against", help="the old model: compare --checkpoint with it on --folder, and count what it breaks")
    add("--cutoffs", type=int, nargs="+", default=[1, 10], help="with --against: found means among so many first")
    add("--far", type=float, help="with --against: compare pairs of pictures at this false accept rate")
    add("--pairs", help="with --far: list of pairs, as in docs/faces.md; drawn from the pictures if left out")
    add("--size", type=int, default=112, help="with --far: sides in pixels that pictures are stretched to")
    add("--max-negative-flip-rate", type=float, help="exit status 1 if a negative flip rate is above")
    add("--guide", help="text model that judges the negatives")
    add("--model", help="text model that the table was mined with; or that scores a file which brings its own texts")
    add("--encoder", help="class path of the Encoder that the table was mined with, instead of --model")
    add("--encoder-args", type=json.loads, help="its arguments as JSON")
    add("--mined-guide", help="text model that was --guide when the table was mined")
    add("--mined-cross-encoder", help="model that was --cross-encoder when the table was mined")
    add("--mined-with", type=json.loads, help="options of `hardneg mine` by which such a file was mined, as JSON")
    add("--anchor", help="column of the anchor in such a file; 'anchor' if left out")
    add("--positive", help="column of its positive; 'positive' if left out")
    add("--negatives", nargs="+", help="columns of its negatives; negative, negatives, negative_1, ... if left out")
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
    check_arguments(args)
    args.split = args.split or ("test" if args.against else "train")
    cache = EmbeddingCache(args.cache)
    if args.against:
        report, text, page = run_flips(args, cache)
        print(plain(text))
        if args.json:
            write_text(args.json, json.dumps(report, indent=1) + "\n")
        if args.html:
            write_page(args.html, page)
        return _verdict(failures(report, args.max_negative_flip_rate))
    mined, inputs = read(args, cache)
    making = read_making(mined.metadata, args.table) if is_ours(args.table) else None
    again = None if args.no_false_negatives or inputs is None else mining_arguments(mined, making, args)
    queries: dict[str, str] | None = None
    corpus: dict[str, str] | None = None
    content: dict[str, int] | None = None
    if inputs is not None:
        assert inputs.document_names is not None  # a folder and a file have texts
        assert inputs.content is not None
        queries, corpus = inputs.queries_by_name(), inputs.documents_by_name()
        content = dict(zip(inputs.document_names, inputs.content.tolist(), strict=True))
    report = audit(mined, content)
    if making is not None:
        report["made"] = making.as_dict(vars(mining_defaults()))
    if isinstance(again, str):
        report["not_estimated"] = again
    if inputs is not None:
        if isinstance(again, argparse.Namespace):
            report["false_negatives"] = false_negatives(inputs, cache, again, making, args)
        for name, model in (("staleness", args.checkpoint), ("guide", args.guide)):
            if model:
                report[name] = {"model": model} | asked(mined, inputs, cache, model, args.device)
    if corpus:
        report["use"]["most_used"] = [[name, count, corpus[name]] for name, count in report["use"]["most_used"]]
    print(plain(as_text(report)))
    if args.json:
        write_text(args.json, json.dumps(report, indent=1) + "\n")
    if args.html:
        write_page(args.html, as_html(report, mined, hardest(mined, queries, corpus)))
    failed = []
    if report["known_positives"] > args.max_known_positives:
        failed.append(f"{report['known_positives']} negatives are known positives")
    limit, rate = args.max_false_negative_rate, report.get("false_negatives")
    if limit is not None:
        if rate is None or not rate["hidden"]:
            failed.append("the false-negative rate could not be estimated")
        elif rate["rate"] > limit:
            failed.append(f"the false-negative rate {rate['rate']:.3f} is above {limit}")
    return _verdict(failed)


def _verdict(failed: Sequence[str]) -> int:
    """Say which thresholds were passed; the exit status."""
    for reason in failed:
        print(plain(f"FAILED: {reason}"))
    return int(bool(failed))


def read(args: argparse.Namespace, cache: EmbeddingCache) -> tuple[MinedNegatives, Inputs | None]:
    """The table, and what it was mined from where that is known."""
    columns = Columns(args.anchor, args.positive, args.negatives)
    if is_ours(args.table):
        if args.mined_with is not None or any(columns):
            raise ValueError(
                f"{args.table} says itself how it was mined; --mined-with, --anchor, --positive and --negatives are "
                "for files that do not."
            )
        if not args.folder and (option := named_by(args)):
            raise ValueError(f"{option} mines the table again, which needs the texts: give --folder.")
        mined = MinedNegatives.load(args.table)
        if args.folder:
            inputs = read_beir(args.folder, args.split)
            check_names(mined, inputs.queries_by_name() or {}, inputs.documents_by_name() or {}, args)
            return mined, inputs
        if args.max_false_negative_rate is not None or args.checkpoint or args.guide:
            raise ValueError("--max-false-negative-rate, --checkpoint and --guide need the texts: give --folder.")
        return mined, None
    if args.folder:
        raise ValueError(
            f"{args.table} brings its own texts; leave --folder out. (It was not mined by `hardneg mine`.)"
        )
    if (option := named_by(args)) not in (None, "--model"):
        raise ValueError(
            f"{option} is for tables of `hardneg mine`; {args.table} is none: use --model and --mined-with."
        )
    if args.max_false_negative_rate is not None and args.mined_with is None:
        raise ValueError(
            "--max-false-negative-rate mines again, and this file does not say how it was mined: give --model and "
            "--mined-with, options of `hardneg mine` as JSON ({} = the nearest documents)."
        )
    if args.mined_with is not None and not args.model:
        raise ValueError("--mined-with needs --model: the text model that the file was mined with.")
    mined, inputs = read_foreign(args.table, columns)
    if args.model:
        mined = scored_by(mined, inputs, *vectors(inputs, cache, args.model, args.device))
    return mined, inputs


def check_names(
    mined: MinedNegatives, queries: dict[str, str], corpus: dict[str, str], args: argparse.Namespace
) -> None:
    """Refuse a table that was mined from other data."""
    unknown = [one for one in mined.queries["query_id"].to_pylist() if one not in queries]
    unknown += [one for one in mined.table["doc_id"].unique().to_pylist() if one is not None and one not in corpus]
    if unknown:
        raise ValueError(
            f"{args.table} names {unknown[0]!r}, which {args.folder} (split {args.split}) does not have; "
            "give the data it was mined from."
        )


def named_by(args: argparse.Namespace) -> str | None:
    """The first option given that names how the table was mined; None if there is none."""
    options = ("model", "encoder", "encoder_args", "mined_guide", "mined_cross_encoder")
    return next((f"--{name.replace('_', '-')}" for name in options if getattr(args, name)), None)


def mining_defaults() -> argparse.Namespace:
    """The options of `hardneg mine` as they are when none is given."""
    parser = argparse.ArgumentParser()
    add_mining_arguments(parser)
    return parser.parse_args(["--out", "again.parquet"])


def mining_arguments(
    mined: MinedNegatives, making: Making | None, args: argparse.Namespace
) -> argparse.Namespace | str | None:
    """The options of `hardneg mine` that make the table again.

    Returns:
        The options; or a sentence that says which of them the user has to name; or None where a file of another
        trainer does not say how it was mined.

    Raises:
        ValueError: the table does not say how it was mined, ``--mined-with`` names no option, or the user has not named
            a model and asks for an exit status.
    """
    again = mining_defaults()
    again.device = args.device
    if making is None:
        if args.mined_with is None:
            return None
        options = check_options(args.mined_with, "--mined-with")
        vars(again).update({"num_negatives": mined.metadata["settings"]["num_negatives"], "model": args.model})
        vars(again).update({name: args.mined_with[name] for name in NAMED if name in args.mined_with} | options)
        return again
    if making.options is None:
        raise ValueError(f"{making.problem}: it cannot be mined again. Use --no-false-negatives.")
    given = {"guide": args.mined_guide, "cross_encoder": args.mined_cross_encoder}
    for name, value in given.items():
        if value and name not in making.named:
            raise ValueError(f"{NAMED[name]}: {args.table} was mined without one; leave it out.")
    needed = [NAMED[name] for name in given if name in making.named and not given[name]]
    if not (args.model or args.encoder):
        needed.insert(0, "--encoder" if "encoder" in making.named else "--model")
    if not args.model and args.encoder_args is None and "encoder_args" in making.named:
        needed.append("--encoder-args")
    if needed:
        sentence = (
            f"models that a table names are not loaded; to mine it again, give {' and '.join(needed)} (the table says: "
            f"{', '.join(f'{NAMED[name]} {value}' for name, value in making.named.items())})"
        )
        if args.max_false_negative_rate is not None:
            raise ValueError(f"--max-false-negative-rate: {sentence}.")
        return sentence
    vars(again).update(making.options | given)
    vars(again).update({"model": args.model, "encoder": args.encoder, "encoder_args": args.encoder_args or {}})
    return again


def false_negatives(
    inputs: Inputs, cache: EmbeddingCache, again: argparse.Namespace, making: Making | None, args: argparse.Namespace
) -> dict[str, Any]:
    """Hide a tenth of the positives, mine again in the same way, count what comes back as a negative.

    Returns:
        As `came_back`; ``other_weights`` says whether the encoder's weights are not those that the table names (None
        where it names none).
    """
    encoder = make_encoder(again)
    assert inputs.content is not None
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
        search_depth=again.search_depth,
        filters=make_filters(again, inputs, cache),
        sampling=make_sampling(again),
        sources=sources,
        ranks=again.ranks,
        too_few=again.too_few,
        seed=again.seed,
    )
    assert inputs.query_names is not None
    assert inputs.document_names is not None
    pairs = zip(query.tolist(), document.tolist(), strict=True)
    hidden = [(inputs.query_names[one], inputs.document_names[other]) for one, other in pairs]
    told = making is not None and any(making.weights)
    other = (queries.key, corpus.key) != making.weights if making is not None and told else None
    return came_back(table, hidden, args.seed) | {"other_weights": other}


def vectors(inputs: Inputs, cache: EmbeddingCache, model: str, device: str) -> tuple[Store, Store]:
    """Both sides as a text model sees them."""
    encoder = text_encoder(model, device)
    return cache.encode(encoder, inputs.queries, "query"), cache.encode(encoder, inputs.corpus, "document")


def asked(mined: MinedNegatives, inputs: Inputs, cache: EmbeddingCache, model: str, device: str) -> dict[str, Any]:
    """What another text model says of the negatives."""
    queries, corpus = vectors(inputs, cache, model, device)
    valid = mined.table.filter(mined.table["doc_id"].is_valid())
    place = {name: row for row, name in enumerate(inputs.query_names or ())}
    spot = {name: row for row, name in enumerate(inputs.document_names or ())}
    query = torch.tensor([place[name] for name in valid["query_id"].to_pylist()], dtype=torch.long)
    document = torch.tensor([spot[name] for name in valid["doc_id"].to_pylist()], dtype=torch.long)
    old = None if valid["score"].null_count else torch.tensor(valid["score"].to_numpy())
    return opinion(queries.vectors, corpus.vectors, (query, document), inputs.known, old)
