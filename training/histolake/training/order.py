"""In which order pairs are read: a pure function of (chunks, seed, epoch), with no state of its own.

The shuffle has two levels. Chunks (runs of rows, known from the catalogue alone) are permuted; consecutive permuted
chunks form windows of bounded size, and the rows of a window are permuted among themselves. So a position in the epoch
leads to a chunk and a row by arithmetic, a step can be started at without reading what came before it, and no list of
all rows ever exists: memory holds one number a chunk and the rows of one window.

Every worker computes the same sequence and takes its slice of each global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histolake.platform.errors import UsageError

__all__ = ["Order", "Place"]

_CHUNK_LEVEL, _ROW_LEVEL = 1, 2


@dataclass(frozen=True)
class Place:
    """A row: its chunk (index into the chunks given) and its row in it."""

    chunk: int
    row: int


class Order:
    """The sequence of rows of every epoch. `rows_per_chunk` describes the chunks in the lake's order."""

    def __init__(self, rows_per_chunk: Sequence[int], *, seed: int, global_batch: int, window_rows: int = 4096) -> None:
        self._rows_C = np.asarray(rows_per_chunk, dtype=np.int64)
        self.rows = int(self._rows_C.sum())
        self.seed = seed
        self.global_batch = global_batch
        self._window_rows = window_rows
        if global_batch > self.rows:
            raise UsageError(
                f"A global batch of {global_batch} is larger than the {self.rows} pairs to train on; "
                "set a smaller global_batch or name more slides."
            )
        self._epoch = -1
        self._chunk_order = np.zeros(0, dtype=np.int64)
        self._window_of_chunk = np.zeros(0, dtype=np.int64)
        self._window_starts = np.zeros(0, dtype=np.int64)
        self._window = (-1, -1)
        self._places_W2 = np.zeros((0, 2), dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch; the rows left over differ from epoch to epoch."""
        return self.rows // self.global_batch

    def places(self, step: int, rank: int = 0, ranks: int = 1) -> tuple[int, np.ndarray, list[Place]]:
        """What rank reads at a step (counted over all epochs): the epoch, the positions in it, and the rows."""
        if self.global_batch % ranks:
            raise UsageError(f"A global batch of {self.global_batch} cannot be divided among {ranks} workers.")
        epoch, batch = divmod(step, self.steps_per_epoch)
        local = self.global_batch // ranks
        first = batch * self.global_batch + rank * local
        positions_B = np.arange(first, first + local)
        return epoch, positions_B, [self._place(epoch, int(position)) for position in positions_B]

    def window(self, epoch: int, position: int) -> int:
        """In which window of the epoch a position lies."""
        self._enter(epoch)
        return int(np.searchsorted(self._window_starts, position, side="right")) - 1

    def _place(self, epoch: int, position: int) -> Place:
        window = self.window(epoch, position)
        if self._window != (epoch, window):
            self._open_window(epoch, window)
        chunk, row = self._places_W2[position - self._window_starts[window]]
        return Place(int(chunk), int(row))

    def _enter(self, epoch: int) -> None:
        """Permute the chunks of an epoch and cut them into windows."""
        if epoch == self._epoch:
            return
        self._chunk_order = self._draw(_CHUNK_LEVEL, epoch, 0).permutation(len(self._rows_C))
        rows_C = self._rows_C[self._chunk_order]
        before_C = np.cumsum(rows_C) - rows_C
        # A window ends with the chunk that fills it.
        self._window_of_chunk = before_C // self._window_rows
        _, firsts, self._window_of_chunk = np.unique(self._window_of_chunk, return_index=True, return_inverse=True)
        self._window_starts = before_C[firsts]
        self._epoch = epoch

    def _open_window(self, epoch: int, window: int) -> None:
        chunks = self._chunk_order[self._window_of_chunk == window]
        rows_K = self._rows_C[chunks]
        before_K = np.cumsum(rows_K) - rows_K
        rows_W = np.arange(rows_K.sum()) - np.repeat(before_K, rows_K)
        places_W2 = np.stack([np.repeat(chunks, rows_K), rows_W], axis=1)
        self._places_W2 = places_W2[self._draw(_ROW_LEVEL, epoch, window).permutation(len(places_W2))]
        self._window = (epoch, window)

    def _draw(self, level: int, epoch: int, index: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, level, epoch, index])))
