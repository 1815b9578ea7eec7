"""Windows in which two processes could lose or double rows, each held open by hand."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from histolake.platform.errors import IntegrityError
from histolake.platform.lake import Lake
from histolake.platform.lake.attempt import Attempt
from histolake.platform.lake.audit import check
from histolake.platform.lake.leases import SILENT_S, TTL_S, Lease, Seal, read_leases
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.storage import Location

REASON = pa.Table.from_pylist([{"rule": "min_genes", "figure": 3.0, "limit": 200.0, "reason": "few genes"}])


def staged(lake: Lake, writer: ModuleType, slide_id: str = "c/a") -> Attempt:
    """An attempt that is complete but for the catalogue."""
    attempt = lake.begin(slide_id, source_digest="1", settings_digest="s", source="x")
    attempt.stage({"n_spots": 4}, [attempt.pairs.write(writer.rows(slide_id, "1", 4))], REASON)
    return attempt


def elsewhere(lake: Lake, ingest_id: str, *, silent_s: float, ahead_s: float = 0.0) -> None:
    """Make a lease one of another machine, whose clock is ahead of the store's, and that was silent for a while."""
    place = Path(lake.uri) / "leases" / f"{ingest_id}.json"
    said = json.loads(place.read_text()) | {"machine": "elsewhere", "renewed_s": time.time() - silent_s + ahead_s}
    place.write_text(json.dumps(said))
    os.utime(place, (time.time() - silent_s,) * 2)


def rows(lake: Lake) -> int:
    return sum(batch.num_rows for batch in lake.at().pairs(["barcode", "spot_image"]))


def second(lake: Lake) -> Lake:
    """The same lake, as another process sees it."""
    return Lake.open(lake.uri)


@pytest.mark.parametrize("ahead_s", [-3600.0, 0.0, 3600.0])
def test_clocks_of_machines_do_not_matter(lake: Lake, writer: ModuleType, ahead_s: float) -> None:
    attempt = staged(lake, writer)
    elsewhere(lake, attempt.ingest_id, silent_s=TTL_S / 2, ahead_s=ahead_s)
    (lease,) = read_leases(lake.root)
    assert lease.is_live() and not lease.is_certainly_dead()
    assert vacuum(second(lake), clock_slack_s=0).fragments == 0
    assert lake.publish([attempt]) == 1 and rows(lake) == 4
    elsewhere_long = staged(lake, writer, "c/b")
    elsewhere(lake, elsewhere_long.ingest_id, silent_s=TTL_S * 2, ahead_s=ahead_s)
    (lease,) = read_leases(lake.root)
    assert not lease.is_live() and not lease.is_certainly_dead()


def test_a_lease_starts_by_the_clock_of_the_store(lake: Lake, writer: ModuleType) -> None:
    before_s = lake.root.join("leases").parent().clock_s()
    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    (lease,) = read_leases(lake.root)
    assert before_s <= lease.started_s <= Location.parse(lake.uri).clock_s()
    attempt.abandon()


def test_a_writer_that_slept_cannot_publish_what_vacuum_dropped(lake: Lake, writer: ModuleType) -> None:
    attempt = staged(lake, writer)
    elsewhere(lake, attempt.ingest_id, silent_s=TTL_S * 2)
    removed = vacuum(second(lake), clock_slack_s=0)
    assert (removed.fragments, removed.rejections) == (1, 1)
    with pytest.raises(IntegrityError, match="given up for dead"):
        lake.publish([attempt])
    assert lake.at().slides(include_refused=True).num_rows == 0 and check(lake) == []


def test_a_refusal_that_slept_cannot_publish_either(lake: Lake) -> None:
    """It has no fragments that could be missed: only the seal tells."""
    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    attempt.refuse({"n_spots": 4}, REASON)
    elsewhere(lake, attempt.ingest_id, silent_s=TTL_S * 2)
    assert vacuum(second(lake), clock_slack_s=0).rejections == 1
    with pytest.raises(IntegrityError, match="given up for dead"):
        lake.publish([attempt])
    assert lake.at().slides(include_refused=True).num_rows == 0


