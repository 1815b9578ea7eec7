"""What a commit costs does not grow with the lake: what is read again, what is rewritten, what is left lying."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import lance
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from histolake.platform.errors import IntegrityError
from histolake.platform.lake import Lake, catalog, pairs
from histolake.platform.lake.audit import check
from histolake.platform.lake.pairs import Fragment, PairsTable
from histolake.platform.schemas import REJECTIONS


def delta(lake: Lake, name: str = "slides") -> DeltaTable:
    return DeltaTable(f"{lake.uri}/catalog/{name}")


def names_in(folder: str) -> list[str]:
    return [path.name for path in Path(folder).iterdir()]


def operations(lake: Lake) -> list[str]:
    """What the commits of `catalog/slides` were, the oldest first."""
    return [commit["operation"] for commit in reversed(delta(lake).history())]


def publish_rows(lake: Lake, names: list[str]) -> None:
    """Published rows without pairs, in one commit."""

    def rows(version: int, live: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        new = {"published_in": version, "status": "published", "n_pairs": 0, "profile_sketch": list(range(64))}
        old = [{**row, "retired_in": version} for found in live.values() for row in found]
        return [{k: row[k] for k in ("ingest_id", "published_in", "slide_id", "retired_in")} for row in old] + [
            {**new, "slide_id": name, "ingest_id": f"{name}-{version}"} for name in names
        ]

    lake.catalog.commit(names, rows)


def test_nothing_retired_is_an_append_and_a_replacement_a_merge(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 4)
    writer.ingest(lake, "c/b", "one", 4)
    writer.ingest(lake, "c/a", "two", 4)
    assert operations(lake) == ["CREATE TABLE", "WRITE", "WRITE", "MERGE"]
    live = {row["slide_id"]: row["published_in"] for row in lake.at().slides().to_pylist()}
    assert live == {"c/a": 3, "c/b": 2}


def test_a_replacement_rewrites_one_file_of_many(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "COMPACT_FILES", 1000)
    for n in range(12):
        publish_rows(lake, [f"c/{n}"])
    before = set(delta(lake).file_uris())
    publish_rows(lake, ["c/5"])
    metrics = delta(lake).history(1)[0]["operationMetrics"]
    assert metrics["num_target_files_scanned"] == 1 and metrics["num_target_files_removed"] == 1
    assert len(before - set(delta(lake).file_uris())) == 1
    assert sorted(lake.at().slides()["slide_id"].to_pylist()) == sorted(f"c/{n}" for n in range(12))


def test_small_files_are_compacted_to_a_bounded_size(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "COMPACT_FILES", 4)
    monkeypatch.setattr(catalog, "FILE_BYTES", 100_000)
    names = [f"c/{n}" for n in range(40)]
    for name in names:
        publish_rows(lake, [name])
    sizes = pa.table(delta(lake).get_add_actions(flatten=True))["size_bytes"].to_pylist()
    assert len(sizes) <= 8 and max(sizes) < 200_000
    assert sorted(lake.at().slides()["slide_id"].to_pylist()) == sorted(names)
    assert [len(rows) for rows in lake.catalog.live(names).values()] == [1] * 40


def test_the_log_stays_short_and_a_writer_that_slept_reads_on(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "KEEP_COMMITS", 10)
    sleeper = Lake.open(lake.uri)
    publish_rows(sleeper, ["c/first"])
    for n in range(50):
        publish_rows(lake, [f"c/{n}"])
    log = [name for name in names_in(f"{lake.uri}/catalog/slides/_delta_log") if name.endswith(".json")]
    assert len(log) < 10 + 20 + catalog.THIN_EVERY + 5
    assert any("checkpoint" in name for name in names_in(f"{lake.uri}/catalog/slides/_delta_log"))
    publish_rows(sleeper, ["c/3"])
    assert sleeper.version == lake.version
    assert Lake.open(lake.uri).at().slides().num_rows == 51
    assert [row["published_in"] for row in lake.catalog.live(["c/3"])["c/3"]] == [lake.version]


def test_two_writers_in_turn_see_each_other(lake: Lake, writer: ModuleType) -> None:
    other = Lake.open(lake.uri)
    for n in range(4):
        writer.ingest(lake, "c/shared", f"mine {n}", 4)
        writer.ingest(other, "c/shared", f"theirs {n}", 6)
    assert lake.at().slides()["n_pairs"].to_pylist() == [6]
    assert other.begin("c/shared", source_digest="theirs 3", settings_digest="plain", source="x").state == "unchanged"
    assert lake.begin("c/shared", source_digest="theirs 3", settings_digest="plain", source="x").state == "unchanged"
    assert check(lake) == []


def test_rejections_that_were_written_although_the_commit_seemed_to_fail(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = catalog.write_deltalake
    calls = []

    def lost_answer(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the connection was closed before an answer came")

    monkeypatch.setattr(catalog, "write_deltalake", lost_answer)
    rows = pa.Table.from_pylist([{"ingest_id": "i", "rule": "min_genes"}] * 3, schema=REJECTIONS)
    lake.catalog.append("rejections", rows)
    assert len(calls) == 1 and lake.catalog.rejection_count("i") == 3


def test_pairs_that_were_committed_although_the_commit_seemed_to_fail(
    lake: Lake, writer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lance.LanceDataset.commit
    calls = []

    def lost_answer(*args: Any, **kwargs: Any) -> Any:
        done = real(*args, **kwargs)
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the connection was closed before an answer came")
        return done

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(lost_answer))
    writer.ingest(lake, "c/a", "one", 20)
    assert len(calls) == 1
    assert sum(batch.num_rows for batch in lake.at().pairs(["barcode"])) == 20 and check(lake) == []


def test_ids_come_from_the_commit_and_are_found_again_among_newer_ones_only(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 20)
    first = lake.begin("c/b", source_digest="1", settings_digest="s", source="x")
    fragments = [first.pairs.write(writer.rows("c/b", "1", 5, first=5 * n)) for n in range(3)]
    writer.ingest(Lake.open(lake.uri), "c/c", "one", 8)  # another process commits in between
    table = PairsTable(lake.pairs.location)
    after = lake.pairs.last_id()
    located = table.append(fragments, after)
    assert [part["rows"] for part in located] == [5, 5, 5]
    assert table.locate(fragments, after) == located == table.locate(fragments)
    assert table.locate(fragments, located[-1]["id"]) is None
    assert table.append(fragments, after) == located, "the same fragments are never committed twice"
    assert table.newest().count_rows() == 20 + 8 + 15
    assert table.holds(fragments, located, table.newest())
    assert not table.holds(fragments, located[::-1], table.newest())


def test_manifests_of_old_versions_go_in_passing(
    lake: Lake, writer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "KEEP_MANIFESTS", 4)
    monkeypatch.setattr(pairs, "KEEP_MANIFESTS_S", -60.0)
    for n in range(14):
        writer.ingest(lake, f"c/{n}", "one", 4)
    listed = [name for name in names_in(f"{lake.uri}/pairs.lance/_versions") if name.endswith(".manifest")]
    assert 4 <= len(listed) <= 8
    assert Lake.open(lake.uri).pairs.open().count_rows() == 14 * 4
    assert sum(batch.num_rows for batch in lake.at(3).pairs(["barcode"])) == 3 * 4, "an old version of the lake reads"


def test_a_worker_reads_nothing_of_the_table(lake: Lake, writer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = lance.dataset

    def counting(*args: Any, **kwargs: Any) -> Any:
        opened.append(args)
        return real(*args, **kwargs)

    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    monkeypatch.setattr(lance, "dataset", counting)
    fragments = [attempt.pairs.write(writer.rows("c/a", "1", 2, first=2 * n)) for n in range(3)]
    assert not opened
    attempt.stage({"n_spots": 6}, fragments, pa.table({"rule": pa.array([], "string")}))
    assert lake.publish([attempt]) == 1
    assert not opened, "the driver had the table at hand"


def test_a_fragment_of_other_columns_is_not_committed(lake: Lake, writer: ModuleType) -> None:
    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    fragment = attempt.pairs.write(writer.rows("c/a", "1", 2))
    other = json.loads(fragment.metadata)
    other["files"][0]["fields"][0] = 99
    with pytest.raises(IntegrityError, match="does not know the table's schema"):
        lake.pairs.append([Fragment(metadata=json.dumps(other), rows=2)])
    assert lake.pairs.fragment_ids() == set()


def test_the_plan_says_where_to_look(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 20)
    attempt = lake.begin("c/b", source_digest="1", settings_digest="s", source="x")
    attempt.stage({"n_spots": 4}, [attempt.pairs.write(writer.rows("c/b", "1", 4))], pa.table({"rule": ["min_genes"]}))
    (lease,) = (Path(lake.uri) / "leases").glob("*.json")
    assert json.loads(lease.read_text())["plan"]["after"] == 1
    lake.publish([attempt])
