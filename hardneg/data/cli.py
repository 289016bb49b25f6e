"""Make training data.

Triplets for composed image retrieval (SPN4CIR's further positives), one for each picture that has a vector:
  hardneg predict --config recipes/cir_emoji.yaml --folder runs/vectors ...      (or any store of vectors with names)
  hardneg data make-triplets --captions captions.csv --features runs/vectors/stores/image \\
      --first-rank 600 --last-rank 1200 --out made.jsonl

captions.csv (or .jsonl, .tsv, .parquet) has a column "file" and one with captions. Pictures are ranked by cosine of
their vectors, the picture itself at rank 0; a target is drawn from the window. Train with --data.extra made.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datamodules.generated_triplets import TEMPLATES, fits_in, make_triplets, read_captions, write_triplets
from datamodules.readers import Place, expand, read_records, text_field
from miners.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hardneg data``."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    made = kinds.add_parser("make-triplets", help="captions and vectors of pictures -> training triplets")
    add = made.add_argument
    add("--captions", type=Path, required=True, help="table with a column file, and one with captions")
    add("--caption", default="caption", help="name of that column")
    add("--features", type=Path, required=True, help="store of vectors with names, or .npy of vectors")
    add("--names", type=Path, help="with .npy: table whose column file names its rows; the captions' if left out")
    add("--first-rank", type=int, default=10000, help="of a target, 0 = the picture itself")
    add("--last-rank", type=int, default=14999, help="of a target, included; the defaults are CIRR's as published")
    add("--template", action="append", help=f"with {{ref}} and {{target}}; repeatable. Default: {TEMPLATES[:2]}")
    add("--references", type=Path, help="table with a column reference: only these are references")
    add("--limit", type=int, help="keep so many, drawn at random")
    add("--seed", type=int, default=42, help="of all draws")
    add("--tokenizer", help="model whose tokenizer counts: a longer text becomes the target's caption")
    add("--max-tokens", type=int, default=77, help="with --tokenizer")
    add("--out", type=Path, required=True, help=".jsonl to write")


def run(args: argparse.Namespace) -> None:
    """Make the triplets and say how many.

    Raises:
        ValueError, OSError: each text stands alone.
    """
    references = None
    if args.references is not None:
        references = [text_field(place, fields, "reference") for place, fields in read_records(args.references)]
    captions = read_captions(args.captions, args.caption)
    triplets = make_triplets(
        captions,
        _features(args, list(captions)),
        args.first_rank,
        args.last_rank,
        args.template or TEMPLATES[:2],
        references,
        args.limit,
        args.seed,
        Place(args.captions, 0),
        fits_in(args.tokenizer, args.max_tokens),
    )
    write_triplets(triplets, args.out)
    print(f"{args.out}: {len(triplets)} triplets, targets of ranks {args.first_rank} to {args.last_rank}")


def _features(args: argparse.Namespace, captioned: list[str]) -> Store:
    if args.features.suffix != ".npy":
        return Store.load(expand(args.features))
    names = captioned
    if args.names is not None:
        names = [text_field(place, fields, "file") for place, fields in read_records(args.names)]
    return Store(expand(args.features), names=names)
