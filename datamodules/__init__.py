"""Data modules: standard files in, `Batch` out; one `LightningDataModule` per kind of task."""

from datamodules.batch import Batch
from datamodules.captions import CaptionsData
from datamodules.cir import CIRCOData, CIRRData, FashionIQData, TripletsData
from datamodules.diagrams import DiagramsData
from datamodules.distant import DistantLabelsData
from datamodules.extreme import ExtremeData
from datamodules.faces import FacesData
from datamodules.geo import GeoData
from datamodules.har import HARData
from datamodules.pairs import PairsData
from datamodules.retrieval import RetrievalData
from datamodules.tabular import TabularData
from datamodules.two_crops import TwoCropsData

__all__ = [
    "Batch",
    "CIRCOData",
    "CIRRData",
    "CaptionsData",
    "DiagramsData",
    "DistantLabelsData",
    "ExtremeData",
    "FacesData",
    "FashionIQData",
    "GeoData",
    "HARData",
    "PairsData",
    "RetrievalData",
    "TabularData",
    "TripletsData",
    "TwoCropsData",
]
