"""Negatives from what is known of labels: siblings and cousins in a hierarchy, neighbours by name."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from miners.base import Draw, NegativeSource, TrainingTable
from miners.draws import RowGenerator
from miners.phrases import find_names
from miners.ragged import Ragged
from miners.spelling import nearest_names
from miners.static_negatives import read_lists

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

SPARE = 8  # random candidates of a row beyond those it asks for, since some will be forbidden
CLOSE, SPELLING, UNRELATED = ("siblings", "cousins"), "spelling", "random"


class TaxonomyNegatives(NegativeSource):
    """Draw labels that are related to a row's positive one: easy positives then teach more than to spot a word.

    Siblings share a parent with the positive, cousins a grandparent and no parent; both leave out its ancestors and its
    descendants. Never drawn: the row's known positives, their ancestors (a text about a narrow label implies the broad
    one), and names that contain one of theirs or stand in it as whole words. A row whose positive has too few relatives
    is filled up from neighbours by name, then from labels at random.

    Args:
        parents: tables of (child, parent): csv, tsv, jsonl (each also .gz) or parquet, read one after the other; "~"
            and variables such as $HARDNEG_DATA are filled in. Or ready lists of parents by id, whose first M ids are
            the documents. Children and parents that are no document are groups.
        num_negatives: per row and epoch.
        mix: share of each relation: "siblings", "cousins", "spelling" (the nearest names by Levenshtein distance), the
            names of ``neighbours``, and "random" (any label that is somebody's positive). None = siblings alone.
        neighbours: further relations by name: tables of documents' documents, as ``hardneg mine`` writes them.
        symmetrise: of neighbours, which nearest-neighbour lists are not: "none", "union" (either way) or "mutual".
        num_spelled: nearest names that "spelling" draws from.
        balance_parents: of several parents each has the same chance, so that a huge one does not swamp a small one;
            otherwise each sibling has.
        child, parent: columns of the tables; ``parent`` may hold lists.
        name: column with the names of documents, for containment; None checks none.

    Attributes:
        counts: how many negatives each relation gave so far, "fallback" included.

    Shapes:
        Per draw: memory of the B positives' relatives; nothing of size documents x documents is kept.

    Raises:
        FileNotFoundError: no such table.
        ValueError: an unknown relation or shares that are no shares, a table without these columns or without a single
            document of this data set.

    Source:
        Decorte et al., arXiv 2209.05987 (siblings, Levenshtein; embedding neighbours are a table here). Differs: the
        anchor is the sentence and labels are drawn, where the paper draws sentences for a label's classifier; cousins.
    """

    def __init__(
        self,
        parents: str | Path | Sequence[str | Path] | Ragged,
        num_negatives: int = 5,
        mix: Mapping[str, float] | None = None,
        neighbours: Mapping[str, str] | None = None,
        symmetrise: Literal["none", "union", "mutual"] = "none",
        num_spelled: int = 50,
        balance_parents: bool = True,
        child: str = "child",
        parent: str = "parent",
        name: str | None = None,
    ) -> None:
        if num_negatives < 1:
            raise ValueError(f"TaxonomyNegatives(num_negatives={num_negatives}): wants at least 1.")
        if symmetrise not in ("none", "union", "mutual"):
            raise ValueError(f"TaxonomyNegatives(symmetrise='{symmetrise}'): wants 'none', 'union' or 'mutual'.")
        self.neighbours = {relation: _paths(path)[0] for relation, path in (neighbours or {}).items()}
        self.mix = {"siblings": 1.0} if mix is None else dict(mix)
        known = {*CLOSE, SPELLING, UNRELATED, *self.neighbours}
        if clash := sorted({*CLOSE, SPELLING, UNRELATED, "fallback"} & set(self.neighbours)):
            raise ValueError(f"TaxonomyNegatives(neighbours=...): {clash} is a relation already; choose another name.")
        if unknown := sorted(set(self.mix) - known):
            raise ValueError(f"TaxonomyNegatives(mix=...): no relation {unknown}; there are {sorted(known)}.")
        if min(self.mix.values(), default=0) < 0 or not sum(self.mix.values()) > 0:
            raise ValueError(f"TaxonomyNegatives(mix={self.mix}): shares are at least 0, and one is above.")
        if num_spelled < 1:
            raise ValueError(f"TaxonomyNegatives(num_spelled={num_spelled}): wants at least 1.")
        if self.mix.get(SPELLING) and (not name or isinstance(parents, Ragged)):
            raise ValueError(
                "TaxonomyNegatives(mix=...): 'spelling' compares names; set name to their column in a table."
            )
        self.parents = parents if isinstance(parents, Ragged) else _paths(parents)
        for path in [] if isinstance(self.parents, Ragged) else [*self.parents, *self.neighbours.values()]:
            if not path.exists():
                raise FileNotFoundError(f"TaxonomyNegatives: no table at '{path}'.")
        self.num_negatives = num_negatives
        self.symmetrise = symmetrise
        self.num_spelled = num_spelled
        self.balance_parents = balance_parents
        self.child, self.parent, self.name = child, parent, name
        self.counts: Counter[str] = Counter()
        self._family: _Family | None = None

    def attach(self, table: TrainingTable) -> None:
        names: list[str | None] = []
        if isinstance(self.parents, Ragged):
            parents = self.parents
            documents = len(parents) if table.num_documents is None else table.num_documents
        else:
            if table.document_names is None:
                raise ValueError(
                    "TaxonomyNegatives reads names, and this training set has none. Hand over ready lists."
                )
            documents = len(table.document_names)
            parents, names = self._read(table.document_names)
        if len(parents) < documents:
            raise ValueError(f"TaxonomyNegatives has parents of {len(parents)} documents, the data set {documents}.")
        self._family = _Family(parents, documents)
        contained = _contained(names, documents)
        above, own = self._family.ancestors, table.positives
        positive, row = own.values, own.row_of_value
        self._forbidden = _union(
            len(own), (row, positive), *(_through(row, positive, lists) for lists in (above, contained))
        )
        self._related = {
            name: self._neighbours(path, table.document_names or [], contained)
            for name, path in self.neighbours.items()
        }
        if self.mix.get(SPELLING):
            self._related[SPELLING] = self._symmetric(
                nearest_names([name or "" for name in names], self.num_spelled, contained), contained
            )
        self._anybody = positive.unique()
        sizes = self._family.children.lengths[self._family.children.lengths > 0]
        log.info(
            "TaxonomyNegatives: %d of %d documents have a parent; %d groups of %d children in the median, %d at most; "
            "%d pairs of names contain one another",
            int((self._family.parents.lengths[:documents] > 0).sum()),
            documents,
            len(sizes),
            int(sizes.median()) if len(sizes) else 0,
            int(sizes.max()) if len(sizes) else 0,
            len(contained.values) // 2,
        )

    def related(self, ids: Tensor, relation: str) -> tuple[Ragged, Tensor]:
        """The relatives of documents ``ids`` (B,) before a row's own positives are taken out: B sorted lists; weights.

        Returns:
            B lists with V ids in all, and (V,) the chance of each relative to the others of its list.
        """
        family = self._attached()
        if relation == "siblings":
            return family.siblings(ids, self.balance_parents)
        if relation == "cousins":
            return family.cousins(ids)
        lists = self._related[relation].select(ids)
        return lists, torch.ones(len(lists.values), dtype=torch.float64)

    def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
        size = len(self._attached().parents)
        close = [relation for relation in CLOSE if relation in self.mix]
        relations = [*close, *self._related, UNRELATED]  # neighbours, then strangers, are the reserve
        wanted, spare = self.num_negatives, self.num_negatives + SPARE
        shares = torch.tensor([self.mix.get(relation, 0.0) for relation in relations], dtype=torch.float64)
        lists = [self.related(positives, relation) for relation in relations[:-1]]
        width = int(sum(of.lengths for of, _ in lists).max()) if lists and len(rows) else 0  # type: ignore[union-attr]
        dice = generator.uniform(rows, wanted + 2 * spare + width)  # a row's numbers are its own, whatever the batch

        asked = torch.searchsorted((shares / shares.sum()).cumsum(0), dice[:, :wanted].contiguous())
        asked = asked.clamp_max(len(relations) - 1)  # (B, wanted) relation of each slot
        quota = torch.nn.functional.one_hot(asked, len(relations)).sum(1)  # (B, relations)

        who = self._anybody[(dice[:, wanted : wanted + spare] * len(self._anybody)).long()]  # (B, spare)
        strangers = Ragged(torch.arange(0, len(rows) * spare + 1, spare), who.reshape(-1))
        lists.append((strangers, torch.ones(who.numel(), dtype=torch.float64)))
        first, parts = torch.zeros(len(rows), dtype=torch.long), []
        for number, (of, _) in enumerate(lists):
            row = of.row_of_value
            place = first[row] + torch.arange(len(row)) - of.offsets[row]
            parts.append(torch.stack([row, of.values, torch.full_like(row, number), place]))
            first = first + of.lengths
        row, document, relation, place = torch.cat(parts, dim=1)
        chance = torch.cat([weight for _, weight in lists])
        # the highest of these are a draw without replacement by weight (Efraimidis and Spirakis, 2006)
        lottery = (dice[row, wanted + spare + place].clamp_min(1e-300).log() / chance).argsort().argsort()

        forbidden = self._forbidden.select(rows)
        kept = ~torch.isin(row * size + document, forbidden.row_of_value * size + forbidden.values)
        kept &= (positives[row] >= 0) | (relation == len(relations) - 1)
        row, document, relation, lottery = row[kept], document[kept], relation[kept], lottery[kept]

        # the best of each (row, relation) fill its quota; neighbours and strangers beyond theirs are the reserve
        chosen = _place_within(row * len(relations) + relation, lottery) < quota[row, relation]
        usable = chosen | (relation >= len(close))
        row, document, relation, lottery, chosen = (p[usable] for p in (row, document, relation, lottery, chosen))
        preference = lottery - (~chosen * (1 + relation)) * len(chance)
        once = _place_within(row * size + document, preference) == 0
        row, document, relation, preference, chosen = (p[once] for p in (row, document, relation, preference, chosen))
        place = _place_within(row, preference)
        taken = place < wanted
        ids = torch.full((len(rows), wanted), -1)
        ids[row[taken], place[taken]] = document[taken]
        of_quota = torch.bincount(relation[taken & chosen], minlength=len(relations)).tolist()
        self.counts.update(dict(zip(relations, of_quota, strict=True)))
        self.counts["fallback"] += int((taken & ~chosen).sum())
        return Draw(ids, ids >= 0, "taxonomy")

    def _attached(self) -> _Family:
        if self._family is None:
            raise RuntimeError(
                "TaxonomyNegatives knows no rows yet: call attach(TrainingTable(...)), as data modules do."
            )
        return self._family

    def _read(self, documents: Sequence[str]) -> tuple[Ragged, list[str | None]]:
        """Parents by node id, documents first, and the documents' names where a column holds them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        assert not isinstance(self.parents, Ragged)
        children, above = [], []
        names: list[str | None] = [None] * len(documents) if self.name else []
        known = pa.array(list(documents), pa.string())
        for path in self.parents:
            columns = _columns(path, [self.child, self.parent, *([self.name] if self.name else [])])
            own = pc.cast(columns[0], pa.string())
            if self.name:
                at = pc.index_in(own, value_set=known)
                there = pc.is_valid(at)
                for place, name in zip(pc.filter(at, there).to_pylist(), pc.filter(columns[2], there).to_pylist()):
                    names[place] = name
            listed = columns[1]
            if pa.types.is_list(listed.type) or pa.types.is_large_list(listed.type):
                own, listed = own.take(pc.list_parent_indices(listed)), pc.list_flatten(listed)
            there = pc.is_valid(listed)
            children.append(pc.filter(own, there))
            above.append(pc.cast(pc.filter(listed, there), pa.string()))
        both = pa.concat_arrays([known, *children, *above]).dictionary_encode()
        # documents stand first, so that their codes are their ids as long as their names differ
        codes = torch.from_numpy(both.indices.to_numpy().astype("int64"))
        number = sum(map(len, children))
        child, parent = codes[len(documents) : len(documents) + number], codes[len(documents) + number :]
        if not bool((child < len(documents)).any()):
            raise ValueError(
                f"{', '.join(map(str, self.parents))}: no '{self.child}' of {number} rows is a document of this data "
                "set. Set child and parent to the columns that hold the documents' ids."
            )
        pairs = torch.stack([child, parent], dim=1).unique(dim=0)
        return Ragged.from_pairs(pairs[:, 0], pairs[:, 1], len(both.dictionary)), names

    def _neighbours(self, path: Path, names: Sequence[str], contained: Ragged) -> Ragged:
        """Neighbours of each document, from a table."""
        return self._symmetric(read_lists(path, names, names), contained)

    def _symmetric(self, lists: Ragged, contained: Ragged) -> Ragged:
        """Neighbours in one direction or both, as asked, without names that contain one another."""
        one, other, size = lists.row_of_value, lists.values, len(lists)
        there, back = one * size + other, other * size + one
        if self.symmetrise == "union":
            there = torch.cat([there, back])
        elif self.symmetrise == "mutual":
            there = there[torch.isin(there, back)]
        there = there.unique()
        there = there[~torch.isin(there, contained.row_of_value * size + contained.values)]
        return Ragged.from_pairs(there // size, there % size, size)


class _Related(NamedTuple):
    """Pairs of a row and a document, and the weight of each."""

    row: Tensor
    document: Tensor
    weight: Tensor


class _Family:
    """A hierarchy: T nodes with parents, of which the first M are documents.

    Args:
        parents: T lists.
        documents: M.
    """

    def __init__(self, parents: Ragged, documents: int) -> None:
        self.parents, self.documents = parents, documents
        self.children = Ragged.from_pairs(parents.values, parents.row_of_value, len(parents))
        self.ancestors = self._closure()
        self._below = self.ancestors.row_of_value * len(parents) + self.ancestors.values  # (node, ancestor), sorted

    def siblings(self, ids: Tensor, balanced: bool) -> tuple[Ragged, Tensor]:
        rows = torch.arange(len(ids))
        row, parent = _through(rows, ids, self.parents)
        share = 1.0 / self.parents.lengths[ids].double()[row]
        offspring = self.children.lengths[parent]
        weight = (share / offspring).repeat_interleave(offspring)
        row, document = _through(row, parent, self.children)
        return self._lists(_Related(row, document, weight if balanced else torch.ones_like(weight)), ids, not balanced)

    def cousins(self, ids: Tensor) -> tuple[Ragged, Tensor]:
        rows = torch.arange(len(ids))
        row, node = _through(rows, ids, self.parents)
        near_row, near = _through(row, node, self.children)  # siblings, which are no cousins
        for lists in (self.parents, self.children, self.children):
            pairs = torch.stack(_through(row, node, lists), dim=1).unique(dim=0)  # each once: a group is met many times
            row, node = pairs[:, 0], pairs[:, 1]
        size = len(self.parents)
        far = ~torch.isin(row * size + node, near_row * size + near)
        return self._lists(_Related(row[far], node[far], torch.ones(int(far.sum()), dtype=torch.float64)), ids, True)

    def _lists(self, found: _Related, ids: Tensor, even: bool) -> tuple[Ragged, Tensor]:
        """One list of each id's relatives, each once, without itself, its ancestors and its descendants."""
        size, own = len(self.parents), ids[found.row]
        kept = (found.document < self.documents) & (found.document != own)
        kept &= ~self._is_ancestor(own, found.document) & ~self._is_ancestor(found.document, own)
        pairs, of_pair = (found.row * size + found.document)[kept].unique(return_inverse=True)
        weight = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, of_pair, found.weight[kept])
        lists = Ragged.from_pairs(pairs // size, pairs % size, len(ids))
        return lists, torch.ones_like(weight) if even else weight

    def _is_ancestor(self, node: Tensor, above: Tensor) -> Tensor:
        """(V,) whether ``above`` is one of the ancestors of ``node``."""
        if not len(self._below):
            return torch.zeros_like(node, dtype=torch.bool)
        code = node * len(self.parents) + above
        return self._below[torch.searchsorted(self._below, code).clamp_max(len(self._below) - 1)] == code

    def _closure(self) -> Ragged:
        """All ancestors of each node."""
        size = len(self.parents)
        node, above = self.parents.row_of_value, self.parents.values
        pairs = (node * size + above).unique()
        while True:
            node, further = _through(pairs // size, pairs % size, self.parents)
            more = torch.cat([pairs, node * size + further]).unique()
            if len(more) == len(pairs):
                return Ragged.from_pairs(pairs // size, pairs % size, size)
            pairs = more


def _through(row: Tensor, node: Tensor, lists: Ragged) -> tuple[Tensor, Tensor]:
    """(row, member) for every member of the list of ``node``, for V pairs (row, node)."""
    found = lists.select(node)
    return row.repeat_interleave(found.lengths), found.values


def _union(rows: int, *pairs: tuple[Tensor, Tensor]) -> Ragged:
    """One list per row of all pairs (row, value), each value once."""
    row, value = (torch.cat(part) for part in zip(*pairs, strict=True))
    both = torch.stack([row, value], dim=1).unique(dim=0)
    return Ragged.from_pairs(both[:, 0], both[:, 1], rows)


def _contained(names: Sequence[str | None], documents: int) -> Ragged:
    """For each document those whose name contains its own, or stands in it, or is equal to it, by whole words."""
    if not names:
        return Ragged.empty(documents)
    texts = [name or "" for name in names]
    found = find_names(texts, texts)
    one, other = torch.cat([found.text, found.name]), torch.cat([found.name, found.text])
    return _union(documents, (one[one != other], other[one != other]))


def _place_within(group: Tensor, ticket: Tensor) -> Tensor:
    """(V,) place of each within its group, 0 = highest ticket."""
    order = ticket.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    ranked = group[order]
    place = torch.arange(len(group)) - torch.searchsorted(ranked, ranked)
    return torch.empty_like(place).scatter_(0, order, place)


def _paths(parents: str | Path | Sequence[str | Path]) -> list[Path]:
    """Paths with "~" and variables such as $HARDNEG_DATA filled in."""
    listed = [parents] if isinstance(parents, str | Path) else parents
    return [Path(os.path.expandvars(path)).expanduser() for path in listed]


def _columns(path: Path, names: Sequence[str]) -> list[pa.Array]:
    """Columns of a table file, whole."""
    import pyarrow as pa
    import pyarrow.csv as arrow_csv
    import pyarrow.json as arrow_json
    import pyarrow.parquet as pq

    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".parquet":
        table = pq.read_table(path)
    elif kind in (".csv", ".tsv"):
        table = arrow_csv.read_csv(
            path, parse_options=arrow_csv.ParseOptions(delimiter="\t" if kind == ".tsv" else ",")
        )
    elif kind == ".jsonl":
        with pa.input_stream(str(path), compression="detect") as stream:
            table = arrow_json.read_json(stream)
    else:
        raise ValueError(
            f"TaxonomyNegatives: {path} is no table it reads: wants .csv, .tsv, .jsonl (also .gz), .parquet."
        )
    if missing := [name for name in names if name not in table.column_names]:
        raise ValueError(f"{path} has the columns {table.column_names}, not {missing}. Set child, parent and name.")
    return [table[name].combine_chunks() for name in names]
