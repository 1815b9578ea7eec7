"""Compaction: the pairs of an ingest that lie in several fragments come to lie in one.

Every fragment of the lake stands in the table's manifest, which every commit writes and every reader opens, so a
fragment less makes each of them cheaper. Rows keep their order, and no fragment ever holds two ingests.

1. A lease, so that vacuum leaves the new files alone.
2. The new files, of some ingests at a time. No table names them yet.
3. One commit of Lance puts them in the place of the old ones.
4. One commit of the catalogue enters them, in the rows of every version that list the old ones.

Between 3 and 4 the catalogue names fragments that are gone: readers then find the rows by their `ingest_id` (`places`),
vacuum leaves them alone, and the next compaction enters them, should this one die. A lost race leaves the old ones as
they were. It can run beside ingests, readers and other compactions; `vacuum` gives the room back.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from histolake.platform.errors import IntegrityError
from histolake.platform.lake.leases import Lease
from histolake.platform.lake.pairs import Fragment, PairsWriter
from histolake.platform.lake.places import Listed, where_they_are
from histolake.platform.schemas import SLIDES

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Compacted", "compact", "scattered"]

MANY = 1_000  # fragments, below which their number costs next to nothing
TOGETHER = 64  # ingests that one commit moves
BATCH_ROWS = 256  # rows in memory

Tell = Callable[[int, int], None]  # ingests done, of how many


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What a compaction did."""

    ingests: int  # whose pairs lie in one fragment now
    fragments_before: int  # of the lake
    fragments_after: int
    pairs: int  # that were moved
    entered: int  # ingests that an earlier compaction had moved and not entered in the catalogue


def scattered(lake: Lake) -> int | None:
    """How many fragments the lake has, where they are so many for its ingests that compaction is due; else None."""
    fragments = len(lake.pairs.fragment_ids())
    return fragments if fragments > MANY + 2 * lake.catalog.row_count("slides") else None


def compact(lake: Lake, tell: Tell = lambda done, total: None) -> Compacted:
    """Move the pairs of every ingest in the catalogue to one fragment each, where they are in several."""
    before = len(lake.pairs.fragment_ids())
    lease = Lease(lease_id=uuid.uuid4().hex, kind="rewrite", purpose="compact")
    lake.keeper.hold(lease)
    try:
        entered = _enter_what_was_moved(lake)
        in_parts = _in_parts(_rows(lake))
        done = pairs = 0
        for some in _batches(sorted(in_parts), TOGETHER):
            moved = _move(lake, {ingest_id: in_parts[ingest_id] for ingest_id in some}, lease)
            done += len(moved)
            pairs += sum(place["rows"] for listed in moved.values() for place in listed)
            tell(done, len(in_parts))
    finally:
        lake.keeper.release(lease.lease_id)
    after = len(lake.pairs.fragment_ids())
    return Compacted(ingests=done, fragments_before=before, fragments_after=after, pairs=pairs, entered=entered)


@dataclass(frozen=True)
class _Ingest:
    slide_id: str
    listed: Listed


def _rows(lake: Lake) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lake.catalog.slides(
        ["slide_id", "ingest_id", "published_in", "fragments"]
    ).to_pylist()
    return found


def _in_parts(rows: Sequence[dict[str, Any]]) -> dict[str, _Ingest]:
    return {
        row["ingest_id"]: _Ingest(row["slide_id"], row["fragments"]) for row in rows if len(row["fragments"] or ()) > 1
    }


def _batches(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _move(lake: Lake, ingests: dict[str, _Ingest], lease: Lease) -> dict[str, Listed]:
    """Where the pairs of those ingests lie now that could be moved."""
    dataset = lake.pairs.newest()
    present = set(dataset.fragment_ids())
    written: dict[str, Fragment] = {}
    for ingest_id, ingest in ingests.items():
        if all(place["id"] in present for place in ingest.listed):  # not moved by another compaction, nor forgotten
            written[ingest_id] = _write(lake, ingest_id, ingest, dataset)
    if not written:
        return {}
    lake.keeper.ensure(lease.lease_id)
    moves = [([place["id"] for place in ingests[name].listed], fragment) for name, fragment in written.items()]
    if not lake.pairs.rewrite(moves, dataset):
        return {}  # another writer had one of them; the files are vacuum's
    places = lake.pairs.locate(list(written.values()))
    if places is None:
        return {}  # forgotten since
    moved = {ingest_id: [place] for ingest_id, place in zip(written, places, strict=True)}
    _enter(lake, moved)
    return moved


def _write(lake: Lake, ingest_id: str, ingest: _Ingest, dataset: Any) -> Fragment:
    """One fragment with the rows of several, in their order."""

    def batches() -> Iterator[pa.RecordBatch]:
        for place in ingest.listed:
            yield from dataset.get_fragment(place["id"]).to_batches(batch_size=BATCH_ROWS)

    writer = PairsWriter(location=lake.pairs.location, ingest_id=ingest_id, slide_id=ingest.slide_id)
    fragment = writer.write(batches())
    wanted = sum(place["rows"] for place in ingest.listed)
    if fragment.rows != wanted:
        raise IntegrityError(
            f"{fragment.rows} pairs of {ingest.slide_id} came out of fragments that hold {wanted}; "
            "run `histolake lake check`."
        )
    return fragment


def _enter(lake: Lake, moved: dict[str, Listed]) -> None:
    """Enter where ingests lie in all their rows, also in those that a correction adds meanwhile."""
    columns = ("ingest_id", "published_in", "fragments")
    while True:
        stale = [
            row for row in _rows(lake) if row["ingest_id"] in moved and row["fragments"] != moved[row["ingest_id"]]
        ]
        if not stale:
            return
        rows = [{**row, "fragments": moved[row["ingest_id"]]} for row in stale]
        schema = pa.schema([SLIDES.field(name) for name in columns])
        lake.catalog.amend(pa.Table.from_pylist([{n: row[n] for n in columns} for row in rows], schema=schema))


def _enter_what_was_moved(lake: Lake) -> int:
    """Finish what a compaction left that died between its two commits; returns how many ingests."""
    rows = _rows(lake)
    dataset = lake.pairs.newest()
    present = set(dataset.fragment_ids())
    lost = {
        row["ingest_id"]: sum(place["rows"] for place in row["fragments"])
        for row in rows
        if any(place["id"] not in present for place in row["fragments"] or [])
    }
    if not lost:
        return 0
    found = where_they_are(lake, dataset, rows, lost)
    _enter(lake, found)
    return len(found)