def test_an_attempt_that_another_adopts_is_not_dropped(lake: Lake, writer: ModuleType) -> None:
    """Vacuum has seen a dead lease; before it decides its fate, another process adopts the attempt."""
    dead = staged(second(lake), writer)
    elsewhere(lake, dead.ingest_id, silent_s=SILENT_S * 2)
    stale = list(read_leases(lake.root))
    adopter = second(lake)
    attempt = adopter.begin("c/a", source_digest="1", settings_digest="s", source="x")
    assert (attempt.state, attempt.ingest_id) == ("adopted", dead.ingest_id)
    vacuum_that_saw(lake, stale)
    assert adopter.publish([attempt]) == 1
    assert rows(lake) == 4 and lake.at().rejections().num_rows == 1 and check(lake) == []


@pytest.mark.parametrize("moment", ["before the leases", "before the catalogue", "after the catalogue"])
def test_an_attempt_that_another_publishes_while_vacuum_looks_is_not_dropped(
    lake: Lake, writer: ModuleType, moment: str
) -> None:
    dead = staged(second(lake), writer)
    elsewhere(lake, dead.ingest_id, silent_s=SILENT_S * 2)
    adopter, at_work = second(lake), second(lake)

    def publish() -> None:
        attempt = adopter.begin("c/a", source_digest="1", settings_digest="s", source="x")
        if attempt.state == "new":
            attempt.stage({"n_spots": 4}, [attempt.pairs.write(writer.rows("c/a", "1", 4))], REASON)
        adopter.publish([attempt])

    where: Any = at_work.images if moment == "before the leases" else at_work.catalog
    look = "files" if moment == "before the leases" else "slides"
    setattr(where, look, beside(getattr(where, look), publish, first=moment == "before the catalogue"))
    vacuum(at_work, clock_slack_s=0)
    assert rows(lake) == 4 and lake.at().rejections().num_rows == 1 and check(lake) == []


def beside(look: Callable[..., Any], act: Callable[[], None], *, first: bool) -> Callable[..., Any]:
    """One look of a vacuum, with what another process does right before it or right after it."""

    def looking(*args: Any, **named: Any) -> Any:
        if first:
            act()
        seen = look(*args, **named)
        if not first:
            act()
        return seen

    return looking


def vacuum_that_saw(lake: Lake, stale: list[Lease]) -> None:
    """A vacuum on another machine, whose look at the leases is a moment old."""
    for lease in stale:
        place = lease.location(lake.root)
        now = place.read_bytes() if place.exists() else None
        written = Path(place.uri).stat().st_mtime
        lease.write(lake.root)
        os.utime(place.uri, (time.time() - SILENT_S * 2,) * 2)
        try:
            vacuum(second(lake), clock_slack_s=0)
        finally:
            if now is not None:
                place.write_bytes(now)
                os.utime(place.uri, (written,) * 2)


def test_a_seal_whose_maker_is_silent_is_taken_over_behind_a_fence(lake: Lake, writer: ModuleType) -> None:
    attempt = staged(lake, writer)
    attempt.seal()
    elsewhere(lake, attempt.ingest_id, silent_s=TTL_S * 2)
    place = Path(lake.uri) / "leases" / f"{attempt.ingest_id}.seal"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"machine": "elsewhere"}))
    assert vacuum(second(lake), clock_slack_s=0).fragments == 0, "its writer may be about to publish"
    assert lake.version == 0
    elsewhere(lake, attempt.ingest_id, silent_s=SILENT_S * 2)
    os.utime(place, (time.time() - SILENT_S * 2,) * 2)
    assert vacuum(second(lake), clock_slack_s=0).fragments == 1
    assert lake.version == 1, "a commit of the writer on top of version 0 loses its race"
    seal = Seal.read(Location.parse(place))
    assert seal is not None and seal.by == "vacuum"
    with pytest.raises(IntegrityError):
        lake.publish([attempt])
    assert lake.at().slides().num_rows == 0


