"""The miner layer: a pool of negatives flows through a chain of miners into a loss.

Importable alone, at the price of torch: ``from miners import NGAME, GIST``. Stores, indices and offline mining are
loaded when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from miners.adore import ADORE
from miners.augmented_negatives import AugmentedNegatives, Corruption, Resample
from miners.balanced_classes import BalancedClasses
from miners.base import (
    BatchMiner,
    Draw,
    DrawnBatches,
    NegativeSource,
    PoolMiner,
    Row,
    Shuffled,
    TrainingTable,
)
from miners.cet import CET
from miners.cluster_negatives import ClusterNegatives
from miners.cluster_weights import ClusterWeights
from miners.debiased import Debiased
from miners.family_batches import FamilyBatches
from miners.generated_negatives import GeneratedNegatives
from miners.gist import GIST
from miners.hardness_concentration import HardnessConcentration
from miners.in_batch import InBatch
from miners.learned_weights import LearnedWeights
from miners.margins import AdaFace, ArcFace, CosFace, MagFace
from miners.memory_queue import MemoryQueue
from miners.mined_on_refresh import MinedOnRefresh
from miners.mochi import MoCHi
from miners.neighbour_batches import GeoTable, NeighbourBatches, NeighbourTable, SimilarityTable
from miners.ngame import NGAME
from miners.no_duplicates import NoDuplicates
from miners.perpendicular_negatives import PerpendicularNegatives
from miners.places import Places
from miners.pool import Block, Items, NegativePool, StepContext
from miners.positive_aware import PositiveAware
from miners.ragged import Ragged
from miners.random_negatives import RandomNegatives
from miners.self_blocks import SelfBlocks
from miners.static_bank import StaticBank
from miners.static_negatives import StaticNegatives
from miners.steering import steer
from miners.taxonomy_negatives import TaxonomyNegatives
from miners.unpg import UNPG

if TYPE_CHECKING:
    from miners.index import FaissIndex, Index, ShardedIndex, TorchIndex, build_index
    from miners.offline import MinedNegatives, mine
    from miners.store import Store

__all__ = [
    "ADORE",
    "CET",
    "GIST",
    "NGAME",
    "UNPG",
    "AdaFace",
    "ArcFace",
    "AugmentedNegatives",
    "BalancedClasses",
    "BatchMiner",
    "Block",
    "ClusterNegatives",
    "ClusterWeights",
    "Corruption",
    "CosFace",
    "Debiased",
    "Draw",
    "DrawnBatches",
    "FaissIndex",
    "FamilyBatches",
    "GeneratedNegatives",
    "GeoTable",
    "HardnessConcentration",
    "InBatch",
    "Index",
    "Items",
    "LearnedWeights",
    "MagFace",
    "MemoryQueue",
    "MinedNegatives",
    "MinedOnRefresh",
    "MoCHi",
    "NegativePool",
    "NegativeSource",
    "NeighbourBatches",
    "NeighbourTable",
    "NoDuplicates",
    "PerpendicularNegatives",
    "Places",
    "PoolMiner",
    "PositiveAware",
    "Ragged",
    "RandomNegatives",
    "Resample",
    "Row",
    "SelfBlocks",
    "ShardedIndex",
    "Shuffled",
    "SimilarityTable",
    "StaticBank",
    "StaticNegatives",
    "StepContext",
    "Store",
    "TaxonomyNegatives",
    "TorchIndex",
    "TrainingTable",
    "build_index",
    "mine",
    "steer",
]

_LATER = {
    "Store": "miners.store",
    "Index": "miners.index",
    "FaissIndex": "miners.index",
    "TorchIndex": "miners.index",
    "ShardedIndex": "miners.index",
    "build_index": "miners.index",
    "MinedNegatives": "miners.offline",
    "mine": "miners.offline",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'miners' has no attribute '{name}'")
