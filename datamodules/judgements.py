"""Who is relevant for whom, as three columns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Judgements:
    """V judgements of one split, in the file's order.

    Args:
        queries: (V,) int64 query ids.
        documents: (V,) int64 document ids.
        grades: (V,) int64 relevance; 0 = judged and found irrelevant.
    """

    queries: Tensor
    documents: Tensor
    grades: Tensor

    def __len__(self) -> int:
        return len(self.queries)

    def at_least(self, grade: int) -> Judgements:
        """The judgements of this grade and better."""
        kept = self.grades >= grade
        return Judgements(self.queries[kept], self.documents[kept], self.grades[kept])
