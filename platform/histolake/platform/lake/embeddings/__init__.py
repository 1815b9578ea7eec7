"""Tables of vectors, one a model version: what they hold, their index, and the nearest pairs within a lake version."""

from histolake.platform.lake.embeddings.table import About
from histolake.platform.lake.embeddings.tables import EmbeddingTables

__all__ = ["About", "EmbeddingTables"]
