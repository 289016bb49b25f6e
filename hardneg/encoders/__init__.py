"""Encoders: raw inputs in, vectors out."""

from hardneg.encoders.base import Encoder
from hardneg.encoders.signals import (
    InertialConvolutions,
    InertialTransformer,
    SignalEncoder,
    SkeletonCooccurrence,
    load_signals,
)
from hardneg.encoders.text import TextEncoder

__all__ = [
    "Encoder",
    "InertialConvolutions",
    "InertialTransformer",
    "SignalEncoder",
    "SkeletonCooccurrence",
    "TextEncoder",
    "load_signals",
]