def test_a_fragment_whose_file_is_gone_does_not_stop_vacuum(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/b", "one", 6)
    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    fragment = attempt.pairs.write(writer.rows("c/a", "1", 4))
    for name in fragment.files:
        (Path(lake.uri) / "pairs.lance" / "data" / name).unlink()
    lake.pairs.append([fragment])
    attempt.abandon()
    assert vacuum(lake, clock_slack_s=0).fragments == 1
    assert rows(lake) == 6 and check(lake) == []


def test_fragments_that_were_committed_twice_are_dropped(lake: Lake, writer: ModuleType) -> None:
    import lance
    from lance.fragment import FragmentMetadata

    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    fragment = attempt.pairs.write(writer.rows("c/a", "1", 4))
    attempt.stage({"n_spots": 4}, [fragment], REASON)
    dataset = lake.pairs.open()
    again = lance.LanceOperation.Append([FragmentMetadata.from_json(fragment.metadata)])
    lance.LanceDataset.commit(dataset, again, read_version=dataset.version)
    lake.publish([attempt])
    assert lake.pairs.open().count_rows() == 8 and rows(lake) == 4
    assert vacuum(lake, clock_slack_s=0).fragments == 1
    assert lake.pairs.open().count_rows() == 4 and rows(lake) == 4 and check(lake) == []


def test_two_vacuums_drop_the_same(lake: Lake, writer: ModuleType) -> None:
    attempt = staged(lake, writer)
    ids = {attempt.ingest_id: sorted(lake.pairs.fragment_ids())}
    lake.pairs.drop(ids)
    second(lake).pairs.drop(ids)
    assert lake.pairs.fragment_ids() == set()


def test_a_publish_that_was_replaced_since_is_known(lake: Lake, writer: ModuleType) -> None:
    """One whose answer was lost is not repeated on top of what another writer published meanwhile."""
    first = staged(lake, writer)
    lake.publish([first])
    writer.ingest(lake, "c/a", "two", 6)
    done: set[str] = set()
    told = lake.catalog._published(lake.catalog.table("slides"), [first.ingest_id, "another"], done)
    assert told is None and done == {first.ingest_id}


def test_a_killed_process_that_nobody_waited_for_is_gone(lake: Lake) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    time.sleep(0.1)
    started = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[19]
    lease = Lease(
        lease_id="x", kind="write", purpose="t", started_s=0.0, renewed_s=0.0, pid=child, process_started=started
    )
    assert not lease.is_live() and lease.is_certainly_dead()
    os.waitpid(child, 0)


def test_a_lease_that_cannot_be_read_is_somebodys(lake: Lake, writer: ModuleType) -> None:
    attempt = staged(lake, writer)
    place = Path(lake.uri) / "leases" / f"{attempt.ingest_id}.json"
    for content in (b"", b'{"lease', b'{"lease_id": "x"}', b"[]"):
        place.write_bytes(content)
        removed = vacuum(second(lake), clock_slack_s=0)
        assert (removed.fragments, removed.rejections, removed.live_leases) == (0, 0, 1)
    assert lake.publish([attempt]) == 1 and rows(lake) == 4


def test_a_lease_that_could_not_be_renewed_is_renewed_later(
    lake: Lake, writer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from histolake.platform.lake import leases

    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    folder = Path(lake.uri) / "leases"
    folder.rename(folder.with_name("away"))
    folder.write_text("in the way")  # the store is not there for a while
    time.sleep(0.3)
    folder.unlink()
    folder.with_name("away").rename(folder)
    place = folder / f"{attempt.ingest_id}.json"
    before = place.stat().st_mtime_ns
    time.sleep(0.5)
    assert place.stat().st_mtime_ns > before


def test_a_lease_taken_right_after_another_was_given_back_is_renewed(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    from histolake.platform.lake import leases

    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    for number in range(20):
        attempt = lake.begin(f"c/{number}", source_digest="1", settings_digest="s", source="x")
        attempt.abandon()
    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    place = Path(lake.uri) / "leases" / f"{attempt.ingest_id}.json"
    before = place.stat().st_mtime_ns
    time.sleep(0.4)
    assert place.stat().st_mtime_ns > before
    attempt.abandon()


def test_a_look_alikes_digest_survives_its_adoption(lake: Lake, writer: ModuleType) -> None:
    dead = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    dead.source_digest = "1 and that of its twin"
    dead.refuse({"n_spots": 4}, REASON)
    elsewhere(lake, dead.ingest_id, silent_s=TTL_S * 2)
    other = second(lake)
    attempt = other.begin("c/a", source_digest="1", settings_digest="s", source="x")
    assert attempt.state == "adopted"
    other.publish([attempt])
    assert lake.at().slides(include_refused=True)["source_digest"].to_pylist() == ["1 and that of its twin"]


def test_a_seal_that_was_carried_out_and_not_answered_is_ours(tmp_path: Path) -> None:
    place: Any = Location.parse(tmp_path / "x.seal")
    assert place.create(b"mine") and not place.create(b"another's")
    assert place.read_bytes() == b"mine" and [path.name for path in tmp_path.iterdir()] == ["x.seal"]
