"""Who may be drawn in somebody's place: the members of its cluster, or its nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from miners.draws import generator_for
from miners.ragged import Ragged, pairs_in
from miners.spherical_kmeans import spherical_kmeans
from miners.store import Store

HOW = ("neighbour", "uniform", "alone")
NEIGHBOUR, UNIFORM, ALONE = range(3)
"""How a stand-in came about; "alone" is uniform too, since the thing has no neighbour."""
SEARCHED = 1024  # rows whose neighbours are searched for at a time


@dataclass(frozen=True)
class Neighbourhoods:
    """Lists of ids, and for each of n things which list is its own. A thing is never drawn in its own place.

    Args:
        members: the lists: of each cluster, or of each thing; a list may be empty.
        group: (n,) int64 list of each thing; -1 = it has none, and is always replaced uniformly.
        place: (n,) int64 where the thing itself stands in its list; -1 = it does not.
    """

    members: Ragged
    group: Tensor
    place: Tensor

    @classmethod
    def from_labels(cls, labels: Tensor) -> Neighbourhoods:
        """Clusters by label (n,) int64, -1 = none; a label that nobody has is an empty cluster.

        Example:
            >>> Neighbourhoods.from_labels(torch.tensor([0, 0, 1])).members.to_lists()
            [[0, 1], [2]]
        """
        labels = labels.long()
        if labels.ndim != 1 or not len(labels) or int(labels.min()) < -1:
            raise ValueError(
                f"labels of clusters: wanted (n,) numbers from 0 on, or -1 for none; got shape {tuple(labels.shape)}"
                + (f" with {int(labels.min())}." if labels.numel() else ".")
            )
        there = (labels >= 0).nonzero()[:, 0]
        number = max(int(labels.max()) + 1, 1)  # where nobody has a label, one empty cluster can be asked for
        members = Ragged.from_pairs(labels[there], there, number)
        place = torch.full_like(labels, -1)
        place[members.values] = torch.arange(len(there)) - members.offsets[members.row_of_value]
        return cls(members, labels, place)

    @classmethod
    def clusters(cls, vectors: Tensor, num_clusters: int, seed: int = 0, iterations: int = 20) -> Neighbourhoods:
        """Spherical k-means of (n, d) vectors; clusters differ in size, and some hold one thing alone.

        Raises:
            ValueError: more clusters than vectors, or a vector that is not finite.
        """
        labels, _ = spherical_kmeans(vectors, num_clusters, generator_for(seed), iterations)
        return cls.from_labels(labels.cpu())

    @classmethod
    def nearest(cls, vectors: Tensor, size: int, index: str = "auto") -> Neighbourhoods:
        """The ``size`` nearest others of each of (n, d) vectors, by cosine.

        Args:
            index: as in `miners.build_index`; where an approximate one finds fewer, a list is shorter.

        Raises:
            ValueError: as many neighbours as there are things, or more.
        """
        from miners.index import build_index  # loads faiss, if asked for

        number = len(vectors)
        if not 1 <= size < number:
            raise ValueError(f"nearest {size} of {number} things: wants at least 1, and fewer than there are.")
        unit = F.normalize(vectors.float(), dim=1)
        search = build_index(index, Store(unit), device="cpu")
        lists = []
        for rows in torch.arange(number).split(SEARCHED):
            _, found = search.search(unit[rows], size + 1)
            # of equal vectors the thing itself may stand anywhere, or not at all: it goes by id, else the last one goes
            own = found == rows[:, None]
            own[~own.any(1), -1] = True
            lists.append(found[~own].view(len(rows), size))
        near, everyone = torch.cat(lists), torch.arange(number)
        there = near >= 0  # what an approximate index did not find
        return cls(
            Ragged.from_pairs(there.nonzero()[:, 0], near[there], number), everyone, torch.full_like(everyone, -1)
        )

    def __len__(self) -> int:
        return len(self.group)

    @property
    def others(self) -> Tensor:
        """(n,) how many may stand in for each thing."""
        return self.others_of(torch.arange(len(self)))

    def others_of(self, things: Tensor) -> Tensor:
        """(...) how many may stand in for each of ``things`` (...)."""
        group = self.group[things]
        start = group.clamp_min(0)
        lengths = self.members.offsets[start + 1] - self.members.offsets[start]
        return lengths.where(group >= 0, 0) - (self.place[things] >= 0).long()

    def shuffled(self, seed: int = 0) -> Neighbourhoods:
        """The same lists with the things behind them exchanged at random: the control that knows nothing of texts."""
        there = (self.group >= 0).nonzero()[:, 0]
        exchanged = torch.arange(len(self))
        exchanged[there] = there[torch.randperm(len(there), generator=generator_for(seed))]
        back = exchanged.argsort()
        members = replace(self.members, values=back[self.members.values])
        return Neighbourhoods(members, self.group[exchanged], self.place[exchanged])

    def draw(self, things: Tensor, coin: Tensor, share: Tensor, mix: float) -> tuple[Tensor, Tensor]:
        """One stand-in for each of ``things`` (...): uniform over all n where ``coin`` < mix, else a neighbour.

        Args:
            things: (...) int64; -1 = unknown, replaced uniformly.
            coin, share: (...) numbers in [0, 1).
            mix: share of uniform draws, which may give the thing itself.

        Returns:
            ids and how each came about: `NEIGHBOUR`, `UNIFORM`, or `ALONE` (uniform since there is no neighbour).
        """
        known = things >= 0
        at = things.clamp_min(0)
        number, group, place = self.others_of(at), self.group[at], self.place[at]
        how = torch.where(number > 0, NEIGHBOUR, ALONE)
        how = torch.where((coin < mix) | ~known | (group < 0), UNIFORM, how)
        step = (share * number).long()
        step = step + ((place >= 0) & (step >= place)).long()  # over itself
        uniform = (share * len(self)).long()
        if not len(values := self.members.values):
            return uniform, how
        near = values[(self.members.offsets[group.clamp_min(0)] + step).clamp_max(len(values) - 1)]
        return torch.where(how == NEIGHBOUR, near, uniform), how

    def chance(self, things: Tensor, drawn: Tensor, mix: float) -> Tensor:
        """(V,) float64 probability that `draw` gives ``drawn`` (V,) for ``things`` (V,).

        ``mix / n + (1 - mix) / others * [drawn is a neighbour]``; 1 / n for things without neighbours. With it,
        ``log(1 / n) - log(chance)`` on a negative's logit turns a softmax over draws back to the uniform target.
        """
        number, group, size = self.others_of(things), self.group[things], len(self)
        lists = self.members.select(group.clamp_min(0))
        there = pairs_in(torch.arange(len(things)), drawn, lists)
        there &= (drawn != things) & (group >= 0)
        mixed = mix / size + (1 - mix) / number.clamp_min(1).double() * there
        return torch.where(number > 0, mixed, 1 / size)
