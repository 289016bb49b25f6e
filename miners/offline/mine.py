"""Mine a table of hard negatives from ready embeddings."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from miners.index import Index
from miners.index.torch_index import pair_scores
from miners.offline.candidates import Candidates, is_known, known_products
from miners.offline.filters import Filter, RankWindow
from miners.offline.mined import MinedNegatives, build_tables
from miners.offline.sampling import Sampling, Top
from miners.offline.shards import Shards
from miners.offline.sources import Dense, Source
from miners.offline.spool import spool
from miners.ragged import Ragged
from miners.store import Store, Vectors

logger = logging.getLogger(__name__)

TooFew = Literal["short", "drop", "pad", "relax"]
Known = Ragged | Sequence[Sequence[int]] | tuple[Tensor | np.ndarray, Tensor | np.ndarray]
HASH_BYTES = 16 << 20
PER_NEGATIVE = 10  # default search depth per negative when rules may drop candidates, as sentence-transformers has it


def mine(
    queries: Store | Vectors | Iterable[Tensor | np.ndarray],
    corpus: Store | Vectors | Iterable[Tensor | np.ndarray],
    known: Known,
    *,
    num_negatives: int,
    search_depth: int | None = None,
    filters: Sequence[Filter] = (),
    sampling: Sampling | None = None,
    index: str | Index = "auto",
    sources: Sequence[Source] | None = None,
    ranks: Literal["raw", "survivors"] = "raw",
    too_few: TooFew = "short",
    seed: int = 0,
    chunk: int = 8192,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool | Callable[[int, int], None] = False,
    metadata: Mapping[str, Any] | None = None,
) -> MinedNegatives:
    """Find hard negatives for every query and say where each came from.

    For each chunk of queries: retrieve ``search_depth`` documents, take out the known positives, apply the filters in
    their order, sample from what is left. Scores are inner products; normalise vectors first for cosine. Memory is
    bounded by ``chunk`` and by a block of documents, never by queries x documents.

    Args:
        queries: (Q, d) vectors: store, tensor, array, memory map, ``.npy`` path, or an iterator of (n, d) chunks.
        corpus: (M, d) documents, likewise. An iterator is written to a temporary file first, so that it may be larger
            than memory.
        known: for each query the ids of its positives in the corpus: `Ragged`, lists, or (offsets, ids).
        num_negatives: negatives per query.
        search_depth: documents retrieved per query, known positives included; None: ``num_negatives`` (10 times that
            when there are filters) + what a `RankWindow` skips + the largest number of positives, at most M.
        filters: rules, applied in this order.
        sampling: `Top` (default), `Random` or `Softmax`.
        index: specification for `build_index`, or a ready index over the corpus.
        sources: retrievers with quotas that sum to ``num_negatives``, instead of ``index``. A document that an earlier
            source gave is not given again.
        ranks: whether a `RankWindow` counts the retrieved list or what the rules before it left.
        too_few: when fewer than ``num_negatives`` survive: "short" keeps what there is; "drop" keeps none of that
            query; "pad" fills up with rows whose document is null; "relax" takes back what the score rules dropped,
            last rule first, and names the rule in the column ``relaxed``. Positives and duplicates never come back.
        seed: of the sampling.
        chunk: queries worked on together, and per shard on disk.
        out: path of the Parquet file to write; its shards stand beside it until the table is whole. None: in memory.
        resume: go on where an interrupted run with the same inputs and settings stopped; False starts anew.
        progress: True prints rate and time left to stderr; or a function of (queries done, queries in all).
        metadata: kept with the table: hash of the model's weights, prompt, revision, ...

    Raises:
        ValueError: vectors that do not fit each other, positives that are not in the corpus, queries without
            positives, settings that contradict each other, or inputs that changed since the run that is resumed.
        InUse: another run writes to ``out``.
        OSError: the disk is full or ``out`` cannot be written; finished shards are kept.
    """
    sampling = Top() if sampling is None else sampling
    shards = None if out is None else Shards(out)
    with (
        shards or nullcontext(),
        spool(queries, "query", shards) as query_store,
        spool(corpus, "document", shards) as corpus_store,
    ):
        lists = positives_by_row(known, query_store, corpus_store)
        chosen = list(sources) if sources is not None else [Dense(index)]
        counts = quotas(chosen, num_negatives)
        depth = check(query_store, corpus_store, lists, num_negatives, search_depth, filters, ranks, too_few, chunk)
        settings = {
            "num_negatives": num_negatives,
            "search_depth": depth,
            "filters": [{item.name: described(item.settings())} for item in filters],
            "sampling": {type(sampling).__name__: described(sampling.settings())},
            "sources": [described(source.settings()) for source in chosen],
            "ranks": ranks,
            "too_few": too_few,
            "seed": seed,
            "chunk": chunk,
        }
        record = {
            "settings": settings,
            "inputs": {
                "queries": described(query_store),
                "corpus": described(corpus_store),
                "model": dict(metadata or {}),
            },
            "versions": versions(),
        }
        if shards is not None:
            fingerprints = {
                "queries": fingerprint(query_store),
                "corpus": fingerprint(corpus_store),
                "known": digest([lists.offsets, lists.values]),
            }
            shards.open(record | {"fingerprints": fingerprints}, resume)
        starts = range(0, len(query_store), chunk)
        todo = [start for start in starts if shards is None or shards.path(start // chunk) is None]
        report = reporter(progress, len(query_store), (len(starts) - len(todo)) * chunk)
        if todo:
            for source in chosen:
                source.attach(corpus_store)
        parts = []
        for start in todo:
            rows = torch.arange(start, min(start + chunk, len(query_store)))
            tables = mine_chunk(
                rows, query_store, corpus_store, lists, chosen, counts, filters, sampling, depth, ranks, too_few, seed
            )
            if shards is None:
                parts.append(tables)
            else:
                shards.write(start // chunk, tables)
            report(int(rows[-1]) + 1)
        for source in chosen if todo else ():
            if text := source.report():
                logger.info("%s: %s", source.name, text)
        if shards is not None:
            return shards.finish(len(starts))
        return MinedNegatives.join(parts, record)


def mine_chunk(
    query_rows: Tensor,
    queries: Store,
    corpus: Store,
    lists: Ragged,
    sources: Sequence[Source],
    counts: Sequence[int],
    filters: Sequence[Filter],
    sampling: Sampling,
    depth: int,
    ranks: str,
    too_few: TooFew,
    seed: int,
) -> tuple[Any, Any]:
    """Mine one chunk of queries; returns the rows of both tables."""
    vectors = queries.vectors[query_rows].float()
    known = lists.select(query_rows)
    positive_products = known_products(vectors, corpus, known)
    found = []
    taken = torch.empty(len(query_rows), 0, dtype=torch.int64)  # rows that an earlier source gave
    for source, count in zip(sources, counts, strict=True):
        rows, products = source.propose(query_rows, vectors, depth)
        missing = rows < 0
        rows = rows.masked_fill(missing, 0).cpu()
        missing = missing.cpu()
        if products is None:
            products = pair_scores(vectors, corpus.vectors, rows).cpu()
        candidates = Candidates(
            query_rows,
            vectors,
            corpus,
            known,
            rows,
            torch.arange(1, rows.shape[1] + 1).expand(rows.shape),
            products.cpu(),
            positive_products,
            torch.full(rows.shape, -1, dtype=torch.int16),
            count_survivors=ranks == "survivors",
        )
        candidates.drop(missing, "not_found")
        candidates.drop(is_known(rows, known), "known")
        for rule in filters:
            rule(candidates)
        if len(sources) > 1:
            candidates.drop((candidates.rows[:, :, None] == taken[:, None, :]).any(2), "taken")
        columns, chosen = sampling.choose(candidates, count, seed)
        if too_few == "relax":
            columns, chosen = relax(candidates, filters, columns, chosen, count)
        found.append((source.name, candidates, columns, chosen))
        taken = torch.cat([taken, candidates.rows.gather(1, columns).masked_fill(~chosen, -1)], dim=1)
    return build_tables(query_rows, queries, corpus, known, positive_products, found, too_few, filters)


def relax(
    candidates: Candidates, filters: Sequence[Filter], columns: Tensor, chosen: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Fill empty slots with what score rules dropped: the last rule's first, nearest to passing first."""
    # priority of every candidate: chosen ones first, then relaxable ones rule by rule, the rest never
    place = torch.zeros_like(candidates.dropped_by, dtype=torch.bool).scatter_(1, columns, chosen)
    key = torch.full(candidates.scores.shape, float("-inf"), dtype=torch.float64)
    key[place] = float("inf")
    ordinal = candidates.scores.argsort(dim=1, stable=True).argsort(dim=1).double()  # 0 = lowest score
    width = candidates.scores.shape[1]
    for number, rule in enumerate(candidates.rules):
        how = next((item.relaxes for item in filters if item.name == rule), None)
        if how is None:
            continue
        near = (width - ordinal) if how == "lowest" else ordinal
        key = torch.where(candidates.dropped_by == number, number * 2.0 * width + near, key)
    order = key.sort(dim=1, descending=True, stable=True).indices[:, :count]
    real = key.gather(1, order) > float("-inf")
    order = order.masked_fill(~real, width).sort(dim=1).values
    real = order < width
    return order.masked_fill(~real, 0), real


