"""Where the pairs of a version's slides lie: in which fragments, and in which when a rewrite has moved them.

A slide's rows are numbered from 0 in the order in which they were written, and stay so whatever fragments hold them: a
rewrite (`compact`) keeps their order and never joins two ingests. The catalogue lists an ingest's fragments. Where one
of them is gone, the catalogue's newest version may list what took its place; where a rewrite has not been entered
there yet, the rows are found by the `ingest_id` that they carry.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import IntegrityError

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Listed", "Places", "where_they_are"]

Listed = list[dict[str, int]]  # {"id", "rows"} of each fragment, as in the catalogue
SCANNED_TOGETHER = 32  # ingests
AHEAD = {"batch_readahead": 4, "fragment_readahead": 2, "io_buffer_size": 64 << 20}  # what a scan may hold in memory
UNREADABLE = (OSError, pa.ArrowInvalid)  # Lance's ways to say that a file is not there, by a take and by a scan


class _MovedError(IntegrityError):
    """A fragment that is listed is not in the table."""

    def __init__(self) -> None:
        super().__init__("Pairs were moved again while they were looked for; read them once more.")


class _View:
    """The table as it was opened once, and what was worked out about it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._before: dict[int, int] | None = None  # fragment -> how many rows of the table come before it
        self._spans: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def within(self, listed: Listed, start: int, stop: int | None) -> Iterator[tuple[Any, int, int]]:
        """The fragments that hold the rows [start, stop) of an ingest, and which of their own rows [low, high) these
        are."""
        first = 0
        for place in listed:
            low, high = max(start - first, 0), place["rows"]
            if stop is not None:
                high = min(stop - first, high)
            if low < high:
                part = self.dataset.get_fragment(place["id"])
                if part is None:
                    raise _MovedError
                yield part, low, high
            first += place["rows"]

    def scan(self, listed: Listed, columns: list[str], batch_rows: int, start: int) -> Iterator[pa.RecordBatch]:
        """The rows of some fragments from a row on, in order; no batch holds rows of two. The next fragment is fetched
        while one is read, else a store's answer would be waited for at each."""
        within = list(self.within(listed, start, None))
        if within:
            parts, low = [part for part, _, _ in within], within[0][1]
            scanner = self.dataset.scanner(
                columns=columns, fragments=parts, offset=low, batch_size=batch_rows, scan_in_order=True, **AHEAD
            )
            yield from scanner.to_batches()

    def in_table(self, ingest_id: str, listed: Listed, rows: np.ndarray) -> np.ndarray:
        """The numbers of an ingest's rows among all rows of the table."""
        span = self._spans.get(ingest_id)
        if span is None:
            before = self._rows_before()
            if any(place["id"] not in before for place in listed):
                raise _MovedError
            ends_F = np.cumsum([place["rows"] for place in listed])
            first_F = np.array([before[place["id"]] for place in listed]) - np.concatenate([[0], ends_F[:-1]])
            span = self._spans[ingest_id] = (ends_F, first_F)
        ends_F, first_F = span
        return rows + first_F[np.searchsorted(ends_F, rows, side="right")]

    def _rows_before(self) -> dict[int, int]:
        if self._before is None:
            parts = self.dataset.get_fragments()
            counts = np.array([part.count_rows() for part in parts], dtype=np.int64)
            firsts = (np.cumsum(counts) - counts).tolist()
            self._before = {int(part.fragment_id): first for part, first in zip(parts, firsts, strict=True)}
        return self._before


