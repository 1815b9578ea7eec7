"""Tags, reverting and expiring: each is one commit, none can overtake another, and what is pinned stays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from histolake.platform.cli import app
from histolake.platform.errors import ConflictError, HistolakeError, SlideNotFoundError, UsageError, VersionError
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.correct import corrections
from histolake.platform.lake.diff import diff
from histolake.platform.lake.expire import Pin, expire, plan_expiry
from histolake.platform.lake.forgetting import forget
from histolake.platform.lake.history import history
from histolake.platform.lake.revert import plan_revert, revert
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.lake.versions import floor_of, remove_tag, set_tag, tags
from histolake.platform.tracking import TAG_LAKE_URI, TAG_LAKE_VERSION, TrackingSettings, connect, trained_on

KEEPER = Path(__file__).parent / "lake_keeper.py"


def nobody() -> list[Pin]:
    return []


def held(lake: Lake, version: int | str | None = None) -> dict[str, Any]:
    """What a version holds: slide -> (pairs, patient, refused too), read through the pairs themselves."""
    snapshot = lake.at(version)
    rows = snapshot.slides(include_refused=True).select(["slide_id", "status", "patient", "n_pairs"]).to_pylist()
    counted: dict[str, int] = {}
    for batch in snapshot.pairs(["slide_id", "spot_image"]):
        for slide_id in batch["slide_id"].to_pylist():
            counted[slide_id] = counted.get(slide_id, 0) + 1
    assert counted == {row["slide_id"]: row["n_pairs"] for row in rows if row["status"] == "published"}
    rejected = sorted(map(str, snapshot.rejections().drop_columns(["ingest_id"]).to_pylist()))
    return {"slides": sorted(map(str, rows)), "rejections": rejected}


def refuse(lake: Lake, slide_id: str, digest: str = "bad") -> int:
    attempt = lake.begin(slide_id, source_digest=digest, settings_digest="plain", source="x")
    attempt.refuse({"cohort": "c", "n_spots": 0}, pa.table({"rule": ["min_spots"], "reason": ["3 spots."]}))
    return lake.publish([attempt])


@pytest.fixture
def busy(lake: Lake, writer: ModuleType) -> Lake:
    """1 a, 2 b; then 3 a replaced, 4 b corrected, 5 a's later source refused, 6 c added."""
    for name in ("c/a", "c/b"):
        writer.ingest(lake, name, "one", 6, patient="P1")
    writer.ingest(lake, "c/a", "two", 8, patient="P2")
    lake.correct(corrections(lake.at(), {"c/b": {"patient": "P7"}}))
    assert refuse(lake, "c/a") == 5
    writer.ingest(lake, "c/c", "one", 4, patient="P3")
    return lake


def run(lake: Lake, *words: str) -> Any:
    return CliRunner().invoke(app, ["lake", *words, "--lake", lake.uri], catch_exceptions=False)


def rows(lake: Lake, *words: str) -> list[dict[str, Any]]:
    done = run(lake, *words, "--json")
    assert done.exit_code == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


# -- tags ---------------------------------------------------------------------------------------------------------


def test_a_tag_stands_wherever_a_version_does(busy: Lake) -> None:
    before = held(busy, 2)
    assert set_tag(busy, "paper-2026", 2, note="Figure 3").version == 2
    assert busy.version == 7 and held(busy, 7) == held(busy, 6), "a tag is a version with the same slides"
    assert held(busy, "paper-2026") == before == held(busy, "2")
    newest = set_tag(busy, "now")
    assert newest.version == 7
    assert [(tag.name, tag.version, tag.note) for tag in tags(busy)] == [("now", 7, ""), ("paper-2026", 2, "Figure 3")]
    assert [row["n_pairs"] for row in rows(busy, "slides", "--version", "paper-2026")] == [6, 6]
    assert {row["change"] for row in rows(busy, "diff", "paper-2026", "now")} == {
        "added",
        "replaced",
        "corrected",
        "refused",
    }
    with pytest.raises(VersionError, match=r"no version 'papre'; its tags are now, paper-2026"):
        busy.at("papre")


