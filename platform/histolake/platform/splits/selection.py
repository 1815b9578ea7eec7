"""The pairs of one side of a split, in one version of a lake: whole slides, or the rows of slides cut into blocks.

What a split by slides takes is known from the catalogue alone. For slides that are cut into blocks the places of all
spots are read once (8 bytes a pair), and one bit a pair is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from histolake.platform.splits.placing import SIDES
from histolake.platform.splits.split import BLOCKS, Split, read_slides

if TYPE_CHECKING:
    from histolake.platform.lake.snapshot import Chunk, Snapshot

__all__ = ["Part", "Selection", "codes_of"]

WHOLE = 1 << 40  # rows of a chunk that takes in any fragment


@dataclass(frozen=True)
class Part:
    """The rows of a chunk that are meant."""

    chunk: Chunk
    rows: int  # how many
    bits: bytes | None = None  # one a row of the chunk, set for those meant; None: all are

    def picked(self) -> np.ndarray:
        """The rows that are meant, counted from the chunk's start, int64 (rows,), rising."""
        if self.bits is None:
            return np.arange(self.chunk.rows)
        return np.flatnonzero(np.unpackbits(np.frombuffer(self.bits, dtype=np.uint8), count=self.chunk.rows))


class Selection:
    """Some pairs of a snapshot, to be planned and read as `Snapshot.chunks` and `Snapshot.pairs` are."""

    def __init__(
        self, snapshot: Snapshot, slide_ids: Sequence[str], kept: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """All pairs of these slides, but of the ingests in `kept` only the rows whose bool is true."""
        self.snapshot = snapshot
        self._bits = {ingest_id: np.packbits(rows).tobytes() for ingest_id, rows in (kept or {}).items()}
        self.slide_ids = tuple(sorted(slide_ids))

    @classmethod
    def of(cls, snapshot: Snapshot, split: Split | None, sides: Mapping[str, str], side: str) -> Selection:
        """The pairs on a side, where `sides` says where each slide is (see `Split.assign`). A slide in blocks of which
        no pair is on that side is not among its slides. Without a split, slides are taken whole."""
        whole = [slide_id for slide_id, its in sides.items() if its == side]
        cut = [slide_id for slide_id, its in sides.items() if its == BLOCKS]
        if split is None or not cut:
            return cls(snapshot, whole)
        kept = _kept(snapshot, split, cut, side)
        there = {chunk.slide_id for chunk in snapshot.chunks(cut, rows=WHOLE) if kept[chunk.ingest_id].any()}
        return cls(snapshot, [*whole, *there], kept)

    @property
    def n_pairs(self) -> int:
        """How many pairs are meant."""
        return sum(part.rows for part in self.parts(rows=WHOLE))

    def parts(self, slide_ids: Sequence[str] | None = None, rows: int = 256) -> list[Part]:
        """The pairs of some of the slides (all, if not named) cut into runs of at most `rows` of the lake's rows, in
        the lake's order; runs of which nothing is meant are left out."""
        found = []
        for chunk in self.snapshot.chunks(self._chosen(slide_ids), rows=rows):
            bits = self._bits.get(chunk.ingest_id)
            if bits is None:
                found.append(Part(chunk, chunk.rows))
                continue
            first, last = chunk.start // 8, -(-chunk.stop // 8)
            held = np.unpackbits(np.frombuffer(bits[first:last], dtype=np.uint8))
            mine = held[chunk.start - 8 * first :][: chunk.rows]
            if count := int(mine.sum()):
                found.append(Part(chunk, count, np.packbits(mine).tobytes()))
        return found

    def pairs(
        self, columns: list[str], slide_ids: Sequence[str] | None = None, batch_rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """The pairs of some of the slides (all, if not named), by slide_id and then as they were written."""
        chosen = self._chosen(slide_ids)
        if not self._bits:
            yield from self.snapshot.pairs(columns, slide_ids=chosen, batch_rows=batch_rows)
            return
        for part in self.parts(chosen, rows=batch_rows):
            rows = None if part.bits is None else part.picked()
            yield from self.snapshot.read(part.chunk, columns, rows).combine_chunks().to_batches()

    def _chosen(self, slide_ids: Sequence[str] | None) -> list[str]:
        return list(self.slide_ids) if slide_ids is None else sorted(set(slide_ids))


def _kept(snapshot: Snapshot, split: Split, slide_ids: Sequence[str], side: str) -> dict[str, np.ndarray]:
    """ingest_id -> a bool for each of its rows: whether the pair is on a side."""
    code = SIDES.index(side)
    return {chunk.ingest_id: codes_N == code for chunk, codes_N in codes_of(snapshot, split, slide_ids)}


def codes_of(snapshot: Snapshot, split: Split, slide_ids: Sequence[str]) -> Iterator[tuple[Chunk, np.ndarray]]:
    """Each of the slides that are cut into blocks, and the codes of its pairs' sides (see `Split.rows`)."""
    rows = {row["slide_id"]: row for row in read_slides(snapshot.slides())}
    for chunk in snapshot.chunks(slide_ids, rows=WHOLE):
        places = snapshot.read(chunk, ["x_um", "y_um"])
        yield chunk, split.rows(rows[chunk.slide_id], *(places[name].to_numpy() for name in ("x_um", "y_um")))
