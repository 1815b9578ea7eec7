"""Compactions of the catalogue's tables beside other writers: no row twice, none lost, none back again."""

from __future__ import annotations

import threading
from collections import Counter
from types import ModuleType

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from histolake.platform.errors import ConflictError
from histolake.platform.lake import Lake
from histolake.platform.lake.again import FAILURES
from histolake.platform.lake.audit import check
from histolake.platform.lake.catalog import COMPACTING

ONCE = CommitProperties(max_commit_retries=0)


def rejected(lake: Lake) -> Counter[str]:
    """How many rejections each ingest has."""
    return Counter(lake.catalog.rejections()["ingest_id"].to_pylist())


def test_two_that_read_the_same_version(lake: Lake, writer: ModuleType) -> None:
    for number in range(4):
        writer.ingest(lake, f"c/{number}", "one", 6)
    before = lake.catalog.slides()["ingest_id"].to_pylist()
    for name in ("slides", "rejections"):
        first, second = lake.catalog.table(name), lake.catalog.table(name)
        lake.catalog._compact(name, first)
        with pytest.raises(CommitFailedError):
            lake.catalog._compact(name, second)
    assert sorted(lake.catalog.slides()["ingest_id"].to_pylist()) == sorted(before)
    assert set(rejected(lake).values()) == {2} and check(lake) == []


def test_one_that_began_before_another(lake: Lake, writer: ModuleType) -> None:
    """The earlier has set its mark and read the table; the later goes all the way; then the earlier writes."""
    for number in range(4):
        writer.ingest(lake, f"c/{number}", "one", 6)
    marked = lake.catalog.table("slides")
    marked.alter.set_table_properties({COMPACTING: "x"}, raise_if_not_exists=False, commit_properties=ONCE)
    early = lake.catalog.table("slides")
    lake.catalog._compact("slides", lake.catalog.table("slides"))
    with pytest.raises(CommitFailedError, match="Metadata changed"):
        early.optimize.compact(commit_properties=ONCE)
    assert lake.catalog.slides().num_rows == 4


def test_two_that_set_their_marks_before_either_read(
    lake: Lake, writer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill loop found this one: both read after both marks, so the library saw no change of properties between."""
    for number in range(4):
        writer.ingest(lake, f"c/{number}", "one", 6)
    read = lake.catalog.table

    def mark_of_another(name: str) -> DeltaTable:
        monkeypatch.setattr(lake.catalog, "table", read)
        table = read(name)
        table.alter.set_table_properties({COMPACTING: "another"}, raise_if_not_exists=False, commit_properties=ONCE)
        return read(name)

    before = read("rejections")
    monkeypatch.setattr(lake.catalog, "table", mark_of_another)
    lake.catalog._compact("rejections", before)
    other = read("rejections")
    assert len(other.file_uris()) == 4, "whose mark is not the newest does not compact"
    other.optimize.compact(commit_properties=ONCE)
    assert set(rejected(lake).values()) == {2}


def test_what_the_library_does_without_a_mark(lake: Lake, writer: ModuleType) -> None:
    """Should this fail one day, delta-rs keeps compactions apart by itself, and `Catalog._compact` need not."""
    for number in range(4):
        writer.ingest(lake, f"c/{number}", "one", 6)
    early, late = lake.catalog.table("rejections"), lake.catalog.table("rejections")
    late.optimize.compact(commit_properties=ONCE)
    early.optimize.compact(commit_properties=ONCE)
    assert set(rejected(lake).values()) == {4}, "every row is there twice"


@pytest.mark.parametrize("what", ["append", "delete", "merge"])
def test_other_commits_are_refused_on_top_of_a_compaction(lake: Lake, writer: ModuleType, what: str) -> None:
    """A row says in which version it was published, so none may be put on top of a version that was not read."""
    for number in range(4):
        writer.ingest(lake, f"c/{number}", "one", 6)
    stale = lake.catalog.table("slides")
    rows = stale.to_pyarrow_table()
    lake.catalog._compact("slides", lake.catalog.table("slides"))
    with pytest.raises(FAILURES):
        commit(stale, what, rows)
    assert lake.catalog.slides().num_rows == 4


def commit(table: DeltaTable, what: str, rows: pa.Table) -> None:
    if what == "append":
        write_deltalake(table, rows.slice(0, 1), mode="append", commit_properties=ONCE)
    elif what == "delete":
        table.delete("published_in = 1", commit_properties=ONCE)
    else:
        merge = table.merge(rows, "o.ingest_id = n.ingest_id", "n", "o", commit_properties=ONCE)
        merge.when_matched_update({"retired_in": "n.published_in"}).execute()


def test_writers_that_compact_all_the_time(lake: Lake, writer: ModuleType) -> None:
    """Six writers of one lake, two of them of the same slides, while four others compact without a pause."""
    over, failed = threading.Event(), []

    def compact() -> None:
        other = Lake.open(lake.uri)
        while not over.is_set():
            for name in ("slides", "rejections"):
                try:
                    other.catalog._compact(name, other.catalog.table(name))
                except FAILURES:  # another was at it
                    continue

    def write(number: int) -> None:
        other = Lake.open(lake.uri)
        for turn in range(4):
            try:
                writer.ingest(other, f"c/{number % 5}-{turn % 2}", f"{number}-{turn}", 4)
            except ConflictError as error:  # others won every commit
                failed.append(error)

    compactors = [threading.Thread(target=compact) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in (*compactors, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    for thread in compactors:
        thread.join()
    rows = lake.catalog.slides(["slide_id", "ingest_id", "published_in", "retired_in"]).to_pylist()
    assert len(rows) + len(failed) == 24 and max(Counter(row["ingest_id"] for row in rows).values()) == 1
    live = Counter(row["slide_id"] for row in rows if row["retired_in"] is None)
    assert len(live) == 10 and set(live.values()) == {1}, "one live row a slide"
    assert all(rejected(lake)[row["ingest_id"]] == 2 for row in rows)
    assert not [finding for finding in check(lake) if finding.severity == "error"]