def positives_by_row(known: Known, queries: Store, corpus: Store) -> Ragged:
    """Turn the positives' ids into rows of the corpus, checked."""
    if isinstance(known, tuple) and len(known) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in known):
        lists = Ragged(torch.as_tensor(known[0]).long(), torch.as_tensor(known[1]).long())
    elif isinstance(known, Ragged):
        lists = known
    else:
        lists = Ragged.from_lists(known)  # type: ignore[arg-type]
    if len(lists) != len(queries):
        raise ValueError(f"mine got {len(queries)} queries and positives of {len(lists)}; each query needs a list.")
    if (empty := lists.lengths == 0).any():
        first = int(queries.ids[empty.nonzero()[0, 0]])
        raise ValueError(
            f"mine: {int(empty.sum())} of {len(queries)} queries have no known positive, the first is query {first}. "
            "Leave them out, or give each at least one."
        )
    try:
        return Ragged(lists.offsets, corpus.positions(lists.values))
    except KeyError as error:
        raise ValueError(f"mine: a known positive is not in the corpus. {error.args[0]}") from None


def quotas(sources: Sequence[Source], num_negatives: int) -> list[int]:
    """How many each source gives: a single one all, several what their quotas say."""
    given = [source.quota for source in sources]
    if given == [None]:
        return [num_negatives]
    numbers = [quota for quota in given if quota is not None]
    if len(numbers) < len(given) or sum(numbers) != num_negatives:
        raise ValueError(f"mine: the sources' quotas are {given}; they must sum to num_negatives={num_negatives}.")
    if len({source.name for source in sources}) < len(sources):
        raise ValueError(f"mine: two sources share a name: {[source.name for source in sources]}.")
    return numbers


