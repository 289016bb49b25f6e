"""Losses over a pool of negatives; each returns (sum, count) terms."""

from hardneg.losses.base import PoolLoss
from hardneg.losses.distillation import FocalDistillation
from hardneg.losses.info_nce import InfoNCE
from hardneg.losses.ngame import NGAMEClassifierHinge, NGAMEHinge
from hardneg.losses.pair_margin import PairMargin
from hardneg.losses.pairwise import LambdaRank, PairwiseLogistic, TripletMargin

__all__ = [
    "FocalDistillation",
    "InfoNCE",
    "LambdaRank",
    "NGAMEClassifierHinge",
    "NGAMEHinge",
    "PairMargin",
    "PairwiseLogistic",
    "PoolLoss",
    "TripletMargin",
]
