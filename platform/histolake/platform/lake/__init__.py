"""The lake: catalogue, pairs and versions behind one class, `Lake`."""

from histolake.platform.lake.attempt import Attempt
from histolake.platform.lake.lake import Lake
from histolake.platform.lake.pairs import Fragment, PairsWriter
from histolake.platform.lake.snapshot import Chunk, Snapshot

__all__ = ["Attempt", "Chunk", "Fragment", "Lake", "PairsWriter", "Snapshot"]
