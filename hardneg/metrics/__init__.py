"""The protocols by which each family is evaluated."""

from hardneg.metrics.classification import ClassMeasures, accuracy_and_macro_f1, evaluate_classes, linear_probe
from hardneg.metrics.retrieval import RetrievalMeasures, evaluate_retrieval
from hardneg.metrics.verification import (
    FaceMeasures,
    evaluate_faces,
    fold_accuracy,
    identification_ranks,
    tar_at_far,
)

__all__ = [
    "ClassMeasures",
    "FaceMeasures",
    "RetrievalMeasures",
    "accuracy_and_macro_f1",
    "evaluate_classes",
    "evaluate_faces",
    "evaluate_retrieval",
    "fold_accuracy",
    "identification_ranks",
    "linear_probe",
    "tar_at_far",
]
