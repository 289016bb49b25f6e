"""The protocols by which each family is evaluated."""

from hardneg.metrics.retrieval import RetrievalMeasures, evaluate_retrieval

__all__ = ["RetrievalMeasures", "evaluate_retrieval"]
