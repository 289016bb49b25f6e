"""Data modules: standard files in, `Batch` out. One `LightningDataModule` per kind of task, and the readers it needs."""

from datamodules.batch import Batch
from datamodules.retrieval import RetrievalData

__all__ = ["Batch", "RetrievalData"]
