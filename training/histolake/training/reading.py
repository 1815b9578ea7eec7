"""Pairs of a pinned lake version, batch by batch, in a global order that does not depend on how many workers share it.

The order is `order.Order`'s; rank r of n takes its slice of each global batch, so (seed, epoch, step, global batch) is
all the state there is. A worker reads only its own rows, a window at a time and chunk by chunk: few, large takes. JPEG
bytes wait undecoded; a thread decodes and augments the next batches while the model is busy with this one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from histolake.platform.errors import UsageError
from histolake.platform.splits import Selection
from histolake.training.images import Augmentation, augment, decode
from histolake.training.order import Order, Place

__all__ = ["Batch", "PairReader"]

CHUNK_ROWS = 256
PREFETCH_BATCHES = 2


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step. B pairs, pictures uint8 (B, px, px, 3)."""

    step: int
    epoch: int
    positions_B: np.ndarray  # in the epoch's global sequence
    pair_ids: list[bytes]
    image_BHWC: np.ndarray
    sentences: list[str]


class PairReader:
    """The training side of a snapshot as batches. Make one in each worker.

    `pairs` are the slides that train, or a selection of their pairs where a split cuts through slides.
    """

    def __init__(
        self,
        snapshot: Any,
        pairs: Sequence[str] | Selection,
        *,
        image_column: str,
        px: int,
        global_batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        augmentation: Augmentation | None = None,
        window_rows: int = 4096,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        self._snapshot = snapshot
        selection = pairs if isinstance(pairs, Selection) else Selection(snapshot, pairs)
        self._parts = selection.parts(rows=chunk_rows)
        self.order = Order(
            [part.rows for part in self._parts], seed=seed, global_batch=global_batch, window_rows=window_rows
        )
        self._columns = ["pair_id", image_column, "sentence"]
        self._px = px
        self._rank, self._ranks = rank, ranks
        self._augmentation = augmentation
        self._held: dict[Place, tuple[bytes, bytes, str]] = {}

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop), prefetched by a thread that ends with the iterator."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCH_BATCHES)
        done = threading.Event()

        def fill() -> None:
            try:
                for step in range(start, stop):
                    if not _put(ready, self.batch(step, last_step=stop - 1), done):
                        return
                _put(ready, None, done)
            except BaseException as error:  # handed to the one who waits for the batch
                _put(ready, error, done)

        worker = threading.Thread(target=fill, name="pair-reader", daemon=True)
        worker.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            done.set()
            worker.join()

    def batch(self, step: int, last_step: int | None = None) -> Batch:
        """The batch of one step. Rows of its window up to `last_step` are read along with it and kept."""
        epoch, positions_B, places = self.order.places(step, self._rank, self._ranks)
        if any(place not in self._held for place in places):
            self._held = self._read([*places, *self._later(step, epoch, last_step)])
        rows = [self._held[place] for place in places]
        missing = sum(row[1] is None for row in rows)
        if missing:
            raise UsageError(
                f"{missing} of {len(rows)} pairs have no {self._columns[1]}; name slides that have an image."
            )
        images = [decode(row[1], self._px) for row in rows]
        image_BHWC = (
            np.stack(images)
            if self._augmentation is None
            else augment(images, self._augmentation, seed=self.order.seed, epoch=epoch, positions=positions_B.tolist())
        )
        return Batch(step, epoch, positions_B, [row[0] for row in rows], image_BHWC, [row[2] for row in rows])

    def _later(self, step: int, epoch: int, last_step: int | None) -> list[Place]:
        """This worker's rows of the coming steps of the window that `step` ends in."""
        window = self.order.window(epoch, self._end(step))
        stop = min((epoch + 1) * self.order.steps_per_epoch, step + 1 if last_step is None else last_step + 1)
        ahead: list[Place] = []
        for later in range(step + 1, stop):
            if self.order.window(epoch, self._end(later)) != window:
                break
            ahead += self.order.places(later, self._rank, self._ranks)[2]
        return ahead

    def _end(self, step: int) -> int:
        return (step % self.order.steps_per_epoch + 1) * self.order.global_batch - 1

    def _read(self, places: Sequence[Place]) -> dict[Place, tuple[bytes, bytes, str]]:
        """Rows by place, one take a chunk; rows that are held already are not read again."""
        held = {place: self._held[place] for place in places if place in self._held}
        wanted: dict[int, list[int]] = {}
        for place in places:
            if place not in held:
                wanted.setdefault(place.chunk, []).append(place.row)
        for chunk, rows in wanted.items():
            part = self._parts[chunk]
            table = self._snapshot.read(part.chunk, self._columns, part.picked()[sorted(rows)])
            columns = [table[name].to_pylist() for name in self._columns]
            held |= {
                Place(chunk, row): values for row, values in zip(sorted(rows), zip(*columns, strict=True), strict=True)
            }
        return held


def _put(ready: queue.Queue[Any], item: Any, done: threading.Event) -> bool:
    """Hand an item over; False once nobody waits for it any more."""
    while not done.is_set():
        try:
            ready.put(item, timeout=0.2)
        except queue.Full:
            continue
        return True
    return False