def test_a_tag_moves_only_when_told_to_and_goes_when_removed(busy: Lake) -> None:
    set_tag(busy, "paper", 2, note="first")
    version = busy.version
    assert set_tag(busy, "paper", 2).note == "first" and busy.version == version, "nothing to do, nothing done"
    with pytest.raises(UsageError, match="names version 2; --move"):
        set_tag(busy, "paper", 3)
    assert set_tag(busy, "paper", 3, move=True).note == "", "the note was the other version's"
    assert busy.at("paper").version == 3
    remove_tag(busy, "paper")
    assert tags(busy) == []
    with pytest.raises(VersionError, match="it has no tags"):
        busy.at("paper")
    with pytest.raises(VersionError, match="no tag 'paper'"):
        remove_tag(busy, "paper")
    for name in ("7", "", "a b", "a/b", "é", "x" * 65, "-x"):
        with pytest.raises(UsageError, match="cannot be a tag"):
            set_tag(busy, name, 1)
    with pytest.raises(VersionError, match="it has 0 to"):
        set_tag(busy, "future", 99)


def test_the_tag_command(busy: Lake) -> None:
    assert rows(busy, "tag", "paper", "--version", "3", "--note", "n")[0]["version"] == 3
    assert [(row["name"], row["note"]) for row in rows(busy, "tag")] == [("paper", "n")]
    assert rows(busy, "tag", "paper", "--remove") == [] == rows(busy, "tag")
    with pytest.raises(UsageError, match="Name a tag"):
        rows(busy, "tag", "--version", "3")


