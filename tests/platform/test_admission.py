"""Who may write to a lake in a store that does not keep writers apart."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from tests.object_store import environment, new_bucket
from tests.platform.flaky_store import Faults, flaky_store
from tests.weak_store import careless_store, nanio

from histolake.platform.doctor.examination import examine
from histolake.platform.errors import StoreError
from histolake.platform.lake import Lake
from histolake.platform.lake.admission import ASKED, require_conditional_put
from histolake.platform.lake.leases import read_leases
from histolake.platform.storage import Location, StoreSettings

ALONE = StoreSettings(sole_writer=True)


@pytest.fixture(scope="module")
def careless(store: str) -> Iterator[str]:
    """The endpoint of a store that ignores conditions."""
    with careless_store(store) as (endpoint, _):
        yield endpoint


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> str:
    """Name a store in the standard variables; a new bucket there."""
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    return new_bucket()


def objects(bucket: str) -> list[str]:
    found = Location.parse(bucket).s3_client().list_objects_v2(Bucket=bucket.removeprefix("s3://"))
    return [entry["Key"] for entry in found.get("Contents", [])]


def test_two_writers_are_refused_before_a_row_is_written(
    careless: str, monkeypatch: pytest.MonkeyPatch, run_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    bucket = use(monkeypatch, careless)
    writers = [run_writer(f"{bucket}/lake", name, "one", 10) for name in ("c/a", "c/b")]
    for process in writers:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1 and "StoreError" in errors
        assert "does not keep writers apart" in errors and "HISTOLAKE_STORE__SOLE_WRITER=true" in errors
    assert objects(bucket) == []


def test_a_sole_writer_is_let_in_and_keeps_others_out(
    careless: str,
    monkeypatch: pytest.MonkeyPatch,
    writer: ModuleType,
    run_writer: Callable[..., subprocess.Popen[str]],
) -> None:
    bucket = use(monkeypatch, careless)
    lake = Lake.open(f"{bucket}/lake", create=True, store=ALONE)
    assert writer.ingest(lake, "c/a", "one", 10) == 1
    assert sum(batch.num_rows for batch in lake.at().pairs(["spot_image"])) == 10
    assert [lease.kind for lease in read_leases(lake.root)] == ["sole"]

    monkeypatch.setenv("HISTOLAKE_STORE__SOLE_WRITER", "true")
    second = run_writer(lake.uri, "c/b", "one", 10)
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 1 and "is writing to it (to write alone): wait until it has ended" in errors
    assert lake.version == 1 and lake.at().slides()["slide_id"].to_pylist() == ["c/a"]
    assert Lake.open(lake.uri).at().slides().num_rows == 1, "whoever reads is not asked"


def test_a_sole_writer_waits_for_one_who_began_before(
    careless: str, store: str, monkeypatch: pytest.MonkeyPatch, run_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    bucket = use(monkeypatch, store)  # by the way that conditions hold on
    lake = Lake.open(f"{bucket}/lake", create=True)
    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", careless)
    monkeypatch.setenv("HISTOLAKE_STORE__SOLE_WRITER", "true")
    _, errors = (second := run_writer(lake.uri, "c/b", "one", 10)).communicate(timeout=120)
    assert second.returncode == 1 and "is writing to it (ingest x)" in errors
    monkeypatch.setenv("AWS_ENDPOINT_URL", store)
    attempt.abandon()
    monkeypatch.setenv("AWS_ENDPOINT_URL", careless)
    out, errors = (second := run_writer(lake.uri, "c/b", "one", 10)).communicate(timeout=120)
    assert second.returncode == 0, errors
    assert int(out) == 1 and list(read_leases(lake.root)) == [], "its lease went with it"


def test_a_store_that_cannot_hold_a_lake_is_refused_to_a_sole_writer_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with nanio(tmp_path_factory.mktemp("nanio")) as endpoint:
        bucket = use(monkeypatch, endpoint)
        for settings in (None, ALONE):
            with pytest.raises(StoreError, match="cannot hold a lake, not even of a sole writer") as refusal:
                Lake.open(f"{bucket}/lake", create=True, store=settings)
            assert "the last 100 bytes" in str(refusal.value) and "InvalidObjectName" in str(refusal.value)
        for _ in range(150):  # late answers of the race are waited for in the background
            if not (left := objects(bucket)):
                break
            time.sleep(0.1)
        assert not left


def test_a_sound_store_is_asked_once(bucket: str) -> None:
    root = Location.parse(f"{bucket}/lake")
    start_s = time.monotonic()
    require_conditional_put(root)
    first_s = time.monotonic() - start_s
    start_s = time.monotonic()
    for _ in range(100):
        require_conditional_put(root)
    assert (time.monotonic() - start_s) / 100 < first_s / 20


def test_a_store_that_does_not_answer_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match="nothing answers there; start the server"):
        Lake.open("s3://bucket/lake", create=True)


def test_on_disk_nothing_is_asked(lake: Lake) -> None:
    before = sorted(lake.root.list(), key=str)
    require_conditional_put(lake.root)
    assert sorted(lake.root.list(), key=str) == before


def test_what_the_libraries_ask_of_a_store(store: str, monkeypatch: pytest.MonkeyPatch, writer: ModuleType) -> None:
    """Commits are conditional puts; nobody relies on `If-Match`, which the doctor therefore only tells of."""
    with careless_store(store) as (endpoint, asked):
        lake = Lake.open(f"{use(monkeypatch, endpoint)}/lake", create=True, store=ALONE)
        writer.ingest(lake, "c/a", "one", 6)
        writer.ingest(lake, "c/a", "two", 6)
    libraries = {who for who, header in asked if header == "if-none-match"}
    assert {"object_store", "pylance"} & libraries and "Boto3" in libraries, libraries
    matched = {who for who, header in asked if header == "if-match"}
    assert matched <= {"Boto3"}, "the doctor's own"


def test_a_store_that_fails_now_and_then_is_not_taken_for_a_weak_one(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = use(monkeypatch, store)
    with flaky_store(store, Faults(refuse=0.05, lose=0.05, cut=0.05)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for number in range(5):
            diagnosis = examine(Location.parse(f"{bucket}/lake-{number}"), only=ASKED)
            assert diagnosis.ok, diagnosis.complaint()
