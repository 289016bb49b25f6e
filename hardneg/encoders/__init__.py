"""Encoders: raw inputs in, vectors out."""

from hardneg.encoders.base import Encoder
from hardneg.encoders.images import ImageBackbone, ImageEncoder, IRResNet, TorchvisionBackbone, load_images
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
    "IRResNet",
    "ImageBackbone",
    "ImageEncoder",
    "InertialConvolutions",
    "InertialTransformer",
    "SignalEncoder",
    "SkeletonCooccurrence",
    "TextEncoder",
    "TorchvisionBackbone",
    "load_images",
    "load_signals",
]
