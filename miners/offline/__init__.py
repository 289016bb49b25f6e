"""Offline mining: embeddings in, a table of hard negatives with its provenance out.

`mine` retrieves candidates from one or several sources, drops what filters forbid, samples from the rest, and writes
down where each negative came from and which rule dropped what. Filters and samplings are small parts in a list:

    mine(queries, corpus, known, num_negatives=5, filters=[RankWindow(11), RelativeMargin(0.05)], sampling=Random())

Scores are inner products: normalise vectors for cosine. pyarrow is imported when the first table is made.
"""

from miners.offline.candidates import Candidates
from miners.offline.filters import (
    AbsoluteMargin,
    Filter,
    Guide,
    MaxScore,
    MinScore,
    NearDuplicate,
    RankWindow,
    RelativeMargin,
    Rescore,
    SameContent,
)
from miners.offline.mine import mine
from miners.offline.mined import MinedNegatives
from miners.offline.sampling import Random, Sampling, Softmax, Top
from miners.offline.sources import Dense, Lexical, Source

__all__ = [
    "AbsoluteMargin",
    "Candidates",
    "Dense",
    "Filter",
    "Guide",
    "Lexical",
    "MaxScore",
    "MinScore",
    "MinedNegatives",
    "NearDuplicate",
    "Random",
    "RankWindow",
    "RelativeMargin",
    "Rescore",
    "SameContent",
    "Sampling",
    "Softmax",
    "Source",
    "Top",
    "mine",
]
