"""Compaction: fragments become fewer, and nothing else changes, whoever reads, writes or dies meanwhile."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from histolake.platform.errors import IntegrityError
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.compact import compact, scattered
from histolake.platform.lake.correct import corrections
from histolake.platform.lake.forgetting import forget
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.schemas import PAIRS

DIES = """
import sys, importlib.util
spec = importlib.util.spec_from_file_location("lake_writer", sys.argv[1])
writer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writer)
writer.kill_after(sys.argv[3])
from histolake.platform.lake.compact import compact
compact(writer.Lake.open(sys.argv[2]))
"""
MOVED = "histolake.platform.lake.pairs:PairsTable.rewrite"  # moved, not entered in the catalogue
WRITTEN = "histolake.platform.lake.pairs:PairsWriter.write"  # a file that no table names


def content(lake: Lake, version: int | None = None) -> str:
    """A hash of all pairs of a version, in order."""
    digest = hashlib.sha256()
    for batch in lake.at(version).pairs(PAIRS.names, batch_rows=7):
        for row in batch.to_pylist():
            digest.update(repr(row).encode())
    return digest.hexdigest()


def sound(lake: Lake) -> bool:
    """Whether nothing is missing; old files that wait for a vacuum are no harm."""
    return not [finding for finding in check(lake) if finding.severity == "error"]


def rows_of(lake: Lake, version: int | None = None) -> list[str]:
    return [name for batch in lake.at(version).pairs(["barcode"]) for name in batch["barcode"].to_pylist()]


def die_in_compaction(lake: Lake, step: str) -> None:
    script = Path(__file__).with_name("lake_writer.py")
    process = subprocess.run([sys.executable, "-P", "-c", DIES, script, lake.uri, step], timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def filled(lake: Lake, writer: ModuleType) -> Lake:
    """Three slides, one of them ingested twice: every ingest in two fragments, the old one too."""
    for name, digest, count in (("c/a", "one", 20), ("c/b", "one", 11), ("c/a", "two", 14), ("c/d", "one", 6)):
        writer.ingest(lake, name, digest, count)
    return lake


def test_one_fragment_an_ingest_and_every_version_as_it_was(filled: Lake) -> None:
    before = {version: (content(filled, version), rows_of(filled, version)) for version in range(1, 5)}
    plan = filled.at(3).chunks(rows=4)
    told = compact(filled)
    assert (told.ingests, told.fragments_before, told.fragments_after, told.pairs) == (4, 8, 4, 51)
    rows = filled.catalog.slides(["ingest_id", "fragments", "n_pairs"]).to_pylist()
    assert [[place["rows"] for place in row["fragments"]] for row in rows] == [[row["n_pairs"]] for row in rows]
    assert {version: (content(filled, version), rows_of(filled, version)) for version in range(1, 5)} == before
    assert filled.at(3).chunks(rows=4) == plan, "a plan made before holds"
    assert sound(filled)
    freed = vacuum(filled, clock_slack_s=-1)
    assert freed.bytes > 0 and freed.fragments == 0
    assert len(list((Path(filled.uri) / "pairs.lance" / "data").glob("*.lance"))) == 4
    assert content(filled, 2) == before[2][0]
    version = filled.version
    assert compact(filled).ingests == 0 and filled.version == version, "nothing is left to do"


def test_a_reader_goes_on_when_its_files_are_taken_away(filled: Lake) -> None:
    snapshot = filled.at()
    expected = rows_of(filled)
    chunks = snapshot.chunks(rows=5)
    streamed = snapshot.pairs(["barcode"], batch_rows=3)
    got = next(streamed)["barcode"].to_pylist()
    first = snapshot.read(chunks[0], ["barcode"])["barcode"].to_pylist()
    compact(filled)
    vacuum(filled, clock_slack_s=-1)
    assert first + [n for chunk in chunks[1:] for n in snapshot.read(chunk, ["barcode"])["barcode"].to_pylist()] == (
        expected
    )
    assert snapshot.read(chunks[1], ["barcode"], rows=[2, 0])["barcode"].to_pylist() == [expected[7], expected[5]]
    assert snapshot.take(chunks, np.array([(1, 2), (0, 1)]), ["barcode"])["barcode"].to_pylist() == [
        expected[7],
        expected[1],
    ]
    assert got + [name for batch in streamed for name in batch["barcode"].to_pylist()] == expected


@pytest.mark.parametrize("read", [0, 2, 5, 8])
def test_a_scan_goes_on_at_the_row_where_files_went(filled: Lake, read: int) -> None:
    expected = rows_of(filled)
    snapshot = filled.at()
    streamed = snapshot.pairs(["barcode", "slide_id"], batch_rows=3)
    got = [next(streamed) for _ in range(read)]
    compact(filled)
    vacuum(filled, clock_slack_s=-1)
    got += streamed
    assert [name for batch in got for name in batch["barcode"].to_pylist()] == expected
    assert all(len(set(batch["slide_id"].to_pylist())) == 1 for batch in got)


def test_rows_of_many_chunks_are_found_where_they_went(filled: Lake) -> None:
    snapshot, expected = filled.at(), rows_of(filled)
    chunks = snapshot.chunks(rows=5)
    places = np.array([(number, row) for number, chunk in enumerate(chunks) for row in range(chunk.rows)])
    assert snapshot.take(chunks, places, ["barcode"])["barcode"].to_pylist() == expected
    compact(filled)
    vacuum(filled, clock_slack_s=-1)
    assert snapshot.take(chunks, places[::-1], ["barcode"])["barcode"].to_pylist() == expected[::-1]
    forget(filled, slide_id="c/b")
    with pytest.raises(IntegrityError, match="are gone"):
        snapshot.take(chunks, places, ["barcode"])


def test_rows_of_many_chunks_in_one_request(filled: Lake) -> None:
    snapshot, expected = filled.at(), rows_of(filled)
    chunks = snapshot.chunks(rows=4)
    first = np.cumsum([0, *(chunk.rows for chunk in chunks)])
    places = [(c, r) for c, chunk in enumerate(chunks) for r in range(chunk.rows)]
    drawn = np.random.default_rng(0).integers(0, len(places), 40)  # some of them twice

    def taken() -> list[str]:
        return snapshot.take(chunks, np.array(places)[drawn], ["barcode"])["barcode"].to_pylist()

    wanted = [expected[first[places[i][0]] + places[i][1]] for i in drawn]
    assert taken() == wanted
    assert snapshot.take(chunks, np.array(places), ["barcode"])["barcode"].to_pylist() == expected
    compact(filled)
    vacuum(filled, clock_slack_s=-1)
    assert taken() == wanted, "files were taken away meanwhile"
    assert snapshot.take(chunks, np.zeros((0, 2), dtype=int), ["barcode"]).num_rows == 0
    for wrong in ([0, chunks[0].rows], [0, -1]):
        with pytest.raises(IndexError):
            snapshot.take(chunks, np.array([[1, 0], wrong]), ["barcode"])


def test_a_compaction_that_dies_with_the_pairs_moved(filled: Lake) -> None:
    expected = {version: content(filled, version) for version in range(1, 5)}
    old = filled.at()  # planned before, opened after
    die_in_compaction(filled, MOVED)
    assert {version: content(filled, version) for version in range(1, 5)} == expected
    vacuum(filled, clock_slack_s=-1)
    assert {version: content(filled, version) for version in range(1, 5)} == expected, "vacuum leaves them alone"
    assert len(old.read(old.chunks(["c/a"], rows=99)[0], ["barcode"])) == 14
    assert sound(filled) and len([f for f in check(filled) if "lake compact" in f.fix]) == 4
    # A correction copies what the catalogue lists, which is gone.
    filled.correct(corrections(filled.at(), {"c/b": {"patient": "P7"}}))
    told = compact(filled)
    assert told.entered == 4 and told.ingests == 0
    assert {version: content(filled, version) for version in range(1, 5)} == expected
    assert sound(filled)


def test_a_compaction_that_dies_with_files_written(filled: Lake) -> None:
    expected, files = content(filled), len(list((Path(filled.uri) / "pairs.lance" / "data").iterdir()))
    die_in_compaction(filled, WRITTEN)
    assert content(filled) == expected and sound(filled)
    vacuum(filled, clock_slack_s=-1)
    assert len(list((Path(filled.uri) / "pairs.lance" / "data").iterdir())) == files
    assert not list((Path(filled.uri) / "leases").iterdir())
    assert compact(filled).ingests == 4 and content(filled) == expected


def test_forgetting_what_was_moved_and_not_entered(filled: Lake) -> None:
    die_in_compaction(filled, MOVED)
    forget(filled, slide_id="c/a")
    assert {name.rsplit("-", 2)[0] for name in rows_of(filled)} == {"c/b", "c/d"}
    everything = b"".join(path.read_bytes() for path in Path(filled.uri, "pairs.lance", "data").iterdir())
    assert b"c/a-spot" not in everything and b"c/b-spot" in everything
    assert compact(filled).entered == 2
    assert sound(filled)


def test_two_compactions_at_once(filled: Lake) -> None:
    expected = content(filled)
    lakes = [Lake.open(filled.uri) for _ in range(3)]
    failures: list[BaseException] = []

    def run(lake: Lake) -> None:
        try:
            compact(lake)
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=run, args=(lake,)) for lake in lakes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    compact(filled)
    assert content(filled) == expected and sound(filled)
    assert len(filled.pairs.fragment_ids()) == 4


def test_beside_an_ingest(filled: Lake, run_writer: Callable[..., subprocess.Popen[str]], writer: ModuleType) -> None:
    staged = filled.begin("c/e", source_digest="1", settings_digest="plain", source="x")
    staged.refuse({"n_spots": 0}, writer.pa.Table.from_pylist([{"rule": "min_spots"}]))
    writers = [run_writer(filled.uri, f"c/{n}", "one", 20 + n) for n in range(2)]
    while any(process.poll() is None for process in writers):
        compact(filled)
    for process in writers:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    filled.publish([staged])
    compact(filled)
    counts = {row["slide_id"]: row["n_pairs"] for row in filled.at().slides().to_pylist()}
    assert counts == {"c/a": 14, "c/b": 11, "c/d": 6, "c/0": 20, "c/1": 21}
    assert len(rows_of(filled)) == sum(counts.values()) and sound(filled)
    assert len(filled.pairs.fragment_ids()) == 6


def test_it_is_due_where_fragments_are_many_for_the_ingests(filled: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scattered(filled) is None, "a handful is no matter"
    monkeypatch.setattr("histolake.platform.lake.compact.MANY", -1)
    assert scattered(filled) == 8
    compact(filled)
    assert scattered(filled) is None


def test_the_command(filled: Lake) -> None:
    from histolake.platform.cli import app

    done = CliRunner().invoke(app, ["lake", "compact", "--lake", filled.uri, "--json"])
    assert done.exit_code == 0, done.output
    assert '"fragments_after": 4' in done.stdout and "compacting" not in done.stdout


def test_on_s3(bucket: str, writer: ModuleType) -> None:
    remote = Lake.open(f"{bucket}/lake", create=True)
    writer.ingest(remote, "c/a", "one", 20)
    writer.ingest(remote, "c/b", "one", 8)
    expected, old = content(remote), remote.at()
    streamed = old.pairs(["barcode"], batch_rows=3)
    first = next(streamed)
    assert compact(remote).fragments_after == 2
    vacuum(remote, clock_slack_s=-2)
    assert content(remote) == expected and sound(remote)
    assert first.num_rows + sum(batch.num_rows for batch in streamed) == 28
