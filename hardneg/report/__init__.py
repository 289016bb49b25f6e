"""The picture after training: a run's folder becomes one self-contained HTML page."""

from hardneg.report.evaluation import save_evaluation
from hardneg.report.page import write_report

__all__ = ["save_evaluation", "write_report"]
