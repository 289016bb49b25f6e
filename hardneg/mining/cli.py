"""Mine a table of hard negatives.

From a BEIR folder and a text model:
  hardneg mine data/scifact --model sentence-transformers/all-MiniLM-L6-v2 --out negatives.parquet \\
      --num-negatives 5 --first-rank 11 --relative-margin 0.05

From ready embeddings, with positives as a table of ids (columns query-id and corpus-id, counted from 0):
  hardneg mine --queries q.npy --corpus d.npy --known positives.tsv --out negatives.parquet

From anything that an encoder encodes, with classes as positives (images, sensor windows):
  hardneg mine --corpus windows.npy --labels actions.npy --encoder my_package.MyEncoder --out negatives.parquet

A second run with other filters takes the vectors from the cache. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardneg.encoders.base import Encoder
from hardneg.instantiate import instantiate
from hardneg.mining.cache import EmbeddingCache, Seen
from hardneg.mining.inputs import Inputs, load_array, read_beir, read_known
from hardneg.mining.overlap import MOST_KEPT, Overlap
from miners.offline import (
    AbsoluteMargin,
    Dense,
    Filter,
    Guide,
    Lexical,
    MaxScore,
    MinScore,
    NearDuplicate,
    Random,
    RankWindow,
    RelativeMargin,
    Rescore,
    SameContent,
    Sampling,
    Softmax,
    Source,
    Top,
    mine,
)
from miners.offline.mine import default_depth
from miners.ragged import Ragged
from miners.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hardneg mine``."""
    add = parser.add_argument
    add("folder", nargs="?", help="BEIR folder: corpus.jsonl, queries.jsonl, qrels/; or sample:NAME")
    add("--split", default="train", help="judgements that say what is positive: qrels/SPLIT.tsv")
    add("--queries", type=Path, help=".npy of query vectors, or of raw items if --encoder is given")
    add("--corpus", type=Path, help=".npy of document vectors, or of raw items; queries too if --queries is left out")
    add("--known", type=Path, help="table with columns query-id and corpus-id: rows of --queries and --corpus")
    add("--labels", type=Path, help=".npy of classes of --corpus: items of one class are positives of each other")
    add("--model", help="text model: hub name, folder, or packaged:all-MiniLM-L6-v2")
    add("--encoder", help="class path of an Encoder, or of a function that returns one, instead of --model")
    add("--encoder-args", type=json.loads, default={}, help="its arguments as JSON")
    add("--query-prompt", help="put before every query; the model's own if left out")
    add("--document-prompt", help="put before every document; the model's own if left out")
    add("--batch-size", type=int, default=64, help="inputs that go through the encoder together")
    add("--dot", action="store_true", help="inner products as they are; otherwise vectors are scaled to length 1")
    add("--cache", type=Path, default=Path(".hardneg_cache"), help="folder where encoded vectors are kept")
    add("--no-cache", action="store_true", help="keep no vectors")
    add("--processes", type=int, default=1, help="encode in so many processes; on GPUs each takes the next one")
    add("--no-overlap", action="store_true", help="search after all is encoded, not while it is; the table is the same")
    add("--device", default="auto", help="where to encode and search: auto, cpu, cuda, cuda:1, mps")
    add("--out", type=Path, required=True, help="Parquet file to write")
    add(
        "--export",
        nargs=2,
        metavar=("LAYOUT", "PATH"),
        action="append",
        default=[],
        help="also write flagembedding, tevatron or nemo; repeatable",
    )
    add("--num-negatives", type=int, default=5, help="negatives per query")
    add("--search-depth", type=int, help="documents retrieved per query")
    add("--first-rank", type=int, default=1, help="first rank kept, 1 = best")
    add("--last-rank", type=int, help="last rank kept")
    add("--ranks", choices=("raw", "survivors"), default="raw", help="what --first-rank and --last-rank count")
    add("--max-score", type=float, help="drop what scores above")
    add("--min-score", type=float, help="drop what scores below")
    add("--absolute-margin", type=float, help="keep what scores this much below the positive")
    add("--relative-margin", type=float, help="keep what scores this share below the positive; 0.05 = 5 %%")
    add("--positive", choices=("lowest", "highest", "mean"), default="lowest", help="which of several positives counts")
    add("--near-duplicate", type=float, help="drop what has at least this cosine with a positive")
    add("--guide", help="text model that judges: drop what it scores above its own positive")
    add("--guide-margin", type=float, default=0.0, help="relative margin in the guide's scores")
    add("--cross-encoder", help="model that scores pairs anew before the margins are applied")
    add("--sampling", choices=("top", "random", "softmax"), default="top", help="which of the survivors are taken")
    add("--temperature", type=float, default=0.05, help="of --sampling softmax")
    add("--bm25", type=int, default=0, metavar="N", help="take N of the negatives from BM25")
    add("--index", default="auto", help="auto or torch (exact), or any FAISS factory string")
    add("--too-few", choices=("short", "drop", "pad", "relax"), default="short", help="when too few survive")
    add("--seed", type=int, default=0, help="of the sampling")
    add("--chunk", type=int, default=8192, help="queries worked on together")
    add("--no-resume", action="store_true", help="start anew instead of going on")


