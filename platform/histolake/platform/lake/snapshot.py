"""A lake at one version: its slides, its rejections and its pairs, read through the catalogue."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histolake.platform.errors import SlideNotFoundError
from histolake.platform.lake.leases import Lease
from histolake.platform.lake.where import select

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Chunk", "Snapshot"]


@dataclass(frozen=True)
class Chunk:
    """A run of rows [start, stop) of one fragment, planned from the catalogue alone."""

    slide_id: str
    ingest_id: str
    fragment_id: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.stop - self.start


class Snapshot:
    """What one version of a lake holds. Made by `Lake.at`; does not change, whatever is published later."""

    def __init__(self, lake: Lake, version: int, slides: pa.Table, notice: str | None = None) -> None:
        self.lake = lake
        self.version = version
        self.notice = notice  # one line to tell, where slides of this version were forgotten
        self._slides = slides
        self._dataset: Any = None

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
        for slide in self._chosen(slide_ids).select(["slide_id", "ingest_id", "fragments"]).to_pylist():
            for part in slide["fragments"]:
                for start in range(0, part["rows"], rows):
                    stop = min(start + rows, part["rows"])
                    planned.append(Chunk(slide["slide_id"], slide["ingest_id"], part["id"], start, stop))
        return planned

    def read(self, chunk: Chunk, columns: list[str], rows: Sequence[int] | np.ndarray | None = None) -> pa.Table:
        """Rows of a chunk, all of them or those asked for (counted from the chunk's start), in the order asked."""
        part = self.lake.pairs.fragment(chunk.fragment_id, self._open())
        if rows is None:
            return part.to_table(columns=columns, offset=chunk.start, limit=chunk.rows)
        wanted, back = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if wanted.size and (wanted[0] < 0 or wanted[-1] >= chunk.rows):
            raise IndexError(f"rows {wanted[0]} to {wanted[-1]} asked of a chunk of {chunk.rows}")
        return part.take((wanted + chunk.start).tolist(), columns=columns).take(pa.array(back.ravel()))

    def pairs(
        self, columns: list[str], slide_ids: Sequence[str] | None = None, batch_rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """The pairs of some slides (all, if not named), by slide_id and then as they were written."""
        dataset = self._open()
        for fragments in self._chosen(slide_ids)["fragments"].to_pylist():
            for found in fragments:
                part = self.lake.pairs.fragment(found["id"], dataset)
                yield from part.to_batches(columns=columns, batch_size=batch_rows)

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
        return slides.filter(pc.is_in(slides["slide_id"], pa.array(sorted(set(slide_ids)))))

    def _open(self) -> Any:
        if self._dataset is None:
            self._dataset = self.lake.pairs.open()
        return self._dataset
