"""Hardness concentration: negatives close to the anchor weigh more, by an exponent on their own similarity."""

from __future__ import annotations

from torch import Tensor

from miners.base import PoolMiner
from miners.pool import Block, NegativePool


class HardnessConcentration(PoolMiner):
    """Weigh each negative by ``exp(beta * score / temperature)``, normalised to a mean weight of 1.

    The denominator's sum over N negatives becomes N times their importance-weighted mean: an estimate of what it would
    be if negatives were drawn in proportion to their hardness. beta 0 changes nothing; an infinite beta would use the
    hardest negative alone, N times. Chain `Debiased` behind it for the published loss of HCL.

    Args:
        beta: concentration, at least 0. It acts on similarity / temperature, so that beta / temperature is what counts:
            tune it anew when the temperature changes. 1 at temperature 0.5 is HCL's best on pictures; 1 at 0.1 is
            nearly the hardest only.
        detach_weights: no gradient through the weights; the published code lets it through.

    Shapes:
        B anchors, N candidates. Only ``log_weight`` (B, N) changes; synthetic blocks keep weight 1 and are not counted.

    Source:
        HCL, Robinson et al., arXiv 2010.04592, section 3.1 and its code (the paper's listing divides wrongly, as its
        authors confirmed); cross-modal use: Choi et al., arXiv 2309.01262. Differs: N counts each anchor's own usable
        negatives, where the cross-modal code takes 2B - 2 and mixes up anchors (see ``tests/oracles/har.py``).
    """

    def __init__(self, beta: float = 1.0, detach_weights: bool = False) -> None:
        super().__init__()
        if not beta >= 0:
            raise ValueError(f"HardnessConcentration(beta={beta}): wants at least 0; 0 weighs all negatives alike.")
        self.beta = beta
        self.detach_weights = detach_weights

    def forward(self, pool: NegativePool) -> NegativePool:
        norm = pool.mass(power=self.beta, real=True)[:, None]  # (B, 1) log of the sum of weights
        count = pool.count()[:, None].to(norm.dtype)
        level = (count.clamp_min(1).log() - norm).where(count > 0, 0)

        def importance(scores: Tensor, block: Block) -> Tensor:
            logits = scores / pool.temperature
            if block.log_weight is not None:
                logits = logits + block.log_weight
            weight = self.beta * logits + level
            return weight.detach() if self.detach_weights else weight

        return pool.weight(importance)
