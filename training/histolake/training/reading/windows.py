"""Rows of the lake for one worker, a window of the order at a time.

A window's rows that this worker needs are read with one request, undecoded, and stay until the steps have gone past
them: few, large reads on disk and S3, and memory for two windows at most.

Axes: B rows of a batch, P rows of a window that are this worker's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from histolake.training.reading.order import InOrder, Order

if TYPE_CHECKING:
    from histolake.platform.lake import Snapshot
    from histolake.platform.splits.selection import Part

__all__ = ["Rows", "Windows"]


@dataclass(frozen=True)
class Rows:
    """Some of a window's rows, in the order of their positions."""

    epoch: int
    positions_P: np.ndarray  # int64, rising
    places_P2: np.ndarray  # int64: chunk and row of the order
    table: pa.Table  # P rows

    def between(self, first: int, stop: int) -> Rows:
        """Those at the positions [first, stop); nothing is copied."""
        a, b = np.searchsorted(self.positions_P, [first, stop])
        return Rows(self.epoch, self.positions_P[a:b], self.places_P2[a:b], self.table.slice(a, b - a))


class Windows:
    """The windows of an order over some parts of a snapshot, read for rank r of n."""

    def __init__(
        self,
        snapshot: Snapshot,
        parts: Sequence[Part],
        order: Order | InOrder,
        columns: Sequence[str],
        *,
        rank: int,
        ranks: int,
    ) -> None:
        """`parts` are the chunks of the order."""
        self._snapshot = snapshot
        self._parts = parts
        self.chunks = [part.chunk for part in parts]
        self._order = order
        self._columns = list(columns)
        self._rank, self._ranks = rank, ranks

    def read(self, start: int, stop: int) -> Iterator[Rows]:
        """All rows of the steps [start, stop), window after window."""
        epoch, window = -1, -1
        positions: list[np.ndarray] = []
        places: list[np.ndarray] = []
        for step in range(start, stop):
            mine = self._order.slice(step, self._rank, self._ranks)
            for first, last in self._runs(mine.epoch, mine.positions_B):
                here = self._order.window(mine.epoch, int(mine.positions_B[first]))
                if (mine.epoch, here) != (epoch, window) and positions:
                    yield self._rows(epoch, np.concatenate(positions), np.concatenate(places))
                    positions, places = [], []
                epoch, window = mine.epoch, here
                positions.append(mine.positions_B[first:last])
                places.append(mine.places_B2[first:last])
        if positions:
            yield self._rows(epoch, np.concatenate(positions), np.concatenate(places))

    def _runs(self, epoch: int, positions_B: np.ndarray) -> Iterator[tuple[int, int]]:
        """Where a batch is cut by the borders of windows."""
        first = 0
        while first < len(positions_B):
            end = self._order.window_end(epoch, int(positions_B[first]))
            last = first + int(min(end, positions_B[-1] + 1) - positions_B[first])
            yield first, last
            first = last

    def _rows(self, epoch: int, positions_P: np.ndarray, places_P2: np.ndarray) -> Rows:
        table = self._snapshot.take(self.chunks, self.in_chunks(places_P2), self._columns)
        return Rows(epoch, positions_P, places_P2, table)

    def in_chunks(self, places_P2: np.ndarray) -> np.ndarray:
        """Places counted through all rows of their chunks, also where only some of them are meant."""
        found_P2 = places_P2.copy()
        for number in np.unique(places_P2[:, 0]):
            part = self._parts[number]
            if part.bits is not None:
                mine = places_P2[:, 0] == number
                found_P2[mine, 1] = part.picked()[places_P2[mine, 1]]
        return found_P2
