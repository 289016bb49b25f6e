"""Encoders: raw inputs in, vectors out."""

from hardneg.encoders.base import Encoder
from hardneg.encoders.text import TextEncoder

__all__ = ["Encoder", "TextEncoder"]
