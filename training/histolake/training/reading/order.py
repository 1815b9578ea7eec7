"""In which order pairs are read: a pure function of (chunks, seed, epoch), with no state of its own.

The shuffle has two levels. Chunks (runs of rows, known from the catalogue alone) are permuted; consecutive chunks form
windows of bounded size, and the rows of a window are permuted among themselves. So a position in the epoch leads to a
chunk and a row by arithmetic, a step can be started at without reading what came before it, and no list of all rows
ever exists: memory holds some numbers a chunk and the rows of a window or two.

Every worker computes the same sequence and takes its slice of each global batch.

Chunks may be in groups, such as one an organ. Then each group gives the same number of rows to an epoch: a small one is
gone through several times, each time in another order, and of a large one another part is read in every epoch.

Axes: B rows of a batch, C chunks, S chunks in the order of an epoch, W rows of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from histolake.platform.errors import UsageError

__all__ = ["InOrder", "Order", "Slice"]

_CHUNK_LEVEL, _ROW_LEVEL, _GROUP_LEVEL = 1, 2, 3
EPOCHS_HELD, WINDOWS_HELD = 2, 4  # where batches are made, and where rows are read ahead


@dataclass(frozen=True)
class Slice:
    """What one worker reads at one step."""

    step: int
    epoch: int
    positions_B: np.ndarray  # int64, in the epoch's global sequence, consecutive
    places_B2: np.ndarray  # int64: chunk (index into the chunks given) and row in it


@dataclass(frozen=True)
class _Epoch:
    """The chunks of an epoch in order, the window of each, and where windows start (and the last ends)."""

    chunk_S: np.ndarray
    window_S: np.ndarray
    starts: np.ndarray


class Order:
    """The sequence of rows of every epoch. `rows_per_chunk` describes the chunks in the lake's order."""

    def __init__(
        self,
        rows_per_chunk: Sequence[int] | np.ndarray,
        *,
        seed: int,
        global_batch: int,
        window_rows: int = 4096,
        groups: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        """`groups` numbers the group of each chunk, to be read alike often; without it every row is read once."""
        self._rows_C = np.asarray(rows_per_chunk, dtype=np.int64)
        self._groups_C = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        self.rows = int(self._rows_C.sum())  # of an epoch, too
        self.seed = seed
        self.global_batch = global_batch
        self._window_rows = window_rows
        if global_batch > self.rows:
            raise UsageError(
                f"A global batch of {global_batch} is larger than the {self.rows} pairs to train on; "
                "set a smaller global_batch or name more slides."
            )
        # What is drawn is kept, never changed: threads that are at different epochs may share an order.
        self._epoch = lru_cache(EPOCHS_HELD)(self._draw_epoch)
        self._opened = lru_cache(WINDOWS_HELD)(self._draw_window)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch; the rows left over differ from epoch to epoch."""
        return self.rows // self.global_batch

    def slice(self, step: int, rank: int = 0, ranks: int = 1) -> Slice:
        """What rank reads at a step (counted over all epochs)."""
        if self.global_batch % ranks:
            raise UsageError(f"A global batch of {self.global_batch} cannot be divided among {ranks} workers.")
        epoch, batch = divmod(step, self.steps_per_epoch)
        local = self.global_batch // ranks
        first = batch * self.global_batch + rank * local
        positions_B = np.arange(first, first + local)
        return Slice(step, epoch, positions_B, self._places(epoch, positions_B))

    def window(self, epoch: int, position: int) -> int:
        """In which window of the epoch a position lies."""
        return int(np.searchsorted(self._epoch(epoch).starts, position, side="right")) - 1

    def window_end(self, epoch: int, position: int) -> int:
        """The first position after the window in which a position lies."""
        return int(self._epoch(epoch).starts[self.window(epoch, position) + 1])

    def _places(self, epoch: int, positions_B: np.ndarray) -> np.ndarray:
        starts = self._epoch(epoch).starts
        window_B = np.searchsorted(starts, positions_B, side="right") - 1
        places_B2 = np.empty((len(positions_B), 2), dtype=np.int64)
        for window in np.unique(window_B):
            mine = window_B == window
            places_B2[mine] = self._opened(epoch, int(window))[positions_B[mine] - starts[window]]
        return places_B2

    def _draw_epoch(self, epoch: int) -> _Epoch:
        """Draw the chunks of an epoch and cut them into windows."""
        chunk_S = self._drawn(epoch)
        rows_S = self._rows_C[chunk_S]
        before_S = np.cumsum(rows_S) - rows_S
        # A window ends with the chunk that fills it.
        _, firsts, window_S = np.unique(before_S // self._window_rows, return_index=True, return_inverse=True)
        return _Epoch(chunk_S, window_S, np.append(before_S[firsts], rows_S.sum()))

    def _drawn(self, epoch: int) -> np.ndarray:
        """The chunks of an epoch in order, int64 (S,)."""
        if self._groups_C is None:
            return self._draw(_CHUNK_LEVEL, epoch, 0).permutation(len(self._rows_C))
        groups = int(self._groups_C.max()) + 1
        share = -(-self.rows // groups)  # rows of each; what is too much is left out at the end of the epoch
        drawn = np.concatenate([self._of_group(epoch, group, share) for group in range(groups)])
        return self._draw(_CHUNK_LEVEL, epoch, 0).permutation(drawn)

    def _of_group(self, epoch: int, group: int, share: int) -> np.ndarray:
        """Chunks of a group that hold at least `share` rows; none comes again before all others came."""
        chunks = np.flatnonzero(self._groups_C == group)
        turns = -(-share // int(self._rows_C[chunks].sum()))
        draw = self._draw(_GROUP_LEVEL, epoch, group)
        drawn = np.concatenate([draw.permutation(chunks) for _ in range(turns)])
        return drawn[: int(np.searchsorted(np.cumsum(self._rows_C[drawn]), share)) + 1]

    def _draw_window(self, epoch: int, window: int) -> np.ndarray:
        """The rows of a window in order, int64 (W, 2)."""
        drawn = self._epoch(epoch)
        chunks = drawn.chunk_S[drawn.window_S == window]
        rows = self._rows_C[chunks]
        row_W = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        places_W2 = np.stack([np.repeat(chunks, rows), row_W], axis=1)
        return places_W2[self._draw(_ROW_LEVEL, epoch, window).permutation(len(places_W2))]

    def _draw(self, level: int, epoch: int, index: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, level, epoch, index])))


class InOrder:
    """The rows as the lake has them, each once, in batches of which the last may be smaller: an order for one process
    that looks at pairs and does not train on them."""

    def __init__(
        self, rows_per_chunk: Sequence[int] | np.ndarray, *, global_batch: int, window_rows: int = 4096
    ) -> None:
        rows_C = np.asarray(rows_per_chunk, dtype=np.int64)
        self._before_C = np.cumsum(rows_C) - rows_C
        self.rows = int(rows_C.sum())
        self.seed = 0
        self.global_batch = global_batch
        self._window_rows = window_rows

    @property
    def steps_per_epoch(self) -> int:
        """Batches, the last one counted."""
        return -(-self.rows // self.global_batch)

    def slice(self, step: int, rank: int = 0, ranks: int = 1) -> Slice:
        """The rows of a batch."""
        assert ranks == 1, "pairs are read in the lake's order by one process"
        first = step * self.global_batch
        positions_B = np.arange(first, min(first + self.global_batch, self.rows))
        chunk_B = np.searchsorted(self._before_C, positions_B, side="right") - 1
        return Slice(step, 0, positions_B, np.stack([chunk_B, positions_B - self._before_C[chunk_B]], axis=1))

    def window(self, epoch: int, position: int) -> int:
        """In which window a position lies."""
        return position // self._window_rows

    def window_end(self, epoch: int, position: int) -> int:
        """The first position after its window."""
        return (position // self._window_rows + 1) * self._window_rows
