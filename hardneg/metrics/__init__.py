"""The protocols by which each family is evaluated."""

from hardneg.metrics.anomaly import AnomalyMeasures, evaluate_anomalies
from hardneg.metrics.cir import CIRMeasures, evaluate_cir
from hardneg.metrics.classification import ClassMeasures, accuracy_and_macro_f1, evaluate_classes, linear_probe
from hardneg.metrics.compositional import compositional_scores
from hardneg.metrics.flips import NegativeFlipRate, first_relevant
from hardneg.metrics.geo import GeoMeasures, evaluate_geo, rank_references
from hardneg.metrics.retrieval import RetrievalMeasures, evaluate_retrieval
from hardneg.metrics.steering import SteeringMeasures, evaluate_steering
from hardneg.metrics.verification import (
    FaceMeasures,
    evaluate_faces,
    fold_accuracy,
    identification_ranks,
    tar_at_far,
)

__all__ = [
    "AnomalyMeasures",
    "CIRMeasures",
    "ClassMeasures",
    "FaceMeasures",
    "GeoMeasures",
    "NegativeFlipRate",
    "RetrievalMeasures",
    "SteeringMeasures",
    "accuracy_and_macro_f1",
    "compositional_scores",
    "evaluate_anomalies",
    "evaluate_cir",
    "evaluate_classes",
    "evaluate_faces",
    "evaluate_geo",
    "evaluate_retrieval",
    "evaluate_steering",
    "first_relevant",
    "fold_accuracy",
    "identification_ranks",
    "linear_probe",
    "rank_references",
    "tar_at_far",
]