def run(args: argparse.Namespace) -> None:
    """Mine, write the table, and say what was found.

    Raises:
        ValueError, OSError, ImportError: each text stands alone.
    """
    inputs = read_inputs(args)
    cache = EmbeddingCache(None if args.no_cache else args.cache, args.processes)
    encoder = make_encoder(args)
    if args.bm25 and not inputs.texts:
        raise ValueError("--bm25 needs texts: give a BEIR folder.")
    rules = make_filters(args, inputs, cache)
    overlap: Overlap | None = None

    def watch(queries: Store) -> Seen | None:
        """Search what of the corpus is encoded while the rest is, unless that would keep too much in memory."""
        nonlocal overlap
        depth = args.search_depth or default_depth(args.num_negatives, rules, inputs.known, len(inputs.corpus))
        if args.no_overlap or args.index not in ("auto", "torch") or depth * len(queries) > MOST_KEPT:
            return None
        overlap = Overlap(queries, depth, args.device)
        return overlap.take

    queries, corpus = encode(inputs, encoder, cache, args, watch)
    quota = args.num_negatives - args.bm25
    searched = overlap.source(len(corpus), args.index, quota) if overlap else None
    sources: list[Source] = [searched or Dense(args.index, quota, device=args.device)]
    if args.bm25:
        sources.append(Lexical(inputs.queries, inputs.corpus, args.bm25))
    mined = mine(
        queries,
        corpus,
        inputs.known,
        num_negatives=args.num_negatives,
        search_depth=args.search_depth,
        filters=rules,
        sampling=make_sampling(args),
        sources=sources,
        ranks=args.ranks,
        too_few=args.too_few,
        seed=args.seed,
        chunk=args.chunk,
        out=args.out,
        resume=not args.no_resume,
        progress=True,
        metadata={
            "encoder": args.encoder or args.model,
            "query_weights": queries.key,
            "document_weights": corpus.key,
            "query_prompt": args.query_prompt,
            "document_prompt": args.document_prompt,
            "queries_are_corpus": inputs.queries is inputs.corpus,
            "arguments": plain_arguments(args),
        },
    )
    print(mined.summary())
    print(f"written: {args.out}")
    for layout, path in args.export:
        mined.to_jsonl(path, layout, queries=inputs.queries_by_name(), corpus=inputs.documents_by_name())
        print(f"written: {path}")


def plain_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What shaped the table, without where anything lies: so that the audit can mine again in the same way."""
    places = {
        "folder",
        "queries",
        "corpus",
        "known",
        "labels",
        "cache",
        "no_cache",
        "out",
        "export",
        "device",
        "no_resume",
        "no_overlap",
        "processes",
    }
    return {name: value for name, value in vars(args).items() if name not in places}


def read_inputs(args: argparse.Namespace) -> Inputs:
    """Read a BEIR folder or arrays."""
    if args.folder:
        if args.queries or args.corpus or args.known or args.labels:
            raise ValueError("Give a BEIR folder, or --queries, --corpus and --known or --labels; not both.")
        return read_beir(args.folder, args.split)
    if not args.corpus or not (args.known or args.labels):
        raise ValueError("Give a BEIR folder, or --corpus with --known (a table of ids) or --labels (classes).")
    corpus = load_array(args.corpus)
    queries = load_array(args.queries) if args.queries else corpus
    if args.known:
        return Inputs(queries, corpus, read_known(args.known, len(queries), len(corpus)))
    if args.queries:
        raise ValueError("--labels speaks of --corpus alone; leave --queries out, or use --known.")
    labels = torch.from_numpy(np.array(load_array(args.labels)))
    if labels.shape != (len(corpus),):
        raise ValueError(f"{args.labels} holds {tuple(labels.shape)} labels for {len(corpus)} items of {args.corpus}.")
    # an item is its own positive here: it must never be its own negative
    order = labels.argsort(stable=True)
    _, group, sizes = labels.unique(return_inverse=True, return_counts=True)
    classes = Ragged(torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), order)
    return Inputs(queries, corpus, classes.select(group))


def make_encoder(args: argparse.Namespace) -> Encoder | None:
    """The encoder that the arguments name; None for ready vectors."""
    if args.encoder and args.model:
        raise ValueError("Give --model (a text model) or --encoder (a class path), not both.")
    return encoder_on(args, args.device) if args.model or args.encoder else None


def encoder_on(args: argparse.Namespace, device: str) -> Encoder:
    """The encoder that the arguments name, on a device: in this process or in another."""
    if args.model:
        return text_encoder(args.model, device, args.query_prompt, args.document_prompt)
    encoder = instantiate(args.encoder, args.encoder_args, Encoder, "--encoder")  # type: ignore[type-abstract]
    return encoder.to(place(device))


def text_encoder(
    model: str, device: str, query_prompt: str | None = None, document_prompt: str | None = None
) -> Encoder:
    """A sentence-transformers model on a device."""
    from hardneg.encoders.text import TextEncoder

    return TextEncoder(model, query_prompt=query_prompt, document_prompt=document_prompt, device=place(device))


def place(device: str) -> str:
    """Turn "auto" into CUDA if there is one, else the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def encode(
    inputs: Inputs,
    encoder: Encoder | None,
    cache: EmbeddingCache,
    args: argparse.Namespace,
    watch: Callable[[Store], Seen | None] = lambda queries: None,
) -> tuple[Store, Store]:
    """Vectors of both sides as stores.

    Args:
        watch: is given the queries before the corpus is encoded, and says who sees its chunks.
    """
    if encoder is None:
        if inputs.texts:
            raise ValueError("A BEIR folder needs a model: give --model or --encoder.")
        queries, corpus = unit(inputs.queries, args.dot), unit(inputs.corpus, args.dot)
        return Store(queries, space="query"), Store(corpus, space="document")
    options: dict[str, Any] = {"unit": not args.dot, "batch_size": args.batch_size, "make": partial(encoder_on, args)}
    if inputs.queries is inputs.corpus:
        both = cache.encode(encoder, inputs.corpus, "document", **options)
        return Store(both.vectors, space="query", key=both.key), both
    asked = cache.encode(encoder, inputs.queries, "query", names=inputs.query_names, **options)
    seen = watch(asked)
    return asked, cache.encode(encoder, inputs.corpus, "document", names=inputs.document_names, seen=seen, **options)


