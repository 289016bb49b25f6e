"""What one source found for a chunk of queries: the thing that filters look at and samplings choose from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from miners.index.torch_index import pair_scores
from miners.ragged import Ragged
from miners.store import Store

Positive = Literal["lowest", "highest", "mean"]


@dataclass
class Candidates:
    """Retrieved documents of Q queries, K each, in the order their source gave them.

    Nothing is ever removed: a rule that drops a candidate leaves its number in ``dropped_by``, so that the report can
    say which rule took what, and a caller who relaxes a rule gets its candidates back.
    """

    query_rows: Tensor  # (Q,) rows of the queries' store
    query_vectors: Tensor  # (Q, d)
    corpus: Store
    known: Ragged  # per query, rows of its known positives in the corpus
    rows: Tensor  # (Q, K) rows of the corpus; anything where nothing was found
    ranks: Tensor  # (Q, K) place in the retrieved list, 1 = best, known positives counted
    products: Tensor  # (Q, K) float64 row product of the two vectors, rounded to float32
    positive_products: Tensor  # (V,) the same for every known positive
    dropped_by: Tensor  # (Q, K) int16 number of the rule that dropped it, -1 while usable
    count_survivors: bool = False  # whether a window of ranks counts what the rules before it left
    rules: list[str] = field(default_factory=list)
    guide_scores: Tensor | None = None  # (Q, K)
    rescored: Tensor | None = None  # (Q, K)
    positive_rescored: Tensor | None = None  # (V,)

    @property
    def usable(self) -> Tensor:
        """(Q, K) what no rule has dropped."""
        return self.dropped_by < 0

    @property
    def scores(self) -> Tensor:
        """(Q, K) what thresholds and samplings read: the rescored value if there is one, else the product."""
        return self.products if self.rescored is None else self.rescored

    def positive(self, which: Positive) -> Tensor:
        """(Q,) score of each query's lowest, highest or mean positive."""
        values = self.positive_products if self.positive_rescored is None else self.positive_rescored
        return reduce_lists(self.known, values, which)

    def drop(self, where: Tensor, rule: str) -> None:
        """Take usable candidates (Q, K) out, in the name of a rule."""
        self.rules.append(rule)
        self.dropped_by.masked_fill_(where & self.usable, len(self.rules) - 1)

    def counts(self) -> dict[str, Tensor]:
        """How many candidates each rule dropped, (Q,) by rule."""
        return {rule: (self.dropped_by == number).sum(1) for number, rule in enumerate(self.rules)}

    def reorder(self, order: Tensor) -> None:
        """Put the candidates of each query in another order (Q, K)."""
        for name in ("rows", "ranks", "products", "dropped_by", "guide_scores", "rescored"):
            if (values := getattr(self, name)) is not None:
                setattr(self, name, values.gather(1, order))


def reduce_lists(lists: Ragged, values: Tensor, which: Positive) -> Tensor:
    """Lowest, highest or mean value (Q,) of each list; NaN for an empty list."""
    how = {"lowest": "amin", "highest": "amax", "mean": "mean"}[which]
    empty = values.new_full((len(lists),), float("nan"))
    reduced = empty.scatter_reduce(0, lists.row_of_value, values, how, include_self=False)
    return reduced


def known_products(query_vectors: Tensor, corpus: Store, known: Ragged) -> Tensor:
    """Score every known positive with its query: (V,) float64 product rounded to float32."""
    return pair_scores(query_vectors[known.row_of_value], corpus.vectors, known.values[:, None]).cpu()[:, 0]


def is_known(rows: Tensor, known: Ragged) -> Tensor:
    """(Q, K) which candidates are known positives of their query, without a comparison of all with all."""
    wide = 1 + max(int(rows.max()) if rows.numel() else 0, int(known.values.max()) if len(known.values) else 0)
    keys = (known.row_of_value * wide + known.values).sort().values  # (V,)
    if len(keys) == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    asked = torch.arange(len(rows))[:, None] * wide + rows
    return keys[torch.searchsorted(keys, asked).clamp(max=len(keys) - 1)] == asked
