"""Where the pairs of a version's slides lie: in which fragments, and in which when a rewrite has moved them.

A slide's rows are numbered from 0 in the order in which they were written, and stay so whatever fragments hold them: a
rewrite (`compact`) keeps their order and never joins two ingests. The catalogue lists an ingest's fragments. Where one
of them is gone, the catalogue's newest version may list what took its place; where a rewrite has not been entered
there yet, the rows are found by the `ingest_id` that they carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import IntegrityError

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Listed", "Places", "where_they_are"]

Listed = list[dict[str, int]]  # {"id", "rows"} of each fragment, as in the catalogue
TRIES = 3
UNREADABLE = (OSError, pa.ArrowInvalid)  # Lance's ways to say that a file is not there, by a take and by a scan


class Places:
    """Reads rows of ingests by their numbers. Opens the newest `pairs.lance` once, and again where files are gone."""

    def __init__(self, lake: Lake, slides: pa.Table) -> None:
        """`slides` are rows of the catalogue with `ingest_id` and `fragments`."""
        self._lake = lake
        self._listed = slides["fragments"]
        self._number = {ingest_id: n for n, ingest_id in enumerate(slides["ingest_id"].to_pylist())}
        self._moved: dict[str, Listed] = {}
        self._dataset: Any = None
        # Of the open table: fragment -> how many rows come before it; and for each ingest that was asked for, where its
        # fragments end in its own rows, and what to add to their numbers.
        self._before: dict[int, int] | None = None
        self._spans: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, ingest_id: str, columns: list[str], start: int, stop: int) -> pa.Table:
        """The rows [start, stop)."""

        def read() -> pa.Table:
            found = [
                part.to_table(columns=columns, offset=low, limit=high - low)
                for part, low, high in self._within(ingest_id, start, stop)
            ]
            return pa.concat_tables(found) if found else self._nothing(columns)

        return self._again(ingest_id, read)

    def take(self, ingest_id: str, columns: list[str], rows: np.ndarray) -> pa.Table:
        """Rows by their numbers, which rise."""
        if not len(rows):
            return self._nothing(columns)

        def take() -> pa.Table:
            found, first = [], int(rows[0])
            for part, low, high in self._within(ingest_id, first, int(rows[-1]) + 1):
                mine = rows[(rows >= first) & (rows < first + high - low)]
                if len(mine):
                    found.append(part.take((mine - first + low).tolist(), columns=columns))
                first += high - low
            return pa.concat_tables(found)

        return self._again(ingest_id, take)

    def take_many(self, rows: Mapping[str, np.ndarray], columns: list[str]) -> pa.Table:
        """Rows of several ingests by their numbers, ingest after ingest, in the order given, in one request."""

        def take() -> pa.Table:
            dataset = None
            while dataset is not self._open():  # looking for one ingest may open a newer table: numbers are of one
                dataset = self._open()
                numbers = [self._in_table(ingest_id, each) for ingest_id, each in rows.items()]
            wanted, back_N = np.unique(np.concatenate(numbers), return_inverse=True)
            found = dataset.take(wanted.tolist(), columns=columns)
            in_order = len(wanted) == len(back_N) and bool((np.diff(back_N) > 0).all())
            return found if in_order else found.take(pa.array(back_N.ravel()))

        if not any(len(numbers) for numbers in rows.values()):
            return self._nothing(columns)
        try:
            return take()
        except UNREADABLE:
            for ingest_id in rows:
                self._look_again(ingest_id)
            return take()

    def _in_table(self, ingest_id: str, rows: np.ndarray) -> np.ndarray:
        """The numbers of an ingest's rows among all rows of the open table."""
        span = self._spans.get(ingest_id)
        if span is None:
            listed = [place for place, _ in self._parts(ingest_id)]
            if self._before is None:
                every = self._open().get_fragments()
                counts = np.array([part.count_rows() for part in every], dtype=np.int64)
                firsts = (np.cumsum(counts) - counts).tolist()
                self._before = {int(part.fragment_id): first for part, first in zip(every, firsts, strict=True)}
            ends_F = np.cumsum([place["rows"] for place in listed])
            first_F = np.array([self._before[place["id"]] for place in listed]) - np.concatenate([[0], ends_F[:-1]])
            span = self._spans[ingest_id] = (ends_F, first_F)
        ends_F, first_F = span
        return rows + first_F[np.searchsorted(ends_F, rows, side="right")]

    def stream(self, ingest_id: str, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """All rows, in batches; goes on where it was if files are gone meanwhile."""
        done, failed_at = 0, -1
        while True:
            try:
                for part, low, high in self._within(ingest_id, done, None):
                    for batch in part.to_batches(columns=columns, batch_size=batch_rows, offset=low, limit=high - low):
                        done += batch.num_rows
                        yield batch
                return
            except UNREADABLE:
                if failed_at == done:
                    raise
                failed_at = done
                self._look_again(ingest_id)

    def _again(self, ingest_id: str, read: Any) -> Any:
        try:
            return read()
        except UNREADABLE:  # a file that a rewrite and a vacuum took away
            self._look_again(ingest_id)
            return read()

    def _within(self, ingest_id: str, start: int, stop: int | None) -> Iterator[tuple[Any, int, int]]:
        """The fragments that hold some rows, and which of their own rows [low, high) these are."""
        first = 0
        for place, part in self._parts(ingest_id):
            low, high = max(start - first, 0), place["rows"]
            if stop is not None:
                high = min(stop - first, high)
            if low < high:
                yield part, low, high
            first += place["rows"]

    def _parts(self, ingest_id: str) -> list[tuple[dict[str, int], Any]]:
        for _ in range(TRIES):
            listed = self._moved.get(ingest_id)
            if listed is None:
                listed = self._listed[self._number[ingest_id]].as_py() or []
            parts = [(place, self._open().get_fragment(place["id"])) for place in listed]
            if all(part is not None for _, part in parts):
                return parts
            self._look_again(ingest_id)
        raise IntegrityError(f"The pairs of ingest {ingest_id} are moved again and again while they are read.")

    def _look_again(self, ingest_id: str) -> None:
        """Open the newest table, and see where the rows are now."""
        self._dataset, self._before, self._spans = self._lake.pairs.open(), None, {}
        rows = self._lake.catalog.slides(["ingest_id", "fragments"]).to_pylist()
        expected = sum(place["rows"] for place in self._listed[self._number[ingest_id]].as_py() or [])
        found = where_they_are(self._lake, self._dataset, rows, {ingest_id: expected})
        if ingest_id not in found:
            raise IntegrityError(
                f"Pairs of ingest {ingest_id} are gone though the catalogue names them; run `histolake lake check`."
            )
        self._moved[ingest_id] = found[ingest_id]

    def _open(self) -> Any:
        if self._dataset is None:
            self._dataset = self._lake.pairs.open()
        return self._dataset

    def _nothing(self, columns: Sequence[str]) -> pa.Table:
        schema = self._open().schema
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
