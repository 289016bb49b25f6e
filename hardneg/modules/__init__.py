"""Lightning modules, one per family."""

from hardneg.modules.base import ContrastiveModule
from hardneg.modules.retrieval import RetrievalModule

__all__ = ["ContrastiveModule", "RetrievalModule"]
