"""AdaMEOW: a small network weighs the negatives, kept from weighing them all at nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miners.base import PoolMiner
from miners.draws import generator_for
from miners.pool import Block, NegativePool

LOW = -1e30  # of what is not weighed: its exponential is 0, and no difference with it overflows


class LearnedWeights(PoolMiner):
    """Weigh each negative by ``w = sigmoid(v . tanh(U (a + z) + b) + c)``, at a mean of 1 over the anchor's negatives.

    As published, w is free and the positive is in no denominator but with a weight of its own: w = 0 sends the loss to
    minus infinity. Here a common factor of all weights changes nothing, and the positive has weight 1, so that the loss
    is at least that of the anchor's easiest negative in the place of all. What is left to learn is which negatives
    count more than others; that they are the false ones nobody promises, and where it was tried the encoder was the
    worse for it. Off by default for good reason: try `ClusterWeights` first.

    Args:
        dim: length d of a vector.
        hidden: width of the network.
        start_step: all weights are 1 before this step, and the network stays as it is.
        learning_rate: of the network; None takes the module's.
        seed: of its first weights.

    Shapes:
        B anchors, N candidates. ``log_weight`` gains (B, N), with gradient to the network alone; B x N x hidden numbers
        for each block. Synthetic blocks are left as they are.

    Raises:
        ValueError: numbers out of range; vectors of another length; a block that is scored in chunks.

    Source:
        AdaMEOW, arXiv 2212.13847, and its code. Differs: weights have a mean of 1 and the positive has none; vectors
        are constants to the network; U (a + z) is U a + U z, without the B x N x d sums.
    """

    needs = frozenset({"embeddings"})

    def __init__(
        self, dim: int = 384, hidden: int = 16, start_step: int = 0, learning_rate: float | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if min(dim, hidden) < 1 or start_step < 0:
            raise ValueError(
                f"LearnedWeights(dim={dim}, hidden={hidden}, start_step={start_step}): sizes are at least 1, a step at "
                "least 0."
            )
        self.dim, self.hidden, self.start_step = dim, hidden, start_step
        self.learning_rate = learning_rate
        dice = generator_for(seed)
        self.inner = nn.Parameter(torch.randn(hidden, dim, generator=dice) / dim**0.5)  # U
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.outer = nn.Parameter(torch.randn(hidden, generator=dice) / hidden**0.5)  # v
        self.outer_bias = nn.Parameter(torch.zeros(()))

    def forward(self, pool: NegativePool) -> NegativePool:
        found = self._normalised(pool)
        if pool.context.step < self.start_step:  # times 0, not left out: DDP waits for every weight's gradient
            found = {key: 0 * log_weight for key, log_weight in found.items()}
        return pool.weight(lambda scores, block: found.get(id(block)))

    @torch.no_grad()
    def statistics(
        self, pool: NegativePool, combine: Callable[[Tensor], Tensor] = lambda sums: sums
    ) -> dict[str, Tensor]:
        """spread: standard deviation of the weights, whose mean is 1; 0 = they say nothing, large = few count."""
        sums = torch.zeros(2, dtype=torch.float32, device=self.outer.device)
        found = self._normalised(pool)
        for block in self._blocks(pool):
            usable = pool.usable_of(block)
            deviation = (found[id(block)].exp() - 1).square().where(usable, 0)
            sums = sums + torch.stack([deviation.sum(), usable.sum()]).to(sums)
        total, number = combine(sums)
        return {"spread": (total / number.clamp_min(1)).sqrt()}

    def log_odds(self, anchors: Tensor, candidates: Tensor) -> Tensor:
        """(B, N) what the sigmoid is taken of, for unit vectors (B, d) and (N, d) | (B, N, d)."""
        if candidates.shape[-1] != self.dim:
            raise ValueError(
                f"LearnedWeights(dim={self.dim}) meets vectors of {candidates.shape[-1]} dims. Set its dim to "
                f"{candidates.shape[-1]}."
            )
        with torch.autocast(anchors.device.type, enabled=False):
            inner = self.inner.to(anchors.dtype)
            left, right = anchors @ inner.T, candidates @ inner.T  # (B, hidden), (N, hidden) | (B, N, hidden)
            hidden = torch.tanh(left[:, None] + right + self.inner_bias.to(anchors.dtype))
            return hidden @ self.outer.to(anchors.dtype) + self.outer_bias.to(anchors.dtype)

    def _blocks(self, pool: NegativePool) -> list[Block]:
        return [block for block in pool.negatives if block.real and block.items.embeddings is not None]

    def _normalised(self, pool: NegativePool) -> dict[int, Tensor]:
        """Block -> (B, N) log weights, whose exponentials have a mean of 1 over all usable negatives of an anchor."""
        blocks = self._blocks(pool)
        if not blocks:
            return {}
        if long := [block for block in blocks if block.chunk_size is not None]:
            raise ValueError(
                f"LearnedWeights weighs all candidates of an anchor together, and the block '{long[0].origin}' is "
                f"scored in chunks of {long[0].chunk_size}. Set the chunk_size of the miner that adds it to null, or "
                "take ClusterWeights."
            )
        logs, usables = [], []
        for block in blocks:
            left = (block.left or pool.anchors).unit.detach()
            if left.ndim == 3:  # positives as the left side: one row each
                left = left.squeeze(1)
            usables.append(pool.usable_of(block))
            logs.append(F.logsigmoid(self.log_odds(left, block.items.unit.detach())).where(usables[-1], LOW))
        top = torch.stack([one.detach().amax(1) for one in logs if one.shape[1]], 1).amax(1, keepdim=True)  # (B, 1)
        total = torch.stack(
            [(one - top).exp().where(usable, 0).sum(1) for one, usable in zip(logs, usables, strict=True)], 1
        ).sum(1)
        number = torch.stack([usable.sum(1) for usable in usables], 1).sum(1)
        level = (number.clamp_min(1) / total.where(number > 0, 1)).log()[:, None] - top
        return {id(block): one + level for block, one in zip(blocks, logs, strict=True)}
