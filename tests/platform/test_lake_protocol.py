"""The lake's protocol on plain rows of bytes: publish, replace, adopt, several writers. Crashes: `test_lake_killed`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake.exceptions import DeltaError

from histolake.platform.errors import IntegrityError, LakeNotFoundError, SlideNotFoundError, VersionError
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.schemas import PAIRS

CONTENT = [name for name in PAIRS.names if name != "ingest_id"]
LAKE = "histolake.platform.lake"


def content(lake: Lake, version: int | None = None) -> str:
    """A hash of everything that a version holds, but for the random ingest ids."""
    snapshot = lake.at(version)
    digest = hashlib.sha256()
    for batch in snapshot.pairs(CONTENT):
        digest.update(repr(batch.to_pylist()).encode())
    rejected = snapshot.rejections().drop_columns(["ingest_id"]).to_pylist()
    digest.update(repr(sorted(map(str, rejected))).encode())
    digest.update(
        repr(snapshot.slides().select(["slide_id", "n_pairs", "n_rejections", "n_spots"]).to_pylist()).encode()
    )
    return digest.hexdigest()


def data_files(lake: Lake) -> int:
    """How many Lance data files lie on disk, named by a version or not."""
    return sum(1 for _ in (Path(lake.uri) / "pairs.lance" / "data").glob("*.lance"))


def test_publish_then_replace(lake: Lake, writer: ModuleType) -> None:
    assert lake.version == 0 and lake.at().slides().num_rows == 0
    assert writer.ingest(lake, "c/a", "one", 20) == 1
    first = content(lake)
    assert writer.ingest(lake, "c/b", "one", 10) == 2
    assert writer.ingest(lake, "c/a", "two", 14) == 3

    rows = lake.at().slides().to_pylist()
    assert [(row["slide_id"], row["n_pairs"], row["published_in"]) for row in rows] == [("c/a", 14, 3), ("c/b", 10, 2)]
    assert content(lake, 1) == first, "an older version reads as it did"
    assert content(lake) != first
    assert sum(batch.num_rows for batch in lake.at().pairs(["barcode"])) == 24
    assert lake.at().rejections().num_rows == 4
    assert check(lake) == []


def test_same_source_and_settings_do_nothing(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 20)
    files, version = data_files(lake), lake.version
    attempt = lake.begin("c/a", source_digest="one", settings_digest="plain", source="again")
    assert attempt.state == "unchanged"
    assert lake.publish([attempt]) == version == lake.version
    assert data_files(lake) == files
    assert lake.begin("c/a", source_digest="one", settings_digest="other", source="again").state == "new"


def test_many_slides_in_one_commit(lake: Lake, writer: ModuleType) -> None:
    attempts = []
    for name in ("c/a", "c/b", "c/c"):
        attempt = lake.begin(name, source_digest="1", settings_digest="s", source=name)
        attempt.stage(
            {"n_spots": 4}, [attempt.pairs.write(writer.rows(name, "1", 4))], pa.table({"rule": pa.array([], "string")})
        )
        attempts.append(attempt)
    assert lake.version == 0
    assert lake.publish(attempts) == 1
    assert lake.at(1).slides()["slide_id"].to_pylist() == ["c/a", "c/b", "c/c"]


def test_a_refusal_shows_and_never_retires_a_published_slide(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "good", 20)
    reason = pa.Table.from_pylist([{"rule": "min_spots", "figure": 3.0, "limit": 50.0, "reason": "3 spots"}])
    for digest in ("bad", "worse"):
        attempt = lake.begin("c/a", source_digest=digest, settings_digest="plain", source="x")
        attempt.refuse({"n_spots": 3}, reason)
        lake.publish([attempt])
    assert lake.at().slides()["n_pairs"].to_pylist() == [20]
    both = lake.at().slides(include_refused=True).to_pylist()
    assert [(row["status"], row["source_digest"]) for row in both] == [("published", "good"), ("refused", "worse")]
    assert set(lake.at().rejections()["rule"].to_pylist()) == {"min_genes", "min_spots"}
    assert lake.begin("c/a", source_digest="worse", settings_digest="plain", source="x").state == "unchanged"
    writer.ingest(lake, "c/a", "better", 8)
    assert lake.at().slides(include_refused=True)["status"].to_pylist() == ["published"]


def test_a_complete_dead_attempt_is_adopted(
    lake: Lake, run_writer: Callable[..., subprocess.Popen[str]], writer: ModuleType
) -> None:
    run_writer(lake.uri, "c/a", "one", 30, f"{LAKE}.attempt:Attempt._commit_pairs").communicate(timeout=120)
    files = data_files(lake)
    attempt = lake.begin("c/a", source_digest="one", settings_digest="plain", source="x")
    assert attempt.state == "adopted"
    lake.publish([attempt])
    assert data_files(lake) == files, "nothing was written again"
    assert lake.at().slides()["n_pairs"].to_pylist() == [30] and lake.at().rejections().num_rows == 2


def test_an_attempt_that_vacuum_gave_up_cannot_publish(lake: Lake, writer: ModuleType) -> None:
    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    attempt.stage(
        {"n_spots": 4}, [attempt.pairs.write(writer.rows("c/a", "1", 4))], pa.table({"rule": pa.array([], "string")})
    )
    lake.root.join("leases", f"{attempt.ingest_id}.seal").write_bytes(b"vacuum")
    with pytest.raises(IntegrityError, match="given up for dead"):
        lake.publish([attempt])
    assert lake.version == 0 and lake.at().slides().num_rows == 0


def test_a_publish_that_failed_may_be_tried_again(lake: Lake, writer: ModuleType) -> None:
    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    fragment = attempt.pairs.write(writer.rows("c/a", "1", 4))
    attempt.stage({"n_spots": 4}, [fragment], pa.table({"rule": pa.array([], "string")}))
    hidden = Path(lake.uri) / "catalog" / "slides"
    hidden.rename(hidden.with_name("away"))  # the store is not there for a moment
    with pytest.raises(DeltaError):
        lake.publish([attempt])
    shutil.rmtree(hidden, ignore_errors=True)  # what was written where the store should have been
    hidden.with_name("away").rename(hidden)
    assert lake.publish([attempt]) == 1 and lake.at().slides()["n_pairs"].to_pylist() == [4]


def test_four_writers_lose_nothing(lake: Lake, run_writer: Callable[..., subprocess.Popen[str]]) -> None:
    names = ["c/shared", "c/own-1", "c/shared", "c/own-2"]
    writers = [run_writer(lake.uri, name, f"digest-{n}", 20 + n) for n, name in enumerate(names)]
    versions = []
    for process in writers:
        out, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
        versions.append(int(out))
    assert sorted(versions) == [1, 2, 3, 4], "four publishes, four versions"
    live = {row["slide_id"]: row["n_pairs"] for row in lake.at().slides().to_pylist()}
    last = max((0, 2), key=lambda n: versions[n])
    assert live == {"c/own-1": 21, "c/own-2": 23, "c/shared": 20 + last}
    assert sum(batch.num_rows for batch in lake.at().pairs(["barcode"])) == sum(live.values())
    assert check(lake) == []


def test_two_writers_of_the_same_source_publish_it_once(
    lake: Lake, run_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    writers = [run_writer(lake.uri, "c/a", "same", 40) for _ in range(2)]
    for process in writers:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    assert lake.at().slides()["n_pairs"].to_pylist() == [40]
    assert sum(batch.num_rows for batch in lake.at().pairs(["barcode"])) == 40


def test_vacuum_beside_a_live_ingest_takes_nothing_of_it(lake: Lake, writer: ModuleType) -> None:
    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    fragment = attempt.pairs.write(writer.rows("c/a", "1", 6))
    removed = vacuum(lake, clock_slack_s=0)
    assert removed.live_leases == 1 and removed.bytes == 0
    attempt.stage({"n_spots": 6}, [fragment], pa.Table.from_pylist([{"rule": "min_genes"}]))
    vacuum(lake, clock_slack_s=0)
    lake.publish([attempt])
    assert sum(batch.num_rows for batch in lake.at().pairs(["spot_image"])) == 6
    assert lake.at().rejections().num_rows == 1


def test_reading_chunks_in_any_order(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/b", "1", 10)
    writer.ingest(lake, "c/a", "1", 7)
    snapshot = lake.at()
    chunks = snapshot.chunks(rows=4)
    assert [chunk.rows for chunk in chunks] == [4, 3, 4, 4, 2]
    everything = [name for batch in snapshot.pairs(["barcode"]) for name in batch["barcode"].to_pylist()]
    assert everything == [name for chunk in chunks for name in snapshot.read(chunk, ["barcode"])["barcode"].to_pylist()]
    assert everything[0] == "c/a-spot-0" and len(everything) == 17
    picked = snapshot.read(chunks[0], ["barcode"], rows=[3, 0, 3, 2])["barcode"].to_pylist()  # of two fragments
    assert picked == ["c/a-spot-3", "c/a-spot-0", "c/a-spot-3", "c/a-spot-2"]
    assert snapshot.read(chunks[1], ["barcode"], rows=[]).num_rows == 0
    with pytest.raises(IndexError):
        snapshot.read(chunks[1], ["barcode"], rows=[3])
    places = np.array([(4, 1), (0, 3), (2, 0), (0, 0), (4, 1), (1, 2)])
    taken = snapshot.take(chunks, places, ["barcode"])["barcode"].to_pylist()
    assert taken == ["c/b-spot-9", "c/a-spot-3", "c/b-spot-0", "c/a-spot-0", "c/b-spot-9", "c/a-spot-6"]
    assert snapshot.take(chunks, np.zeros((0, 2), dtype=int), ["barcode"]).num_rows == 0
    with pytest.raises(IndexError):
        snapshot.take(chunks, np.array([(4, 2)]), ["barcode"])


def test_errors_say_what_is_wrong(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(LakeNotFoundError, match="no lake at"):
        Lake.open(tmp_path / "nothing")
    with pytest.raises(VersionError, match="it has 0 to 0"):
        lake.at(7)
    with pytest.raises(SlideNotFoundError, match="no slide c/z"):
        lake.at().chunks(["c/z"])


def test_a_read_lease_is_there_while_reading(lake: Lake) -> None:
    leases = Path(lake.uri) / "leases"
    with lake.at().reading("a test"):
        assert len(list(leases.glob("*.json"))) == 1
    assert not list(leases.iterdir())


def test_genes_get_one_id_for_ever(lake: Lake, tmp_path: Path) -> None:
    known = lake.resolve_genes(["ACTB", "ERBB2"])
    assert (known >= 0).all() and lake.genes().num_rows == 62_754
    assert lake.resolve_genes(["", "x"], ["ENSG00000075624", None]).tolist() == [known[0], -1]
    new = lake.resolve_genes(["FAM132A", "ACTB", "OLDNAME"], allocate=True)
    assert new.tolist() == [62_754, known[0], 62_755]
    other = Lake.open(lake.uri)
    assert other.resolve_genes(["OLDNAME", "FAM132A"]).tolist() == [62_755, 62_754]
    assert other.resolve_genes(["Actb"], species="mouse", allocate=True).tolist() == [62_756]


def test_leases_of_other_machines_die_by_silence(lake: Lake) -> None:
    from histolake.platform.lake.leases import TTL_S, Lease

    def lease(age_s: float, **other: Any) -> Lease:
        now = time.time()
        return Lease(lease_id="x", kind="write", purpose="t", started_s=now - age_s, renewed_s=now - age_s, **other)

    assert lease(10 * TTL_S).is_live(), "our own process lives, however long it was busy"
    assert lease(TTL_S / 2, machine="elsewhere").is_live()
    assert not lease(TTL_S * 2, machine="elsewhere").is_live()
    assert not lease(TTL_S * 2, machine="elsewhere").is_certainly_dead()
    assert lease(TTL_S * 20, machine="elsewhere").is_certainly_dead()


def test_counts_are_stored_in_less_than_they_take_in_memory(lake: Lake, writer: ModuleType) -> None:
    n_spots, n_genes = 100, 1_000
    random = np.random.default_rng(0)
    counts = random.poisson(1.0, n_spots * n_genes).astype(np.float32) + 1
    sizes = {}
    for name, values in {"counts": counts, "noise": random.random(len(counts), dtype=np.float32)}.items():
        attempt = lake.begin(f"c/{name}", source_digest="one", settings_digest="s", source="x")
        rows = writer.rows("c/a", "one", n_spots)
        lists = pa.ListArray.from_arrays(np.arange(n_spots + 1, dtype=np.int32) * n_genes, pa.array(values))
        fragment = attempt.pairs.write(rows.set_column(rows.schema.get_field_index("counts"), "counts", lists))
        attempt.stage({"n_spots": n_spots}, [fragment], pa.table({"rule": pa.array([], "string")}))
        lake.publish([attempt])
        sizes[name] = (Path(lake.uri) / "pairs.lance" / "data" / fragment.files[0]).stat().st_size
        read = pa.Table.from_batches(lake.at().pairs(["counts"], [f"c/{name}"]))["counts"].combine_chunks()
        assert np.array_equal(read.values.to_numpy(), values)
    assert sizes["noise"] - sizes["counts"] > counts.nbytes / 2
