"""What a table of negatives is worth: how hard, how fresh, how often wrong."""

from hardneg.audit.measure import audit

__all__ = ["audit"]
