"""A lake at one version: its slides, its rejections and its pairs, read through the catalogue."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histolake.platform.errors import SlideNotFoundError
from histolake.platform.lake.leases import Lease
from histolake.platform.lake.places import Places
from histolake.platform.lake.where import select

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake
    from histolake.platform.storage import Location

__all__ = ["Chunk", "Snapshot"]


@dataclass(frozen=True)
class Chunk:
    """A run of rows [start, stop) of one slide, planned from the catalogue alone. How the slide was cut into fragments
    has no part in it, so that a plan is the same after they were rewritten."""

    slide_id: str
    ingest_id: str
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.stop - self.start


def _opened(root: Location, version: int) -> Snapshot:
    from histolake.platform.lake.lake import Lake

    return Lake.open(root).at(version)


class Snapshot:
    """What one version of a lake holds. Made by `Lake.at`; does not change, whatever is published later."""

    def __init__(self, lake: Lake, version: int, slides: pa.Table, notice: str | None = None) -> None:
        self.lake = lake
        self.version = version
        self.notice = notice  # one line to tell, where slides of this version were forgotten
        self._slides = slides
        self._places = Places(lake, slides)

    def __reduce__(self) -> tuple[object, ...]:
        """Sent to another process, it is opened there."""
        return _opened, (self.lake.root, self.version)

    def slides(self, *, include_refused: bool = False, where: str | None = None) -> pa.Table:
        """The slides of this version (`schemas.SLIDES`), by slide_id; with `include_refused` also those refused.

        `where` is a filter over their columns (see `lake.where`), such as `organ = 'breast'`. Raises `UsageError`.
        """
        rows = self._slides
        if not include_refused:
            rows = rows.filter(pc.equal(rows["status"], "published"))
        return select(rows, where)

    def rejections(self, where: str | None = None) -> pa.Table:
        """What was refused in the ingests of this version (`schemas.REJECTIONS`), slides and spots.

        `where` is a filter over their columns and those of their slides, such as `rule = 'min_genes' and organ =
        'breast'`. Raises `UsageError`.
        """
        rows = self.lake.catalog.rejections()
        rows = rows.filter(pc.is_in(rows["ingest_id"], self._slides["ingest_id"].combine_chunks())).sort_by("slide_id")
        if where is None:
            return rows
        return select(rows, where, (self._slides, pc.index_in(rows["ingest_id"], self._slides["ingest_id"])))

    def chunks(self, slide_ids: Sequence[str] | None = None, rows: int = 256) -> list[Chunk]:
        """The rows of some slides (all, if not named) cut into runs of at most `rows`, in the lake's order."""
        planned = []
        for slide in self._chosen(slide_ids).select(["slide_id", "ingest_id", "n_pairs"]).to_pylist():
            for start in range(0, slide["n_pairs"], rows):
                stop = min(start + rows, slide["n_pairs"])
                planned.append(Chunk(slide["slide_id"], slide["ingest_id"], start, stop))
        return planned

    def read(self, chunk: Chunk, columns: list[str], rows: Sequence[int] | np.ndarray | None = None) -> pa.Table:
        """Rows of a chunk, all of them or those asked for (counted from the chunk's start), in the order asked."""
        if rows is None:
            return self._places.read(chunk.ingest_id, columns, chunk.start, chunk.stop)
        wanted, back = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if wanted.size and (wanted[0] < 0 or wanted[-1] >= chunk.rows):
            raise IndexError(f"rows {wanted[0]} to {wanted[-1]} asked of a chunk of {chunk.rows}")
        return self._places.take(chunk.ingest_id, columns, wanted + chunk.start).take(pa.array(back.ravel()))

    def take(self, chunks: Sequence[Chunk], places_N2: np.ndarray, columns: list[str]) -> pa.Table:
        """Rows of many chunks at once, in the order asked: each place is a chunk's number and a row counted from its
        start. One request, where `read` makes one a chunk: about five times as fast for rows that lie scattered."""
        chunk_N, row_N = np.asarray(places_N2, dtype=np.int64).reshape(-1, 2).T
        rows: dict[str, list[np.ndarray]] = {}
        asked: dict[str, list[np.ndarray]] = {}  # where in the answer each of these rows goes
        for number in np.unique(chunk_N):
            chunk, mine = chunks[number], np.flatnonzero(chunk_N == number)
            if (row_N[mine] < 0).any() or (row_N[mine] >= chunk.rows).any():
                raise IndexError(f"rows {row_N[mine].min()} to {row_N[mine].max()} asked of a chunk of {chunk.rows}")
            rows.setdefault(chunk.ingest_id, []).append(chunk.start + row_N[mine])
            asked.setdefault(chunk.ingest_id, []).append(mine)
        asked_N = np.concatenate([np.zeros(0, dtype=np.int64), *(mine for each in asked.values() for mine in each)])
        numbers = {name: np.concatenate(each) for name, each in rows.items()}
        return self._places.take_many(numbers, columns, np.argsort(asked_N))

    def pairs(
        self, columns: list[str], slide_ids: Sequence[str] | None = None, batch_rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """The pairs of some slides (all, if not named), by slide_id and then as they were written; a batch is of one
        slide."""
        yield from self._places.stream(self._chosen(slide_ids)["ingest_id"].to_pylist(), columns, batch_rows)

    @contextmanager
    def reading(self, purpose: str) -> Iterator[None]:
        """Hold a lease, so that nothing of this version is expired or vacuumed while the block runs.

        Raises `VersionError` where it was expired between `Lake.at` and now: `lake.expire` moves the floor before it
        looks at the leases, and here the lease is written before the floor is looked at.
        """
        lease = Lease(lease_id=uuid.uuid4().hex, kind="read", purpose=purpose, version=self.version)
        self.lake.keeper.hold(lease)
        try:
            self.lake.resolve(self.version)
            yield
        finally:
            self.lake.keeper.release(lease.lease_id)

    def _chosen(self, slide_ids: Sequence[str] | None) -> pa.Table:
        slides = self.slides()
        if slide_ids is None:
            return slides
        unknown = sorted(set(slide_ids) - set(slides["slide_id"].to_pylist()))
        if unknown:
            raise SlideNotFoundError(
                f"Version {self.version} of {self.lake.uri} has no slide {', '.join(unknown)}; "
                "`histolake lake slides` lists what it has."
            )
        return slides.filter(pc.is_in(slides["slide_id"], pa.array(sorted(set(slide_ids)), pa.string())))