def test_tags_of_many_threads_and_a_publish_are_all_there(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 4)
    together = threading.Barrier(5)

    def at_once(work: Callable[[], object]) -> threading.Thread:
        def go() -> None:
            together.wait()
            work()

        return threading.Thread(target=go)

    threads = [at_once(lambda n=n: set_tag(Lake.open(lake.uri), f"tag-{n}", 1)) for n in range(4)]
    threads.append(at_once(lambda: writer.ingest(Lake.open(lake.uri), "c/b", "one", 4)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tag.name for tag in tags(lake)] == [f"tag-{n}" for n in range(4)]
    assert lake.version == 6 and lake.at().slides().num_rows == 2


def test_properties_are_set_after_the_version_that_was_read_or_not_at_all(lake: Lake, writer: ModuleType) -> None:
    version, asked = lake.version, []

    def overtaken(newest: int, held: dict[str, str]) -> dict[str, str]:
        asked.append((newest, dict(held)))
        if len(asked) == 1:
            writer.ingest(Lake.open(lake.uri), "c/a", "one", 4)
        return {"histolake.x": "1"}

    assert lake.catalog.change_properties(overtaken) == version + 2
    assert asked == [(version, {}), (version + 1, {})]
    assert lake.catalog.properties() == {"histolake.x": "1"}
    lake.catalog.table("slides").create_checkpoint()
    lake.catalog.change_properties(lambda _newest, _held: {"histolake.x": ""})
    assert lake.catalog.properties() == {}


# -- reverting ----------------------------------------------------------------------------------------------------


def test_a_revert_brings_a_version_back_and_another_undoes_it(busy: Lake) -> None:
    versions = {number: held(busy, number) for number in range(7)}
    plan = plan_revert(busy, 2)
    assert [(change.change, change.slide_id) for change in plan.changes] == [
        ("replaced", "c/a"),
        ("corrected", "c/b"),
        ("retired", "c/c"),
    ]
    assert busy.version == 6, "a plan does nothing"
    assert revert(busy, plan) == 7
    assert held(busy) == versions[2] and diff(busy.at(2), busy.at()) == []
    assert {number: held(busy, number) for number in range(7)} == versions
    assert check(busy) == [] and vacuum(busy, clock_slack_s=0).fragments == 0
    assert plan_revert(busy, 2).retired == plan_revert(busy, 2).restored == ()

    assert revert(busy, plan_revert(busy, 6)) == busy.version
    assert held(busy) == versions[6] and check(busy) == []
    assert {number: held(busy, number) for number in range(7)} == versions


def test_a_revert_of_some_slides(busy: Lake) -> None:
    before = busy.at(2).slides().to_pylist()
    revert(busy, plan_revert(busy, 2, slide_ids=["c/b"]))
    now = {row["slide_id"]: row for row in busy.at().slides().to_pylist()}
    assert now["c/b"]["patient"] == "P1" and now["c/b"]["ingest_id"] == before[1]["ingest_id"]
    assert now["c/a"]["n_pairs"] == 8 and "c/c" in now
    # P2 is the patient of c/a now, though not in version 2.
    assert {change.slide_id for change in plan_revert(busy, 2, where="patient = 'P2'").changes} == {"c/a"}
    with pytest.raises(SlideNotFoundError, match="has c/z"):
        plan_revert(busy, 2, slide_ids=["c/z"])


def test_what_comes_after_a_revert(busy: Lake, writer: ModuleType) -> None:
    revert(busy, plan_revert(busy, 2))
    lake = busy
    assert lake.begin("c/a", source_digest="one", settings_digest="plain", source="x").state == "unchanged"
    lake.correct(corrections(lake.at(), {"c/b": {"patient": "P9"}}))
    row = lake.at().slides(where="slide_id = 'c/b'").to_pylist()[0]
    assert row["reverted_to"] is None and row["corrected"] == [{"column": "patient", "said": "P1"}]
    writer.ingest(lake, "c/a", "two", 8, patient="P2")
    assert [(e.published, e.replaced, e.corrected, e.reverted) for e in history(lake)[-3:]] == [
        (0, 0, 0, 2),
        (0, 0, 1, 0),
        (1, 1, 0, 0),
    ]


def test_a_revert_that_was_looked_at_before_something_changed_is_refused(busy: Lake, writer: ModuleType) -> None:
    plan = plan_revert(busy, 2)
    set_tag(busy, "aside", 1)  # a version, but no slide changed
    writer.ingest(busy, "c/d", "one", 4)
    with pytest.raises(ConflictError, match="Slides changed since version 6"):
        revert(busy, plan)
    assert "c/d" in busy.at().slides()["slide_id"].to_pylist()


def test_what_was_forgotten_stays_so(busy: Lake) -> None:
    forget(busy, slide_id="c/b")
    revert(busy, plan_revert(busy, 2))
    assert busy.at().slides()["slide_id"].to_pylist() == ["c/a"]
    assert busy.at(2).notice is not None and "1 slide of version 2 was forgotten on 20" in str(busy.at(2).notice)
    assert busy.at().notice is None and busy.at(1).notice is None


def test_the_revert_command(busy: Lake) -> None:
    set_tag(busy, "early", 2)
    done = run(busy, "revert", "--to", "early", "--plan")
    assert done.exit_code == 0 and "Nothing was done" in done.stderr and busy.version == 7
    assert run(busy, "revert", "--to", "2").exit_code == 1, "not confirmed"
    assert [row["slide_id"] for row in rows(busy, "revert", "--to", "2", "--yes")] == ["c/a", "c/b", "c/c"]
    assert busy.version == 8
    assert "is as version 2 already" in run(busy, "revert", "--to", "2", "--yes").stderr
    assert rows(busy, "history")[-1]["did"] == "reverted to 2: 2 restored, 3 retired"


# -- expiring -----------------------------------------------------------------------------------------------------


def test_expired_versions_are_gone_and_the_kept_read_as_before(busy: Lake) -> None:
    kept = {number: held(busy, number) for number in (4, 5, 6)}
    planned = plan_expiry(busy, 4, nobody)
    assert (planned.versions, planned.slides, planned.ingests, planned.pairs, planned.rejections) == (4, 2, 1, 6, 2)
    assert expire(busy, 4, nobody) == planned
    for number in (0, 3):
        with pytest.raises(VersionError, match=rf"Version {number} of .* was expired; 4 to \d+ can be read"):
            busy.at(number)
    assert {number: held(busy, number) for number in (4, 5, 6)} == kept
    cleaned = vacuum(busy, clock_slack_s=0)
    assert cleaned.fragments == 2 and check(busy) == []
    assert {number: held(busy, number) for number in (4, 5, 6)} == kept
    stored = [row for batch in busy.pairs.open().to_batches(columns=["barcode"]) for row in batch.to_pylist()]
    assert len(stored) == 6 + 8 + 4, "the pairs of the expired ingest are given back"
    with pytest.raises(VersionError, match="was expired"):
        plan_revert(busy, 2)
    with pytest.raises(VersionError, match="was expired"):
        set_tag(busy, "late", 2)
    assert expire(busy, 4, nobody).slides == 0, "once is enough"
    with pytest.raises(VersionError, match="it has 4 to"):
        plan_expiry(busy, 99, nobody)


def test_pins_are_named_and_keep_their_versions(busy: Lake, tmp_path: Path) -> None:
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/runs.db", artifacts=str(tmp_path / "artifacts"))
    assert trained_on(settings, busy.uri) == [] and not (tmp_path / "runs.db").exists()
    client = connect(settings)
    client.create_registered_model("omiclip")
    for uri, version in ((busy.uri, "3"), ("/another/lake", "1")):
        pinned = {TAG_LAKE_URI: uri, TAG_LAKE_VERSION: version}
        client.create_model_version("omiclip", source=str(tmp_path), tags=pinned)
    set_tag(busy, "paper", 2)

    def models() -> list[Pin]:
        found = trained_on(settings, busy.uri)
        return [Pin(version=model.lake_version, kind="model", name=model.name) for model in found]

    with busy.at(1).reading("a long look"):
        told = "version 1 is pinned by reader 'a long look' .*; version 2 is pinned by tag paper; "
        with pytest.raises(VersionError, match=told + "version 3 is pinned by model omiclip/1. Expire less"):
            expire(busy, 5, models)
        expire(busy, 1, models)  # what nobody pins may go
    remove_tag(busy, "paper")
    with pytest.raises(VersionError, match="version 3 is pinned by model omiclip/1"):
        expire(busy, 5, models)
    expire(busy, 3, models)
    assert floor_of(busy.catalog.properties()) == 3


def test_a_pin_that_comes_after_the_first_look_puts_the_floor_back(busy: Lake) -> None:
    looks: list[int] = []

    def models() -> list[Pin]:
        looks.append(1)
        return [] if len(looks) == 1 else [Pin(version=2, kind="model", name="late/1")]

    before = {number: held(busy, number) for number in range(7)}
    with pytest.raises(VersionError, match="pinned by model late/1"):
        expire(busy, 4, models)
    assert floor_of(busy.catalog.properties()) == 0
    assert {number: held(busy, number) for number in range(7)} == before


def test_a_reader_that_opened_before_the_floor_moved_is_stopped(busy: Lake) -> None:
    snapshot = busy.at(2)
    expire(busy, 4, nobody)
    with pytest.raises(VersionError, match=r"Version 2 .* was expired"), snapshot.reading("too late"):
        raise AssertionError("it must not be read")
    assert not list((Path(busy.uri) / "leases").glob("*"))


@pytest.mark.parametrize("pinning", ["tag", "reader"])
def test_who_pins_and_who_expires_never_both_win(lake: Lake, writer: ModuleType, pinning: str) -> None:
    for digest in range(7):
        writer.ingest(lake, "c/a", str(digest), 8, refused=0)
    outcomes = set()
    for number in range(1, 6):
        together, done = threading.Barrier(2), threading.Event()
        said: dict[str, str] = {}

        def pin(number: int = number, together: Any = together, done: Any = done, said: Any = said) -> None:
            mine = Lake.open(lake.uri)
            together.wait()
            try:
                if pinning == "tag":
                    set_tag(mine, f"t{number}", number)
                else:
                    snapshot = mine.at(number)
                    with snapshot.reading("race"):
                        said["pinned"] = "yes"
                        done.wait(20)
                        assert sum(batch.num_rows for batch in snapshot.pairs(["spot_image"])) == 8
                said["pinned"] = "yes"
            except VersionError as error:
                said["pin refused"] = str(error)

        thread = threading.Thread(target=pin)
        thread.start()
        together.wait()
        try:
            expire(lake, number + 1, nobody)
            said["expired"] = "yes"
        except HistolakeError as error:
            said["expiry refused"] = str(error)
        vacuum(lake, clock_slack_s=0)
        done.set()
        thread.join()
        assert ("pinned" in said) != ("expired" in said), said
        assert (floor_of(lake.catalog.properties()) > number) == ("expired" in said)
        outcomes |= set(said)
        if pinning == "tag" and "pinned" in said:
            remove_tag(lake, f"t{number}")
        expire(lake, number + 1, nobody)
    vacuum(lake, clock_slack_s=0)
    assert check(lake) == [] and outcomes & {"expired", "pinned"}


def test_an_expiry_that_was_killed_is_done_again(busy: Lake, tmp_path: Path) -> None:
    steps = ["catalog:Catalog.change_properties", "catalog:Catalog.delete", "catalog:Catalog.delete_retired"]
    kept = {number: held(busy, number) for number in (4, 5, 6)}
    lakes = [_copied(busy, tmp_path / f"copy-{n}") for n in range(len(steps))]
    dying = [
        subprocess.Popen([sys.executable, "-P", KEEPER, "expire", lake.uri, "4", step], stderr=subprocess.PIPE)
        for lake, step in zip(lakes, steps, strict=True)
    ]
    for process, lake in zip(dying, lakes, strict=True):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, errors
        assert {number: held(lake, number) for number in (4, 5, 6)} == kept
        with pytest.raises(VersionError, match="was expired"):
            lake.at(3)
        expire(lake, 4, nobody)
        vacuum(lake, clock_slack_s=0)
        assert {number: held(lake, number) for number in (4, 5, 6)} == kept and check(lake) == []
        assert lake.catalog.slides().num_rows == 4 and lake.catalog.rejections().num_rows == 2 + 2 + 1 + 2
        assert lake.pairs.open().count_rows() == 6 + 8 + 4


def _copied(lake: Lake, to: Path) -> Lake:
    import shutil

    shutil.copytree(lake.uri, to)
    return Lake.open(to)


def test_the_expire_command(busy: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (planned,) = rows(busy, "expire", "--before", "4", "--plan")
    assert (planned["versions"], planned["pairs"], planned["pinned_by"]) == (4, 6, "") and busy.version == 6
    set_tag(busy, "early", 2)
    assert rows(busy, "expire", "--before", "4", "--plan")[0]["pinned_by"] == "version 2 is pinned by tag early"
    with pytest.raises(VersionError, match="pinned by tag early"):
        run(busy, "expire", "--before", "4", "--yes")
    remove_tag(busy, "early")
    done = run(busy, "expire", "--before", "4", "--yes")
    assert done.exit_code == 0 and "0 models of this lake in the registry sqlite:///" in done.stderr
    listed = {row["version"]: row for row in rows(busy, "history")}
    assert listed[3]["expired"] and not listed[4]["expired"] and 2 not in listed


# -- history ------------------------------------------------------------------------------------------------------


def test_history_tells_what_every_version_did(busy: Lake) -> None:
    set_tag(busy, "paper", 4)
    revert(busy, plan_revert(busy, 4))
    forget(busy, slide_id="c/b")
    expire(busy, 0, nobody)
    busy.catalog.table("slides").optimize.compact()
    told = {row["version"]: row for row in rows(busy, "history")}
    assert {number: told[number]["did"] for number in range(1, 9)} == {
        1: "1 published",
        2: "(of slides that are gone)",
        3: "1 replaced",
        4: "(of slides that are gone)",
        5: "1 refused",
        6: "1 published",
        7: "tagged paper",
        8: "reverted to 4: 0 restored, 2 retired",
    }
    assert told[4]["tags"] == "paper" and told[3]["software"].startswith("histolake ")
    assert all(row["when"] for row in told.values())
    assert "forgotten" in {row["did"] for row in told.values()}
    assert [row["version"] for row in rows(busy, "history", "--last", "2")] == sorted(told)[-2:]
    assert "2026" in run(busy, "history").stdout