class Places:
    """Reads rows of ingests by their numbers. Opens the newest `pairs.lance` once, and again where files are gone.
    Threads may share one."""

    def __init__(self, lake: Lake, slides: pa.Table) -> None:
        """`slides` are rows of the catalogue with `ingest_id` and `fragments`."""
        self._lake = lake
        self._slides = slides["fragments"]
        self._number = {ingest_id: n for n, ingest_id in enumerate(slides["ingest_id"].to_pylist())}
        self._moved: dict[str, Listed] = {}
        self._view: _View | None = None
        self._lock = threading.Lock()

    def read(self, ingest_id: str, columns: list[str], start: int, stop: int) -> pa.Table:
        """The rows [start, stop)."""

        def read(view: _View) -> pa.Table:
            within = view.within(self._listed(ingest_id), start, stop)
            found = [part.to_table(columns=columns, offset=low, limit=high - low) for part, low, high in within]
            return pa.concat_tables(found) if found else _nothing(view, columns)

        return self._again([ingest_id], read)

    def take(self, ingest_id: str, columns: list[str], rows: np.ndarray) -> pa.Table:
        """Rows by their numbers, which rise."""

        def take(view: _View) -> pa.Table:
            if not len(rows):
                return _nothing(view, columns)
            found, first = [], int(rows[0])
            for part, low, high in view.within(self._listed(ingest_id), first, int(rows[-1]) + 1):
                mine = rows[(rows >= first) & (rows < first + high - low)]
                if len(mine):
                    found.append(part.take((mine - first + low).tolist(), columns=columns))
                first += high - low
            return pa.concat_tables(found)

        return self._again([ingest_id], take)

    def take_many(self, rows: Mapping[str, np.ndarray], columns: list[str], order_N: np.ndarray) -> pa.Table:
        """Rows of several ingests by their numbers, in one request. `order_N` says which of them, counted ingest after
        ingest, comes where: they are put in order once, since pictures are much to copy."""

        def take(view: _View) -> pa.Table:
            if not any(len(numbers) for numbers in rows.values()):
                return _nothing(view, columns)
            each = [view.in_table(name, self._listed(name), numbers) for name, numbers in rows.items()]
            wanted, back_N = np.unique(np.concatenate(each), return_inverse=True)
            back_N = back_N.ravel()[order_N]
            found = view.dataset.take(wanted.tolist(), columns=columns)
            in_order = len(wanted) == len(back_N) and bool((np.diff(back_N) > 0).all())
            return found if in_order else found.take(pa.array(back_N))

        return self._again(list(rows), take)

    def stream(self, ingest_ids: Sequence[str], columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """All rows of some ingests, one ingest after the other, in batches of one ingest each."""
        for first in range(0, len(ingest_ids), SCANNED_TOGETHER):
            yield from self._stream(ingest_ids[first : first + SCANNED_TOGETHER], columns, batch_rows)

    def _stream(self, ingest_ids: Sequence[str], columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Goes on where it was if files are gone meanwhile."""
        done, failed_at = 0, -1
        while True:
            view = self._newest()
            listed = [place for ingest_id in ingest_ids for place in self._listed(ingest_id)]
            try:
                for batch in view.scan(listed, columns, batch_rows, done):
                    done += batch.num_rows
                    yield batch
                return
            except (_MovedError, *UNREADABLE):
                if failed_at == done:
                    raise
                failed_at = done
                self._look_again(ingest_ids, view)

    def _again(self, ingest_ids: list[str], read: Callable[[_View], pa.Table]) -> pa.Table:
        """What `read` gives, read anew where a rewrite, and perhaps a vacuum, have taken fragments away."""
        view = self._newest()
        try:
            return read(view)
        except (_MovedError, *UNREADABLE):
            self._look_again(ingest_ids, view)
            return read(self._newest())

    def _listed(self, ingest_id: str) -> Listed:
        moved = self._moved.get(ingest_id)
        return moved if moved is not None else self._slides[self._number[ingest_id]].as_py() or []

    def _newest(self) -> _View:
        with self._lock:
            if self._view is None:
                self._view = _View(self._lake.pairs.open())
            return self._view

    def _look_again(self, ingest_ids: Sequence[str], failed: _View) -> None:
        """Open the newest table, and see where rows are now."""
        with self._lock:
            if self._view is failed:  # no other thread has looked since
                self._view = _View(self._lake.pairs.open())
            assert self._view is not None
            rows = self._lake.catalog.slides(["ingest_id", "fragments"]).to_pylist()
            wanted = {
                name: sum(place["rows"] for place in self._slides[self._number[name]].as_py() or [])
                for name in ingest_ids
            }
            found = where_they_are(self._lake, self._view.dataset, rows, wanted)
            gone = sorted(set(ingest_ids) - set(found))
            if gone:
                raise IntegrityError(
                    f"Pairs of ingest {', '.join(gone)} are gone though the catalogue of this version names them; run "
                    "`histolake lake check`."
                )
            self._moved |= found


def _nothing(view: _View, columns: Sequence[str]) -> pa.Table:
    schema = view.dataset.schema
    return pa.schema([schema.field(name) for name in columns]).empty_table()


def where_they_are(
    lake: Lake, dataset: Any, rows: Sequence[dict[str, Any]], wanted: dict[str, int]
) -> dict[str, Listed]:
    """The fragments of some ingests (ingest_id -> how many rows), of those that can be told.

    Any row of the catalogue (`rows`, of all ingests) whose fragments are all there tells; else fragments that no row
    names and that carry the ingest's id.
    """
    present = set(dataset.fragment_ids())
    named = {place["id"] for row in rows for place in row["fragments"] or []}
    found: dict[str, Listed] = {}
    for row in rows:
        listed = row["fragments"] or []
        if row["ingest_id"] in wanted and all(place["id"] in present for place in listed):
            found[row["ingest_id"]] = listed
    lost = set(wanted) - set(found)
    if not lost:
        return found
    for owner, ids in lake.pairs.owners(sorted(present - named)).items():
        if owner in lost:
            listed = [{"id": i, "rows": int(dataset.get_fragment(i).count_rows())} for i in sorted(ids)]
            if sum(place["rows"] for place in listed) == wanted[owner]:
                found[owner] = listed
    return found