def check(
    queries: Store,
    corpus: Store,
    known: Ragged,
    num_negatives: int,
    search_depth: int | None,
    filters: Sequence[Filter],
    ranks: str,
    too_few: str,
    chunk: int,
) -> int:
    """Refuse what cannot be mined; return the search depth."""
    if len(queries) == 0 or len(corpus) == 0:
        raise ValueError(f"mine got {len(queries)} queries and {len(corpus)} documents; both need at least one.")
    if queries.dim != corpus.dim:
        raise ValueError(
            f"mine: queries have {queries.dim} dims, documents {corpus.dim}; both must come from encoders of one space."
        )
    if num_negatives < 1 or chunk < 1:
        raise ValueError(f"mine(num_negatives={num_negatives}, chunk={chunk}): both must be at least 1.")
    if ranks not in ("raw", "survivors"):
        raise ValueError(f"mine(ranks={ranks!r}): 'raw' or 'survivors'.")
    if too_few not in get_args(TooFew):
        raise ValueError(f"mine(too_few={too_few!r}): one of {', '.join(map(repr, get_args(TooFew)))}.")
    names = [rule.name for rule in filters]
    if len(set(names)) < len(names):
        raise ValueError(f"mine: a filter stands twice in {names}; merge the two.")
    if search_depth is None:
        return default_depth(num_negatives, filters, known, len(corpus))
    skipped = skipped_ranks(filters)
    if not 1 <= search_depth <= len(corpus):
        raise ValueError(f"mine(search_depth={search_depth}): the corpus has {len(corpus)} documents.")
    if search_depth < num_negatives + skipped:
        raise ValueError(
            f"mine(search_depth={search_depth}) cannot give num_negatives={num_negatives}"
            + (f" after skipping {skipped} ranks" if skipped else "")
            + f"; use at least {num_negatives + skipped}, and one more for each known positive."
        )
    return search_depth


