"""The protocols by which each family is evaluated."""

from hardneg.metrics.classification import ClassMeasures, accuracy_and_macro_f1, evaluate_classes, linear_probe
from hardneg.metrics.retrieval import RetrievalMeasures, evaluate_retrieval

__all__ = [
    "ClassMeasures",
    "RetrievalMeasures",
    "accuracy_and_macro_f1",
    "evaluate_classes",
    "evaluate_retrieval",
    "linear_probe",
]