def unit(vectors: np.ndarray, dot: bool) -> np.ndarray:
    """Ready vectors must have length 1 unless inner products are asked for; they are not copied."""
    if vectors.ndim != 2:
        raise ValueError(f"Ready vectors have shape (n, d), got {vectors.shape}. Raw items need --encoder.")
    lengths = np.linalg.norm(vectors[:1024].astype(np.float32), axis=1)
    lengths = lengths[np.isfinite(lengths)]  # the store names the rows that are not finite
    if not dot and len(lengths) and not np.allclose(lengths, 1, atol=1e-2):
        raise ValueError(
            f"Ready vectors have lengths between {lengths.min():.3g} and {lengths.max():.3g}. Scale them to length 1, "
            "or give --dot for inner products as they are."
        )
    return vectors


def make_filters(args: argparse.Namespace, inputs: Inputs, cache: EmbeddingCache) -> list[Filter]:
    """The rules that the arguments name: duplicates, the model that rescores, margins and bounds, ranks."""
    rules: list[Filter] = []
    if args.ranks == "raw" and (args.first_rank > 1 or args.last_rank):
        rules.append(RankWindow(args.first_rank, args.last_rank))
    if inputs.content is not None:
        rules.append(SameContent(inputs.content))
    if args.near_duplicate is not None:
        rules.append(NearDuplicate(args.near_duplicate))
    if args.cross_encoder:
        from sentence_transformers import CrossEncoder

        from hardneg.encoders.model_files import check_model

        check_model(args.cross_encoder)
        model = CrossEncoder(args.cross_encoder, device=place(args.device), trust_remote_code=False)
        rules.append(Rescore(model.predict, inputs.queries, inputs.corpus, name=args.cross_encoder))
    if args.absolute_margin is not None:
        rules.append(AbsoluteMargin(args.absolute_margin, args.positive))
    if args.relative_margin is not None:
        rules.append(RelativeMargin(args.relative_margin, args.positive))
    if args.max_score is not None:
        rules.append(MaxScore(args.max_score))
    if args.min_score is not None:
        rules.append(MinScore(args.min_score))
    if args.guide:
        guide = text_encoder(args.guide, args.device)
        options: dict[str, Any] = {"batch_size": args.batch_size, "make": partial(text_encoder, args.guide)}
        queries = cache.encode(guide, inputs.queries, "query", **options)
        corpus = cache.encode(guide, inputs.corpus, "document", **options)
        rules.append(Guide(queries, corpus, relative_margin=args.guide_margin, positive=args.positive))
    if args.ranks == "survivors" and (args.first_rank > 1 or args.last_rank):
        rules.append(RankWindow(args.first_rank, args.last_rank))
    return rules


def make_sampling(args: argparse.Namespace) -> Sampling:
    """The sampling that the arguments name."""
    return {"top": Top, "random": Random}[args.sampling]() if args.sampling != "softmax" else Softmax(args.temperature)
