"""Negatives from a table that was mined once: STAR's static half, and every data set that ships its own negatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from miners.base import Draw, NegativeSource, TrainingTable
from miners.draws import RowGenerator
from miners.ragged import Ragged, pairs_in
from miners.transaction import verified_table

if TYPE_CHECKING:
    import pyarrow as pa


class StaticNegatives(NegativeSource):
    """Draw from a list per row, without replacement, uniformly over the list.

    Lists may have any length; a row with fewer than ``num_negatives`` draws what it has, none if it has none. Known
    positives of a row are taken out of its list when the training set is attached.

    Args:
        negatives: path of a table (parquet, with columns ``query_id`` and ``doc_id`` as `miners.mine` writes them, in
            rank order), or ready lists of document ids, one per training row.
        num_negatives: negatives per row and epoch.
        first_rank: leave out the first ranks of each list, where unlabelled positives sit; 0 keeps all.
        last_rank: leave out ranks from this one on; None keeps all.

    Raises:
        FileNotFoundError: no such table.
        Damaged: the table was changed or damaged since it was mined.
        ValueError: a table with other columns, or with names that the training set does not know.

    Source:
        STAR, arXiv 2104.08051, section 4.1 (drawn uniformly from the first 200).
    """

    def __init__(
        self,
        negatives: str | Path | Ragged,
        num_negatives: int = 1,
        first_rank: int = 0,
        last_rank: int | None = None,
    ) -> None:
        if num_negatives < 1:
            raise ValueError(f"StaticNegatives(num_negatives={num_negatives}): wants at least 1.")
        if first_rank < 0 or (last_rank is not None and last_rank <= first_rank):
            raise ValueError(f"StaticNegatives(first_rank={first_rank}, last_rank={last_rank}): an empty window.")
        if isinstance(negatives, str | Path) and not Path(negatives).exists():
            raise FileNotFoundError(f"StaticNegatives: no table at '{negatives}'. Make one with `hardneg mine`.")
        self.negatives = negatives
        self.num_negatives = num_negatives
        self.first_rank = first_rank
        self.last_rank = last_rank
        self._lists: Ragged | None = None

    def attach(self, table: TrainingTable) -> None:
        lists = self.negatives if isinstance(self.negatives, Ragged) else _read(Path(self.negatives), table)
        if len(lists) != len(table):
            raise ValueError(f"StaticNegatives has {len(lists)} lists for {len(table)} training rows.")
        rows, values = lists.row_of_value, lists.values
        rank = torch.arange(len(values)) - lists.offsets[rows]
        keep = (rank >= self.first_rank) & (rank < (self.last_rank or len(values) + 1))
        keep &= ~pairs_in(rows, values, table.positives)
        self._lists = Ragged.from_pairs(rows[keep], values[keep], len(table))

    def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
        if self._lists is None:
            raise RuntimeError(
                "StaticNegatives knows no rows yet: call attach(TrainingTable(...)), as data modules do."
            )
        lists = self._lists.select(rows).padded()  # (B, longest)
        missing = self.num_negatives - lists.shape[1]
        if missing > 0:
            lists = torch.cat([lists, lists.new_full((len(lists), missing), -1)], dim=1)
        lottery = generator.uniform(rows, lists.shape[1])
        lottery[lists < 0] = 2.0  # behind every real ticket
        chosen = lottery.argsort(dim=1)[:, : self.num_negatives]
        ids = lists.gather(1, chosen)
        return Draw(ids, ids >= 0, "static")


def read_lists(path: Path, query_names: Sequence[str], document_names: Sequence[str]) -> Ragged:
    """Lists of document ids by query id, in the order of the rows of a mined table.

    Args:
        path: parquet with columns ``query_id`` and ``doc_id``, as `miners.mine` writes them.
        query_names, document_names: external names; position = id.

    Raises:
        ValueError: a table with other columns, or with names that are not among these.
    """
    import pyarrow.parquet as pq  # base dependency, kept out of `import miners` for its time

    file = verified_table(path, "negatives", "mine again")
    columns = pq.read_schema(file).names
    if not {"query_id", "doc_id"} <= set(columns):
        raise ValueError(f"'{path}' has columns {columns}; it must have query_id and doc_id.")
    mined = pq.read_table(file, columns=["query_id", "doc_id"])
    mined = mined.filter(mined["doc_id"].is_valid())  # slots that mine(too_few="pad") marks as empty
    queries = _ids_of(mined["query_id"], query_names, path, "query_id")
    documents = _ids_of(mined["doc_id"], document_names, path, "doc_id")
    return Ragged.from_pairs(queries, documents, len(query_names))


def _read(path: Path, table: TrainingTable) -> Ragged:
    """Lists by training row from a mined table; names become ids through the training set."""
    if table.anchor_names is None or table.document_names is None:
        raise ValueError(
            f"'{path}' names queries and documents; this training set has no names. Hand over ready lists."
        )
    return read_lists(path, table.anchor_names, table.document_names).select(table.anchors)


def _ids_of(column: pa.ChunkedArray, names: Sequence[str], path: Path, what: str) -> Tensor:
    """(V,) positions of the names in ``column``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pc.cast(column, pa.string())
    places: Any = pc.index_in(column, value_set=pa.array(list(names), pa.string()))
    if places.null_count:
        at = pc.index(pc.is_null(places), True).as_py()
        raise ValueError(
            f"'{path}', row {at}: {what} '{column[at]}' is not in this data set. The table was mined for another one."
        )
    return torch.tensor(places.to_numpy()).long()
