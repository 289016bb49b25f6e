"""Exact search with plain torch operations: screen in half precision, prove what may be dropped, re-rank the rest.

A document can only be among the k best if its screened score comes close enough to the k-th best screened score. With
q^, d^ the vectors rounded to the screening type, and s^ their product as the hardware gives it,

    |q.d - s^| <= |q - q^| |d| + |q^| |d - d^| + summation + output rounding =: error(q)

where the residuals |q - q^| and |d - d^| are measured, not assumed. Everything that survives is scored again in float64
and rounded to float32. That score depends on the two vectors alone, not on the shape of a block, the number of threads
or the path that found the document. A query whose candidates do not fit the buffer cannot be certified; it is searched
again in float32 and, should thousands of documents tie, exhaustively.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from miners.index.base import Index, load_index, save_index
from miners.store import Store

logger = logging.getLogger(__name__)

BLOCK_ROWS = 16384  # documents per product
BLOCK_SCORES = 1 << 25  # scores per product: 64 MB in bfloat16; half as many cost a twentieth more time, in more calls
MOST_GROUP = 16  # a maximum is taken over this many scores before anything is selected
FEW_QUERIES = 64  # below, reading the documents costs more than multiplying them, and screening saves nothing
PAIR_BYTES = 8 << 20  # float64 rows that are multiplied at once when pairs are scored: more falls out of the caches
RESIDENT_SHARE = 0.5  # of an accelerator's free memory that the documents may take
MOST_SLOTS = 4  # candidates wait unsorted until they are this many times more than will be looked at
LOWEST = torch.finfo(torch.float32).min  # below every score, yet finite: bounds are computed from it


@dataclass
class Candidates:
    """What is left of the documents seen so far, for one block of queries; W slots each, in no order."""

    screened: Tensor  # (B, W) screened score, -inf where empty
    rows: Tensor  # (B, W) row of the store
    best: Tensor  # (B, <= k) the k best screened scores
    dropped: Tensor  # (B,) largest screened score that was ever dropped for want of slots

    @classmethod
    def empty(cls, count: int, device: torch.device) -> Candidates:
        none = torch.empty(count, 0, device=device)
        return cls(none, none.long(), none, torch.full((count,), LOWEST, device=device))

    def kth(self, k: int) -> Tensor:
        """The k-th best screened score (B,); -inf where there are fewer."""
        if self.best.shape[1] < k:
            return self.best.new_full((len(self.best),), float("-inf"))
        return self.best.amin(dim=1)

    def trim(self, width: int) -> None:
        """Keep the best ``width`` slots, best first, and remember the best that goes."""
        screened, order = self.screened.topk(min(width + 1, self.screened.shape[1]), dim=1)
        if screened.shape[1] > width:
            self.dropped = torch.maximum(self.dropped, screened[:, width])
        self.screened, self.rows = screened[:, :width], self.rows.gather(1, order[:, :width])


class TorchIndex(Index):
    """Search exactly by blocked matrix products on CPU, CUDA or MPS.

    A score is the float64 product of the two vectors, rounded to float32. Documents of equal score come in the order of
    their rows in the store.

    Which path is taken, always with the same result:

    - CPU with bfloat16 units (AVX512-BF16, AMX, Arm BF16) and CUDA from compute capability 8: screening in bfloat16;
    - CPU without them, older CUDA, MPS, or fewer than 64 queries: screening in float32;
    - int8 is not used: its rounding residual is 8 times that of bfloat16, so that 10 times as many candidates
      survive the bound, and scoring these costs more than the faster product saves.

    Memory beyond the store: about 200 MB for scores and candidates, at any number of documents.

    Args:
        store: documents that are searched; a memory-mapped store is read block by block.
        device: "auto" takes CUDA if there is one, else the CPU.

    Attributes:
        searched: queries answered so far.
        uncertified: how many of them had to be searched again in float32.
    """

    exact_scores = True

    def __init__(self, store: Store, device: str = "auto") -> None:
        super().__init__(store, device)
        if device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.searched = self.uncertified = 0
        self.screening = screening_type(torch.device(self.device))
        self.vectors = self._resident()
        self._longest, self._residual = self._measure()

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        queries = queries.to(self.device)
        scores = torch.empty(len(queries), k)
        rows = torch.empty(len(queries), k, dtype=torch.int64)
        left = torch.arange(len(queries))  # queries without a certified answer
        paths = [self.screening, torch.float32] if len(queries) >= FEW_QUERIES else [torch.float32]
        for dtype in dict.fromkeys(paths):
            if len(left):
                scores[left], rows[left], certified = self._screen(queries[left.to(queries.device)], k, dtype)
                left = left[~certified]
                if dtype == torch.bfloat16:
                    self.uncertified += len(left)
        if len(left):
            logger.info("TorchIndex: %d queries tie with many documents; searching them exhaustively.", len(left))
            scores[left], rows[left] = self._exhaust(queries[left.to(queries.device)], k)
        self.searched += len(queries)
        return scores, self.store.ids[rows]

    def _screen(self, queries: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Search by screening in ``dtype``; returns scores, rows (Q, k) and which queries (Q,) are certified."""
        block = max(BLOCK_ROWS, 1 << (8 * k - 1).bit_length())
        group = min(MOST_GROUP, 1 << (block // (4 * k)).bit_length() - 1)  # a power of two: it divides the block
        width = 2 * k + 64
        parts = list(queries.split(max(16, min(2048, BLOCK_SCORES // block))))
        rounded = [part.to(dtype) for part in parts]
        error = [self._error(part, small.float(), dtype) for part, small in zip(parts, rounded, strict=True)]
        found = [Candidates.empty(len(part), queries.device) for part in parts]
        relative = torch.finfo(dtype).eps / 2  # rounding of the product itself
        # one buffer for all products: fresh memory for each would cost a page fault per 2,048 scores
        buffer = torch.empty(len(parts[0]) * block, dtype=dtype, device=queries.device)
        for start in range(0, len(self.store), block):
            documents = self.vectors[start : start + block].to(self.device, dtype)
            missing = -len(documents) % group
            if missing:
                documents = torch.nn.functional.pad(documents, (0, 0, 0, missing))
            for part, small in enumerate(rounded):
                product = buffer[: len(small) * len(documents)].view(len(small), len(documents))
                torch.mm(small, documents.T, out=product)  # (B, C)
                if missing:
                    product[:, -missing:] = float("-inf")
                found[part] = select(product, start, found[part], error[part], relative, k, group, width)
        scores: list[Tensor] = []
        rows: list[Tensor] = []
        certified: list[Tensor] = []
        for part, candidates, bound in zip(parts, found, error, strict=True):
            candidates.trim(width)
            answer = self._rerank(part, candidates, bound, relative, k)
            for whole, piece in zip((scores, rows, certified), answer, strict=True):
                whole.append(piece)
        return torch.cat(scores), torch.cat(rows), torch.cat(certified)

    def _rerank(
        self, queries: Tensor, found: Candidates, error: Tensor, relative: float, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score candidates exactly; scores, rows (B, k) and which queries (B,) are certified, all on the CPU."""
        screened, rows = found.screened, found.rows
        if screened.shape[1] < k:  # only where too many near-ties left a query without candidates
            screened = torch.nn.functional.pad(screened, (0, k - screened.shape[1]), value=float("-inf"))
            rows = torch.nn.functional.pad(rows, (0, k - rows.shape[1]))
        likely = pair_scores(queries, self.vectors, rows[:, :k])
        likely = likely.to(screened.device).masked_fill(screened[:, :k] == float("-inf"), float("-inf"))
        # the exact score of the k-th is a floor without an error of its own: half as many others reach it
        floor = likely.amin(dim=1)  # (B,)
        certified = upper(found.dropped[:, None], error, relative)[:, 0] < floor
        count = (upper(screened, error, relative) >= floor[:, None]).sum(1).clamp(min=k)  # slots are sorted, best first
        width = int(count.max())
        others = pair_scores(queries, self.vectors, rows[:, k:width], count - k).to(screened.device)
        used = torch.arange(k, width, device=count.device) < count[:, None]
        exact = torch.cat([likely, others.masked_fill(~used, float("-inf"))], dim=1)
        # rows ascend first, so that the stable sort by score leaves equal scores in row order
        rows, order = rows[:, :width].sort(dim=1)
        scores, best = exact.gather(1, order).sort(dim=1, descending=True, stable=True)
        return scores[:, :k].cpu(), rows.gather(1, best[:, :k]).cpu(), certified.cpu()

    def _exhaust(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Score every document in float64, keeping the first rows among equals."""
        found: list[tuple[Tensor, Tensor]] = []
        for part in queries.cpu().double().split(256):
            scores, rows = torch.empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.int64)
            for start in range(0, len(self.store), 8192):
                documents = self.store.vectors[start : start + 8192].cpu().double()
                here = torch.arange(start, start + len(documents)).expand(len(part), -1)
                scores = torch.cat([scores, (part @ documents.T).float()], dim=1)
                rows = torch.cat([rows, here], dim=1)
                if scores.shape[1] > k:
                    floor = scores.topk(k, dim=1).values[:, -1:]
                    above, equal = scores > floor, scores == floor
                    keep = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
                    scores, rows = scores[keep].view(-1, k), rows[keep].view(-1, k)
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            found.append((scores, rows.gather(1, order)))
        return torch.cat([scores for scores, _ in found]), torch.cat([rows for _, rows in found])

    def _error(self, queries: Tensor, rounded: Tensor, dtype: torch.dtype) -> Tensor:
        """Bound |q.d - s^| over all documents, but for the rounding of s^ itself: (B,)."""
        residual = self._residual if dtype == torch.bfloat16 else 0.0
        length, away = norm_bound(rounded), norm_bound(queries - rounded)
        longest = self._longest + self._residual  # of a rounded document
        # float32 sums of d products, each product and each addition rounded; then float32 rounding of the exact score
        summation = (2 * self.store.dim * 2.0**-24 + 2.0**-22) * length * longest
        subnormal = self.store.dim * torch.finfo(torch.float32).tiny  # the units flush these to zero
        return away * self._longest + length * residual + summation + subnormal

    def _resident(self) -> Tensor:
        """The documents on the accelerator if they fit there, else where they are: then blocks are sent each time."""
        vectors, device = self.store.vectors, torch.device(self.device)
        if device.type != "cuda" or vectors.device == device:
            return vectors
        size, free = vectors.numel() * vectors.element_size(), torch.cuda.mem_get_info(device)[0]
        if size > RESIDENT_SHARE * free:
            logger.info(
                "TorchIndex: %d MB of documents, %d MB free on %s; sending blocks.", size >> 20, free >> 20, device
            )
            return vectors
        return vectors.to(device)

    def _measure(self) -> tuple[float, float]:
        """Longest document, and its largest residual |d - d^| in bfloat16."""
        longest = residual = 0.0
        step = max(1, (4 << 20) // (4 * self.store.dim))
        for start in range(0, len(self.store), step):
            documents = self.vectors[start : start + step].to(self.device).float()
            longest = max(longest, float(norm_bound(documents).max()))
            if self.screening == torch.bfloat16:
                residual = max(residual, float(norm_bound(documents - documents.bfloat16()).max()))
        return longest, residual

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the documents; the index itself has nothing more to keep."""
        save_index(folder, type(self).__name__, self.store)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> Self:
        """Read the documents back, memory-mapped, after their checksums were compared."""
        return load_index(folder, cls.__name__, lambda _, store: cls(store, device))


def norm_bound(vectors: Tensor) -> Tensor:
    """Bound the lengths (N,) of float32 vectors (N, d) from above: the sum is rounded, and tiny squares vanish."""
    return vectors.norm(dim=1) * (1 + 2**-10) + (vectors.shape[1] * torch.finfo(torch.float32).tiny) ** 0.5


def lower(screened: Tensor, error: Tensor, relative: float) -> Tensor:
    """Least exact score (B,) that a screened score (B,) allows."""
    return (screened - relative * screened.abs() - error).clamp(min=LOWEST)


def upper(screened: Tensor, error: Tensor, relative: float) -> Tensor:
    """Largest exact score (B, N) that screened scores (B, N) allow; grows with the screened score."""
    return screened + relative * screened.abs() + error[:, None]


def reach(floor: Tensor, error: Tensor, relative: float, dtype: torch.dtype) -> Tensor:
    """Largest value (B,) of the screening type below every score whose `upper` bound comes up to a floor (B,)."""
    floor = floor - error
    floor = floor / (1 + relative * floor.sign())
    return (floor - 2 * torch.finfo(dtype).eps * floor.abs()).clamp(min=torch.finfo(dtype).min).to(dtype)


def select(
    product: Tensor, start: int, found: Candidates, error: Tensor, relative: float, k: int, group: int, width: int
) -> Candidates:
    """Take the documents of one block that may be among the k best into the candidates.

    Nothing but a maximum over groups of ``group`` scores ever looks at the whole block: a group whose maximum stays
    below the floor holds no candidate.

    Shapes:
        product (B, C) in the screening type, C a multiple of ``group``; its first column is row ``start`` of the store.
    """
    stride = product.shape[1] // group
    # a group is every stride-th column: the maximum then runs along memory, ten times faster than over neighbours
    tops = product.view(-1, group, stride).amax(dim=1)  # (B, C / group)
    floor = reach(lower(found.kth(k), error, relative), error, relative, product.dtype)  # (B,)
    passing = tops >= floor[:, None]
    dropped = found.dropped
    if stride >= k and int(passing.sum()) > len(product) * k:
        best = tops.topk(k, dim=1).values[:, -1].float()  # k documents of this block score at least this
        floor = torch.maximum(floor, reach(lower(best, error, relative), error, relative, product.dtype))
        passing = tops >= floor[:, None]
        crowded = passing.sum(1) > 2 * width  # near-ties without end: not certified, searched again
        dropped = dropped.masked_fill(crowded, -LOWEST)
        passing &= ~crowded[:, None]
    row, column = passing.nonzero(as_tuple=True)  # (n,) groups that hold a candidate
    # row n of this view is the group that begins at score n: gathering whole rows is three times faster than scores
    groups = product.as_strided((product.numel() - (group - 1) * stride, group), (1, stride))
    scores = groups[row * product.shape[1] + column]  # (n, group)
    where, member = (scores >= floor[row][:, None]).nonzero(as_tuple=True)
    row, column, scores = row[where], column[where] + stride * member, scores[where, member].float()  # (m,) by row

    counts = torch.bincount(row, minlength=len(product))
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    screened = product.new_full((len(product), int(counts.max())), float("-inf"), dtype=torch.float32)
    screened[row, slot] = scores
    rows = torch.zeros_like(screened, dtype=torch.int64)
    rows[row, slot] = column + start
    best = torch.cat([found.best, screened], dim=1)
    best = best.topk(min(k, best.shape[1]), dim=1, sorted=False).values
    found = Candidates(
        torch.cat([found.screened, screened], dim=1), torch.cat([found.rows, rows], dim=1), best, dropped
    )
    if found.screened.shape[1] > MOST_SLOTS * width:
        found.trim(width)
    return found


def pair_scores(left: Tensor, right: Tensor, rows: Tensor, count: Tensor | None = None) -> Tensor:
    """Score pairs: the float64 product of two vectors, rounded to float32, whatever the shape of the batch.

    Args:
        left: (B, d) one vector per row of pairs.
        right: (M, d) vectors, memory-mapped or in memory, any floating type.
        rows: (B, N) rows of ``right``.
        count: (B,) how many pairs of each row matter; the others may hold anything. None: all.

    Returns:
        (B, N) float32 on the device of ``right``.
    """
    # MPS has no float64: its rows are multiplied on the CPU
    device = torch.device("cpu") if right.device.type == "mps" else right.device
    scores = torch.zeros(rows.shape, device=device)
    step = max(1, PAIR_BYTES // (8 * left.shape[1] * max(1, rows.shape[1])))
    if device.type == "cuda":
        step *= 64  # fewer, larger launches
    left, rows = left.to(device), rows.to(right.device)
    for start in range(0, len(rows), step):
        wide = rows.shape[1] if count is None else int(count[start : start + step].max())
        here = rows[start : start + step, :wide]
        vectors = right.index_select(0, here.flatten()).to(device).view(*here.shape, right.shape[1]).double()
        query = left[start : start + step, None].double()
        scores[start : start + step, :wide] = torch.linalg.vecdot(vectors, query).float()
    return scores


def screening_type(device: torch.device) -> torch.dtype:
    """The type that is screened in on this device: bfloat16 where there are units for it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float32
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, as far as torch can tell."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.cpu, "get_capabilities"):
        return False
    return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)