def default_depth(num_negatives: int, filters: Sequence[Filter], known: Ragged, documents: int) -> int:
    """How many documents are retrieved per query unless the caller says so."""
    wanted = num_negatives * (PER_NEGATIVE if filters else 1)
    return min(documents, wanted + skipped_ranks(filters) + int(known.lengths.max()))


def skipped_ranks(filters: Sequence[Filter]) -> int:
    """How many of the first ranks the filters leave out."""
    return max((rule.first - 1 for rule in filters if isinstance(rule, RankWindow)), default=0)


def described(thing: Any) -> Any:
    """Make plain JSON of settings; arrays and stores are told by shape and hash."""
    if isinstance(thing, Store):
        return {
            "rows": len(thing),
            "dim": thing.dim,
            "dtype": str(thing.vectors.dtype)[6:],
            "space": thing.space,
            "key": thing.key,
            "version": thing.version,
        }
    if isinstance(thing, Tensor | np.ndarray):
        return {"shape": list(thing.shape), "sha256": digest([torch.as_tensor(thing)])}
    if isinstance(thing, Mapping):
        return {str(key): described(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [described(value) for value in thing]
    return thing if isinstance(thing, str | int | float | bool | None) else repr(type(thing))


def fingerprint(store: Store) -> str:
    """Hash everything that shapes a result: vectors, ids, names."""
    names = [] if store.names is None else ["\0".join(store.names).encode()]
    return digest([store.vectors, store.ids, *names])


def digest(parts: Iterable[Tensor | bytes]) -> str:
    """SHA-256 of tensors and bytes, read block by block."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, bytes):
            total.update(part)
            continue
        total.update(f"{part.dtype}{tuple(part.shape)}".encode())
        wide = part.shape[1] if part.ndim > 1 else 1
        for block in part.split(max(1, HASH_BYTES // max(1, wide * part.element_size()))):
            total.update(block.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computes: a table tells what made it."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("hardneg", "torch", "numpy", "pyarrow", "faiss-cpu", "faiss-gpu", "bm25s"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def reporter(progress: bool | Callable[[int, int], None], total: int, done: int) -> Callable[[int], None]:
    """Return a function that tells how many queries are done."""
    if callable(progress):
        return lambda now: progress(now, total)
    if not progress:
        return lambda now: None
    begin, before = time.monotonic(), done

    def tell(now: int) -> None:
        rate = (now - before) / max(time.monotonic() - begin, 1e-9)
        left = (total - now) / max(rate, 1e-9)
        end = "\n" if now >= total else "\r"
        print(
            f"mined {now:,} of {total:,} queries, {rate:,.0f}/s, {left:,.0f} s left   ",
            end=end,
            file=sys.stderr,
            flush=True,
        )

    return tell
