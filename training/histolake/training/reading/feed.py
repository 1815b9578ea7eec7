"""Where a training loop gets its batches, whoever reads and decodes them.

PairReader     from the lake, in this process; any step can be started at
RayFeed        the same batches to the bit, decoded by Ray Data on the CPUs of other machines
ShardReader    from the WebDataset shards of an export, without a lake; an epoch can be started at, a step cannot
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from histolake.training.reading.batch import Batch

__all__ = ["Feed"]


class Feed(Protocol):
    """One worker's batches of an endless training. Made in each worker, and used by one thread."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch, the same in each."""
        ...

    @property
    def slide_ids(self) -> list[str]:
        """The slides by the numbers that `Batch.slides_B` holds."""
        ...

    @property
    def notice(self) -> str | None:
        """One line to tell where a run starts, if the feed promises less than exact resume."""
        ...

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop), counted over all epochs. What prepares them ends with the iterator."""
        ...
