"""Encoders: raw inputs in, vectors out."""

from hardneg.encoders.base import Encoder
from hardneg.encoders.clip import CLIPEncoder
from hardneg.encoders.composed import (
    CLIP4CirCombiner,
    Combiner,
    ComposedEncoder,
    SumCombiner,
    TIRGGate,
    load_composed,
)
from hardneg.encoders.cross import CrossEncoder, PairScorer, WordOverlap
from hardneg.encoders.images import (
    ImageBackbone,
    ImageEncoder,
    IRResNet,
    TimmBackbone,
    TorchvisionBackbone,
    load_images,
)
from hardneg.encoders.merge import merge
from hardneg.encoders.signals import (
    InertialConvolutions,
    InertialTransformer,
    SignalEncoder,
    SkeletonCooccurrence,
    load_signals,
)
from hardneg.encoders.tabular import RawFeatures, TabularEncoder, load_tabular
from hardneg.encoders.text import TextEncoder
from hardneg.encoders.towers import Towers, load_towers

__all__ = [
    "CLIP4CirCombiner",
    "CLIPEncoder",
    "Combiner",
    "ComposedEncoder",
    "CrossEncoder",
    "Encoder",
    "IRResNet",
    "ImageBackbone",
    "ImageEncoder",
    "InertialConvolutions",
    "InertialTransformer",
    "PairScorer",
    "RawFeatures",
    "SignalEncoder",
    "SkeletonCooccurrence",
    "SumCombiner",
    "TIRGGate",
    "TabularEncoder",
    "TextEncoder",
    "TimmBackbone",
    "TorchvisionBackbone",
    "Towers",
    "WordOverlap",
    "load_composed",
    "load_images",
    "load_signals",
    "load_tabular",
    "load_towers",
    "merge",
]
