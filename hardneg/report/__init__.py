"""The picture after training: a run's folder becomes one self-contained HTML page."""

from hardneg.report.evaluation import save_evaluation
from hardneg.report.page import save_thumbnails, write_report

__all__ = ["save_evaluation", "save_thumbnails", "write_report"]
