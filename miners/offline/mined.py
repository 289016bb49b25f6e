"""The table of mined negatives: where each came from, and per query what was dropped by which rule."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from miners.offline.candidates import Candidates, reduce_lists
from miners.ragged import Ragged
from miners.store import Store
from miners.transaction import Damaged, Manifest, Transaction, locked, manifest_of, read_published

if TYPE_CHECKING:
    import pyarrow as pa

    from miners.offline.filters import Filter

logger = logging.getLogger(__name__)

METADATA = b"hardneg"
FORMAT = 2
REMEDY = "remove it and its manifest, and mine again"
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
DROPPED = "dropped_"
SCORES = ("score", "positive_score", "guide_score", "rescore")

Items = Mapping[Any, Any] | Sequence[Any]
"""Texts (or anything Arrow holds) by id: a mapping, or a sequence where ids count from 0."""


class MinedNegatives:
    """Hard negatives with their provenance.

    Args:
        table: one row per negative, in rank order within a query, queries in the order they were mined:
            ``query_id``, ``doc_id`` (strings where the stores have names, else int64; null = an empty slot that pads),
            ``rank`` in the list of its source (1 = best), ``score`` (float64 row product rounded to float32),
            ``positive_score`` (the query's lowest positive), ``guide_score``, ``rescore``, ``source``, and ``relaxed``
            (the rule that was relaxed to let it in, usually null).
        queries: one row per query: ``query_id``, ``found``, ``dropped_<rule>`` counts, ``positive_ids``,
            ``positive_scores``.
        metadata: settings, inputs and versions; never a time, host or duration, so that equal runs give equal files.
    """

    def __init__(self, table: pa.Table, queries: pa.Table, metadata: Mapping[str, Any]) -> None:
        self.table, self.queries, self.metadata = table, queries, dict(metadata)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"MinedNegatives({len(self.table)} negatives of {len(self.queries)} queries)"

    @classmethod
    def join(cls, parts: Sequence[tuple[pa.Table, pa.Table]], metadata: Mapping[str, Any]) -> MinedNegatives:
        """Put the tables of consecutive chunks together."""
        import pyarrow as pa

        table = pa.concat_tables([negatives for negatives, _ in parts])
        queries = pa.concat_tables([queries for _, queries in parts])
        return cls(table, queries, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MinedNegatives:
        """Read a table that `to_parquet` or ``mine(out=...)`` wrote; its checksums are compared first.

        A table without a manifest beside it (written before there were checksums, or copied without it) is read, and
        the log says that it is unchecked.

        Raises:
            FileNotFoundError: the file, or its table of queries beside it, is missing.
            Damaged: a file was changed or damaged, or the two tables do not belong together.
            ValueError: a Parquet file that this library did not write.
        """
        path = Path(path)
        if manifest_of(path).exists():
            return read_published(manifest_of(path), REMEDY, lambda manifest: cls._read_checked(path, manifest))
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist.")
        mined = cls._read(path, path, beside(path))
        logger.warning("%s has no manifest beside it: read as it is, unchecked.", path)
        return mined

    @classmethod
    def _read_checked(cls, path: Path, manifest: Manifest) -> MinedNegatives:
        names = {role: entry.path.name for role, entry in manifest.files.items()}
        if names != {"negatives": path.name, "queries": beside(path).name}:
            raise Damaged(
                f"{manifest.path} belongs to other tables than {path}. Remove it to read the table unchecked."
            )
        return cls._read(path, manifest.verified("negatives", REMEDY), manifest.verified("queries", REMEDY))

    @classmethod
    def _read(cls, path: Path, negatives: Path, queries: Path) -> MinedNegatives:
        """Read both tables from where they are now.

        Args:
            path: what the caller asked for; named in messages.
            negatives, queries: where the tables are.
        """
        table = read_parquet(negatives)
        metadata = (table.schema.metadata or {}).get(METADATA)
        if metadata is None:
            raise ValueError(f"{path} is no table of mined negatives: its metadata has no {METADATA.decode()!r}.")
        if not queries.exists():
            raise FileNotFoundError(f"{queries} is missing; it belongs to {path}.")
        by_query = read_parquet(queries)
        if (by_query.schema.metadata or {}).get(METADATA) != metadata:
            raise Damaged(f"{path} and {queries.name} come from two runs with other settings. Mine again.")
        mined = cls(table.replace_schema_metadata(None), by_query.replace_schema_metadata(None), plain(metadata, path))
        mined.check(path)
        return mined

    def check(self, path: Path) -> None:
        """Check the columns of both tables, the metadata, and that the two tables belong together.

        Args:
            path: of the table, for messages.

        Raises:
            Damaged: a column is missing or of another type, a number is not finite, a query of the negatives is not
                among the queries, or the numbers of negatives differ from those that the table of queries gives.
        """
        try:
            self._check_columns()
            self._check_metadata()
            self._check_queries()
            self._check_numbers()
        except Damaged as error:
            raise Damaged(f"{path}: {error}; this is no whole table of mined negatives. Mine again.") from None

    def _check_columns(self) -> None:
        import pyarrow as pa

        negatives: dict[str, Callable[[pa.DataType], bool]] = {
            "query_id": is_id,
            "doc_id": is_id,
            "rank": pa.types.is_integer,
            **dict.fromkeys(SCORES, pa.types.is_floating),
            **dict.fromkeys(("source", "relaxed"), pa.types.is_string),
        }
        queries: dict[str, Callable[[pa.DataType], bool]] = {
            "query_id": is_id,
            "found": pa.types.is_integer,
            **dict.fromkeys(("positive_ids", "positive_scores"), is_list),
        }
        for table, columns in ((self.table, negatives), (self.queries, queries)):
            for name, is_right in columns.items():
                if name not in table.column_names:
                    raise Damaged(f"it has no column {name!r}")
                if not is_right(table.schema.field(name).type):
                    raise Damaged(f"column {name!r} is of type {table.schema.field(name).type}")
        if self.table.schema.field("query_id").type != self.queries.schema.field("query_id").type:
            raise Damaged("the ids of queries are of two types")

    def _check_metadata(self) -> None:
        settings, inputs = self.metadata.get("settings"), self.metadata.get("inputs")
        if not isinstance(settings, dict) or not isinstance(settings.get("num_negatives"), int):
            raise Damaged("its metadata has no settings with a number of negatives")
        if not isinstance(inputs, dict) or not isinstance(inputs.get("model"), dict):
            raise Damaged("its metadata does not say what it was made from")

    def _check_queries(self) -> None:
        import pyarrow.compute as pc

        owner = pc.index_in(self.table["query_id"], value_set=self.queries["query_id"].combine_chunks())
        if owner.null_count:
            row = int(pc.index(pc.is_null(owner), True).as_py())
            raise Damaged(f"row {row} is of query {self.table['query_id'][row]}, which its table of queries lacks")
        if pc.count_distinct(self.queries["query_id"]).as_py() != len(self.queries):
            raise Damaged("a query is listed twice")
        real = owner.filter(self.table["doc_id"].is_valid()).to_numpy()
        counted = np.bincount(real, minlength=len(self.queries)) if len(self.queries) else np.zeros(0, int)
        if (wrong := np.flatnonzero(counted != self.queries["found"].to_numpy())).size:
            row = int(wrong[0])
            raise Damaged(
                f"query {self.queries['query_id'][row]} has {counted[row]} negatives, its table of queries says "
                f"{self.queries['found'][row]}"
            )

    def _check_numbers(self) -> None:
        import pyarrow.compute as pc

        for name in SCORES:
            finite = pc.is_finite(self.table[name].drop_null())
            if len(finite) and not pc.all(finite).as_py():
                row = int(pc.index(pc.is_finite(pc.fill_null(self.table[name], 0.0)), False).as_py())
                raise Damaged(f"{name} of row {row} is {self.table[name][row]}")
        if len(self.table) and (lowest := pc.min(self.table["rank"]).as_py()) is not None and lowest < 1:
            raise Damaged("a rank is below 1")

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write both tables and their manifest in one transaction.

        Raises:
            InUse: another run writes to this path.
            OSError: no room, or the place cannot be written; the table that was there is kept.
        """
        with locked(path, "choose another path", also=beside_names(Path(path))):
            write_both(Path(path), self.metadata, self.table.schema, [self.table], self.queries.schema, [self.queries])

    @property
    def positives(self) -> tuple[np.ndarray, np.ndarray, pa.Array]:
        """Known positives: query of each (V,), its score (V,), its id (V,)."""
        import pyarrow.compute as pc

        ids = self.queries["positive_ids"].combine_chunks()
        owner = pc.list_parent_indices(ids).to_numpy()
        scores = pc.list_flatten(self.queries["positive_scores"]).to_numpy()
        return owner, scores, pc.list_flatten(ids)

    @property
    def query_of(self) -> np.ndarray:
        """(N,) row in ``queries`` of each row of the table."""
        import pyarrow.compute as pc

        wanted = self.queries["query_id"].combine_chunks()
        return pc.index_in(self.table["query_id"].combine_chunks(), value_set=wanted).to_numpy()

    def dropped(self) -> dict[str, int]:
        """How many candidates each rule dropped, over all queries."""
        import pyarrow.compute as pc

        columns = [name for name in self.queries.column_names if name.startswith(DROPPED)]
        return {name.removeprefix(DROPPED): int(pc.sum(self.queries[name]).as_py() or 0) for name in columns}

    def summary(self) -> str:
        """Say in text how many negatives there are, how hard they are, and what each rule dropped."""
        wanted = self.metadata["settings"]["num_negatives"]
        found = self.queries["found"].to_numpy()
        score = self.table["score"].drop_null().to_numpy()
        gap = self.table["positive_score"].to_numpy(zero_copy_only=False) - self.table["score"].to_numpy(
            zero_copy_only=False
        )
        gap = gap[~np.isnan(gap)]
        _, positive, _ = self.positives
        lines = [
            f"{int(found.sum()):,} negatives of {len(found):,} queries ({wanted} asked for each)",
            f"  queries with fewer: {int((found < wanted).sum()):,}, with none: {int((found == 0).sum()):,}",
            "  score of          min      25%      50%      75%      max",
        ]
        for name, values in (("positives", positive), ("negatives", score), ("pos. - neg.", gap)):
            if len(values):
                lines.append(f"  {name:<12}" + "".join(f"{value:9.4f}" for value in np.quantile(values, QUANTILES)))
        if gap.size:
            lines.append(f"  negatives above their query's lowest positive: {(gap < 0).mean():.0%}")
        lines += [f"  dropped by {rule}: {count:,}" for rule, count in self.dropped().items() if count]
        relaxed = len(self.table) - self.table["relaxed"].null_count
        if relaxed:
            lines.append(f"  let in by relaxing a rule: {relaxed:,}")
        return "\n".join(lines)

    def plot(self) -> Any:
        """Draw how the scores of positives and negatives are spread; returns a matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("MinedNegatives.plot needs matplotlib: run `pip install matplotlib`.") from error
        _, positive, _ = self.positives
        negative = self.table["score"].drop_null().to_numpy()
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        bins = np.histogram_bin_edges(np.concatenate([positive, negative]), bins=60)
        for values, color, name in ((negative, "#0072b2", "negatives"), (positive, "#e69f00", "positives")):
            weights = np.full(len(values), 1 / max(1, len(values)))  # shares: the two counts differ by far
            axes.hist(values, bins.tolist(), weights=weights, alpha=0.6, color=color, label=f"{name} ({len(values):,})")
        axes.set(xlabel="score against the query", ylabel="share")
        axes.legend(frameon=False)
        return figure

    def to_hf(
        self,
        format: Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"] = "triplet",
        *,
        queries: Items | None = None,
        corpus: Items | None = None,
        scores: bool = False,
    ) -> Any:
        """Make a `datasets.Dataset` that SentenceTransformerTrainer takes as it is; every positive gets its rows.

        Args:
            format: "triplet": anchor, positive, negative. "n-tuple": anchor, positive, negative_1 ... negative_n, only
                queries with all n. "labeled-pair": anchor, positive (any document), label. "labeled-list": anchor,
                positive (a list of documents, the positive first), labels.
            queries: the queries by id; None leaves ids.
            corpus: the documents by id; None leaves ids.
            scores: add the scores, in a column ``scores`` (``score`` for pairs) that replaces labels.

        Raises:
            ImportError: `datasets` is not installed.
            ValueError: another format.
        """
        from miners.offline.exports import to_hf

        return to_hf(self, format, queries, corpus, scores)

    def to_jsonl(
        self,
        path: str | os.PathLike[str],
        layout: Literal["flagembedding", "tevatron", "nemo"] = "flagembedding",
        *,
        queries: Items | None = None,
        corpus: Items | None = None,
    ) -> None:
        """Write the file that another trainer reads.

        Args:
            path: of the file; written whole or not at all.
            layout: "flagembedding": ``{"query", "pos", "neg", "pos_scores", "neg_scores"}`` per line. "tevatron":
                ``{"query_id", "query", "positive_passages", "negative_passages"}`` per line. "nemo": one JSON
                object with ``corpus`` and ``data``, documents by id.
            queries: query texts by id; None leaves ids.
            corpus: document texts by id; None leaves ids.

        Raises:
            ValueError: another layout.
        """
        from miners.offline.exports import to_jsonl

        to_jsonl(self, Path(path), layout, queries, corpus)


def build_tables(
    query_rows: Tensor,
    queries: Store,
    corpus: Store,
    known: Ragged,
    positive_products: Tensor,
    found: Sequence[tuple[str, Candidates, Tensor, Tensor]],
    too_few: str,
    filters: Sequence[Filter],
) -> tuple[pa.Table, pa.Table]:
    """Write down what was chosen for one chunk of queries: the rows of both tables."""
    import pyarrow as pa

    real = torch.cat([chosen for _, _, _, chosen in found], dim=1)  # (Q, n) over all sources
    if too_few == "drop":
        real &= real.all(dim=1, keepdim=True)
    written = torch.ones_like(real) if too_few == "pad" else real
    query, slot = written.nonzero(as_tuple=True)
    empty = (~real[query, slot]).numpy()

    def gathered(name: str) -> pa.Array:
        """One value per written row; null where the slot is empty or the source has no such value."""
        parts = []
        for _, candidates, columns, _ in found:
            values = getattr(candidates, name)
            missing = values is None
            parts.append(torch.full(columns.shape, float("nan")) if missing else values.gather(1, columns))
        values = torch.cat(parts, dim=1)[query, slot].numpy()
        mask = empty | np.isnan(values) if values.dtype.kind == "f" else empty
        return pa.array(values, mask=mask)

    lowest = reduce_lists(known, positive_products, "lowest")
    rows = torch.cat([candidates.rows.gather(1, columns) for _, candidates, columns, _ in found], dim=1)[query, slot]
    number = torch.cat([torch.full(columns.shape, one) for one, (_, _, columns, _) in enumerate(found)], dim=1)
    names = pa.array([name for name, *_ in found], pa.string())
    negatives = {
        "query_id": outer_ids(queries, query_rows[query]),
        "doc_id": outer_ids(corpus, rows, empty),
        "rank": gathered("ranks").cast(pa.int32()),
        "score": gathered("products").cast(pa.float32()),
        "positive_score": pa.array(lowest[query].numpy()),
        "guide_score": gathered("guide_scores").cast(pa.float32()),
        "rescore": gathered("rescored").cast(pa.float32()),
        "source": names.take(pa.array(number[query, slot].numpy())),
        "relaxed": relaxed_rules(found, query, slot, empty),
    }
    lengths = pa.array(known.offsets.numpy(), pa.int32())
    counts = {
        f"{DROPPED}{name + '_' if len(found) > 1 else ''}{rule}": pa.array(count.numpy(), pa.int32())
        for name, candidates, _, _ in found
        for rule, count in candidates.counts().items()
    }
    by_query = {
        "query_id": outer_ids(queries, query_rows),
        "found": pa.array(real.sum(1).numpy(), pa.int32()),
        **counts,
        "positive_ids": pa.ListArray.from_arrays(lengths, outer_ids(corpus, known.values)),
        "positive_scores": pa.ListArray.from_arrays(lengths, pa.array(positive_products.numpy())),
    }
    return pa.table(negatives), pa.table(by_query)


def relaxed_rules(
    found: Sequence[tuple[str, Candidates, Tensor, Tensor]], query: Tensor, slot: Tensor, empty: Any
) -> pa.Array:
    """Name the rule that each written negative was let in against; null for the usual ones."""
    import pyarrow as pa

    rules: list[str] = []
    parts = []
    for _, candidates, columns, _ in found:
        number = candidates.dropped_by.gather(1, columns).long()
        parts.append(torch.where(number < 0, number, number + len(rules)))
        rules += candidates.rules
    numbers = torch.cat(parts, dim=1)[query, slot].numpy()
    return pa.array(rules, pa.string()).take(pa.array(numbers, mask=empty | (numbers < 0)))


def outer_ids(store: Store, rows: Tensor, empty: np.ndarray | None = None) -> pa.Array:
    """Ids as the outside knows them: names if the store has them, else int64; null where ``empty``."""
    import pyarrow as pa

    if store.arrow_names is None:
        return pa.array(store.ids[rows].numpy(), mask=empty)
    return store.arrow_names.take(pa.array(rows.numpy(), mask=empty))


def beside(path: Path) -> Path:
    """Where the table of queries lies that belongs to a table of negatives."""
    return path.with_name(f"{path.stem}.queries{path.suffix}")


def beside_names(path: Path) -> list[str]:
    """Names of the files that are written with a table, beside it."""
    return [beside(path).name, manifest_of(path).name]


def write_both(
    path: Path,
    metadata: Mapping[str, Any],
    schema: pa.Schema,
    negatives: Iterable[pa.Table],
    query_schema: pa.Schema,
    queries: Iterable[pa.Table],
) -> None:
    """Write both tables, part by part, and publish them with a manifest; the caller holds the lock.

    Args:
        path: of the table of negatives.
        metadata: kept in both.
        schema, query_schema: of the two tables.
        negatives, queries: their parts, one in memory at a time.
    """
    kept = {METADATA: json.dumps(metadata, sort_keys=True).encode()}
    with Transaction(manifest_of(path), {"format": FORMAT}) as files:
        write_parts(files.named("queries", beside(path).name), query_schema.with_metadata(kept), queries)
        write_parts(files.named("negatives", path.name), schema.with_metadata(kept), negatives)


def write_parts(path: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    """Write the parts of a table to a Parquet file."""
    import pyarrow.parquet as pq

    with open(path, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part)


def read_parquet(path: Path) -> pa.Table:
    """Read a Parquet file.

    Raises:
        ValueError: it is not one, or a damaged one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a whole Parquet file: {error!s:.200}") from error


def plain(metadata: bytes, path: Path) -> dict[str, Any]:
    """The metadata of a table: a mapping of plain values.

    Raises:
        Damaged: no JSON, or no mapping.
    """
    try:
        found = json.loads(metadata)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: its metadata is no JSON ({error!s:.80}). Mine again.") from None
    if not isinstance(found, dict):
        raise Damaged(f"{path}: its metadata is no mapping. Mine again.")
    return found


def is_id(kind: pa.DataType) -> bool:
    """Whether ids may be of this type: text where stores have names, else whole numbers."""
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_integer(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
