"""What happens around the training step."""

from hardneg.callbacks.activities import DrawActivities
from hardneg.callbacks.audit import AuditNegatives
from hardneg.callbacks.record import RecordNegatives
from hardneg.callbacks.refresh import RefreshNegatives
from hardneg.callbacks.report import WriteReport
from hardneg.callbacks.save_encoder import SaveEncoder
from hardneg.callbacks.store_writer import WriteStores

__all__ = [
    "AuditNegatives",
    "DrawActivities",
    "RecordNegatives",
    "RefreshNegatives",
    "SaveEncoder",
    "WriteReport",
    "WriteStores",
]
