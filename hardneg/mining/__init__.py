"""Mining from raw data: encode with any encoder, keep the vectors, mine a table."""

from hardneg.mining.cache import EmbeddingCache

__all__ = ["EmbeddingCache"]
