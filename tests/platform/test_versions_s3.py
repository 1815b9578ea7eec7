"""Tags, reverting, expiring and forgetting in an object store: as it is, and one that answers "failed" to commits that
succeeded."""

from __future__ import annotations

import threading
from types import ModuleType

import pytest
from tests.object_store import environment
from tests.platform.flaky_store import Faults, flaky_store

from histolake.platform.errors import VersionError
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.expire import Pin, expire
from histolake.platform.lake.forgetting import forget
from histolake.platform.lake.forgotten import forgotten_of
from histolake.platform.lake.history import history
from histolake.platform.lake.revert import plan_revert, revert
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.lake.versions import floor_of, remove_tag, set_tag, tags


def nobody() -> list[Pin]:
    return []


def test_the_versions_of_a_lake_in_a_store(bucket: str, writer: ModuleType) -> None:
    lake = Lake.open(f"{bucket}/lake", create=True)
    for slide_id, digest in (("c/a", "one"), ("c/b", "one"), ("c/a", "two")):
        writer.ingest(lake, slide_id, digest, 4)
    threads = [
        threading.Thread(target=set_tag, args=(Lake.open(lake.uri), f"tag-{n}", 2), kwargs={"note": "n"})
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tag.name, tag.version, tag.note) for tag in tags(lake)] == [(f"tag-{n}", 2, "n") for n in range(3)]
    with pytest.raises(VersionError, match="version 2 is pinned by tag tag-0; version 2 is pinned by tag tag-1"):
        expire(lake, 3, nobody)
    revert(lake, plan_revert(lake, "tag-0"))
    assert lake.at().slides()["source_digest"].to_pylist() == ["one", "one"]
    for n in range(3):
        remove_tag(lake, f"tag-{n}")
    with lake.at(6).reading("at work"), pytest.raises(VersionError, match="pinned by reader 'at work'"):
        expire(lake, 7, nobody)
    expire(lake, lake.version, nobody)
    vacuum(lake, clock_slack_s=0)
    assert lake.pairs.open().count_rows() == 8, "the replaced ingest came back, the other is gone"
    assert check(lake) == []


def test_commits_that_only_seemed_to_fail_are_made_once(
    bucket: str, store: str, writer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(lose_commits=0.3, seed=7)
    with flaky_store(store, faults) as endpoint:
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)
        lake = Lake.open(f"{bucket}/lake", create=True)
        for slide_id, digest in (("c/a", "one"), ("c/b", "one"), ("c/a", "two")):
            writer.ingest(lake, slide_id, digest, 4)
        first = {row["ingest_id"]: row["published_in"] for row in lake.catalog.slides().to_pylist()}
        tagged = max(first.values()) - 1
        set_tag(lake, "old", tagged)
        set_tag(lake, "gone", 1)
        set_tag(lake, "old", tagged, move=True)
        remove_tag(lake, "gone")
        revert(lake, plan_revert(lake, "old"))
        forget(lake, slide_id="c/b")
        expire(lake, tagged, nobody)
    assert faults.happened["lost commit"] > 3, faults.happened
    monkeypatch.setenv("AWS_ENDPOINT_URL", store)
    lake = Lake.open(f"{bucket}/lake")
    assert [(tag.name, tag.version) for tag in tags(lake)] == [("old", tagged)]
    assert floor_of(lake.catalog.properties()) == tagged
    (entry,) = forgotten_of(lake.catalog.properties())
    assert entry.slides == 1 and not entry.pending
    rows = lake.at().slides().to_pylist()
    assert [(row["slide_id"], row["source_digest"], row["reverted_to"]) for row in rows] == [("c/a", "one", tagged)]
    assert sum(entry.reverted for entry in history(lake)) == 1, "once"
    assert lake.catalog.slides().num_rows == 3  # c/a as it was, replaced, and restored
    vacuum(lake, clock_slack_s=0)
    assert check(lake) == [] and lake.genes().num_rows == 62_754
