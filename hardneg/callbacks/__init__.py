"""What happens around the training step."""

from hardneg.callbacks.activities import DrawActivities
from hardneg.callbacks.audit import AuditNegatives
from hardneg.callbacks.checkpoint_paths import CheckpointPaths
from hardneg.callbacks.composed import DrawRetrievals
from hardneg.callbacks.faces import DrawFaces
from hardneg.callbacks.geo import DrawPlaces
from hardneg.callbacks.neighbours import DrawNeighbours
from hardneg.callbacks.probe import ProbeClasses
from hardneg.callbacks.record import RecordNegatives
from hardneg.callbacks.refresh import RefreshNegatives
from hardneg.callbacks.report import WriteReport
from hardneg.callbacks.save_encoder import SaveEncoder
from hardneg.callbacks.store_writer import WriteStores
from hardneg.callbacks.waiting import MeasureWaiting

__all__ = [
    "AuditNegatives",
    "CheckpointPaths",
    "DrawActivities",
    "DrawFaces",
    "DrawNeighbours",
    "DrawPlaces",
    "DrawRetrievals",
    "MeasureWaiting",
    "ProbeClasses",
    "RecordNegatives",
    "RefreshNegatives",
    "SaveEncoder",
    "WriteReport",
    "WriteStores",
]
