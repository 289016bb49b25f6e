"""Lightning modules, one per family."""

from hardneg.modules.base import ContrastiveModule
from hardneg.modules.captions import CaptionsModule
from hardneg.modules.cir import CIRModule
from hardneg.modules.extreme import ExtremeModule
from hardneg.modules.face import FaceModule
from hardneg.modules.geo import GeoModule
from hardneg.modules.har import HARModule
from hardneg.modules.moco import MoCoModule
from hardneg.modules.reranking import RerankingModule
from hardneg.modules.retrieval import RetrievalModule
from hardneg.modules.tabular import TabularModule

__all__ = [
    "CIRModule",
    "CaptionsModule",
    "ContrastiveModule",
    "ExtremeModule",
    "FaceModule",
    "GeoModule",
    "HARModule",
    "MoCoModule",
    "RerankingModule",
    "RetrievalModule",
    "TabularModule",
]
