"""The doctor, on a store that passes, on one that must fail, on nothing at all, and on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.object_store import environment, new_bucket
from tests.weak_store import nanio

from histolake.platform.doctor.diagnosis import Diagnosis
from histolake.platform.doctor.examination import examine
from histolake.platform.doctor.race import race
from histolake.platform.lake.admission import ASKED
from histolake.platform.storage import Location


def doctor(place: str, endpoint: str | None = None) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, rows and the last words of the command."""
    command = [sys.executable, "-m", "histolake.platform", "doctor", place, "--json"]
    env = {**os.environ, **(environment(endpoint) if endpoint else {})}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    return done.returncode, json.loads(done.stdout), done.stderr


def examined(place: Location) -> Diagnosis:
    """What is found there, asked again where a busy machine was too slow to tell."""
    found = examine(place)
    for _ in range(5):
        if not found.is_open:
            break
        found = examine(place)
    return found


def failed(diagnosis: Diagnosis) -> list[str]:
    return [probe.probe for probe in diagnosis.failed()]


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a nanio."""
    with nanio(tmp_path_factory.mktemp("nanio")) as endpoint:
        yield endpoint


def test_a_sound_store_passes_and_nothing_is_left_there(bucket: str) -> None:
    place = Location.parse(f"{bucket}/some/lake")
    diagnosis = examined(place)
    assert failed(diagnosis) == [] and diagnosis.keeps_writers_apart and diagnosis.holds_a_lake
    assert diagnosis.server.startswith("SeaweedFS")
    told = {probe.probe: probe for probe in diagnosis.probes}
    assert told["race"].figure == "1" and told["conditional put"].figure == "refused"
    assert told["conditional replacement"].figure == "refused"
    assert told["ranges"].figure == "4 of 4 right"
    assert diagnosis.seconds < 5, "under two on a machine that has nothing else to do"
    for _ in range(100):  # late answers of the race are waited for in the background
        if not (left := place.s3_client().list_objects_v2(Bucket=bucket.removeprefix("s3://")).get("Contents")):
            break
        time.sleep(0.1)
    assert not left


def test_the_command_tells_one_flat_row_a_probe(bucket: str) -> None:
    code, rows, words = doctor(f"{bucket}/lake")
    assert code == 0 and "all holds" in words
    assert all(list(row) == ["probe", "ok", "figure", "limit", "means", "settled"] for row in rows)
    assert all(row["ok"] and row["means"].endswith((".", ").")) for row in rows)
    assert {"reachable", "conditional put", "race", "ranges", "clock", "latency"} <= {row["probe"] for row in rows}


def test_a_store_without_conditions_fails(weak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(weak).items():
        monkeypatch.setenv(name, value)
    diagnosis = examine(Location.parse(f"{new_bucket()}/lake"))
    # Now and then a read beside a replacement gets a mixture there, too.
    assert {"ranges", "folders", "conditional put", "race"} <= set(failed(diagnosis)) <= {*ASKED, "read after write"}
    assert not diagnosis.keeps_writers_apart and not diagnosis.holds_a_lake
    told = {probe.probe: probe for probe in diagnosis.probes}
    assert "the last 100 bytes" in told["ranges"].means and "the first" not in told["ranges"].means
    assert told["race"].figure == "8" and "rows of several writers would be lost" in told["race"].means
    code, rows, words = doctor(diagnosis.store, weak)
    assert code == 1 and "not for a lake" in words
    assert {"ranges", "folders", "conditional put", "race"} <= {row["probe"] for row in rows if not row["ok"]}


def test_a_dead_endpoint_answers_at_once_with_one_sentence() -> None:
    start_s = time.monotonic()
    code, rows, _ = doctor("s3://nobody/lake", "http://127.0.0.1:9")
    assert time.monotonic() - start_s < 15, "seconds, on a busy machine too"
    assert code == 1 and len(rows) == 1 and rows[0]["probe"] == "reachable"
    assert rows[0]["means"] == (
        "The store at http://127.0.0.1:9 was asked for s3://nobody/lake, and nothing answers there; start the server, "
        "or name another one in AWS_ENDPOINT_URL."
    )


def test_a_server_that_never_answers_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in environment(f"http://127.0.0.1:{silent.getsockname()[1]}").items():
            monkeypatch.setenv(name, value)
        start_s = time.monotonic()
        diagnosis = examine(Location.parse("s3://bucket/lake"))
    assert time.monotonic() - start_s < 10
    assert [probe.ok for probe in diagnosis.probes] == [False]
    assert "no answer in time" in diagnosis.probes[0].means or "within 5 s" in diagnosis.probes[0].means


def test_a_wrong_key_and_a_missing_bucket_say_what_to_do(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(store).items():
        monkeypatch.setenv(name, value)
    (missing,) = examine(Location.parse("s3://not-there/lake")).probes
    assert "NoSuchBucket" in missing.means and missing.means.endswith("make the bucket or name another.")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    (wrong,) = examine(Location.parse("s3://not-there/lake")).probes
    assert "SignatureDoesNotMatch" in wrong.means and "give keys that may read" in wrong.means


def test_a_folder(tmp_path: Path) -> None:
    diagnosis = examine(Location.parse(tmp_path / "not" / "yet" / "there"))
    assert failed(diagnosis) == [] and list(tmp_path.iterdir()) == [], "what was written is gone"
    assert [probe.probe for probe in diagnosis.probes] == [
        *("reachable", "create", "link", "rename", "sync", "clock", "latency", "space")
    ]
    code, rows, _ = doctor(str(tmp_path))
    assert code == 0 and [row["probe"] for row in rows] == [probe.probe for probe in diagnosis.probes]


def test_a_folder_that_cannot_be_written() -> None:
    diagnosis = examine(Location.parse("/proc/self"))
    assert [probe.probe for probe in diagnosis.probes] == ["reachable"] and not diagnosis.ok
    assert "name a folder that you may write to" in diagnosis.probes[0].means


def test_a_race_that_two_win_is_seen() -> None:
    held: dict[str, bytes] = {}

    def check_then_act(name: str, data: bytes) -> bool:
        free = name not in held
        time.sleep(0.003)  # as a store does that checks before it writes
        if free:
            held[name] = data
        return free

    probe, _ = race("race", check_then_act, lambda name: held[name], 0.003, 5.0)
    assert not probe.ok and int(str(probe.figure)) > 1


def test_a_diagnosis_tells_one_writer_from_several(tmp_path: Path) -> None:
    good = examine(Location.parse(tmp_path))
    link = replace(next(probe for probe in good.probes if probe.probe == "link"), ok=False)
    bad = replace(good, probes=(*good.probes, link))
    assert not bad.ok and not bad.keeps_writers_apart and bad.holds_a_lake
