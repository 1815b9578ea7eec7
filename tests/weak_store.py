"""Stores that a lake must be kept from: one that knows no conditions (nanio), and a sound one whose conditions are lost
on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from tests.object_store import KEY, SECRET, environment, free_ports
from tests.platform.flaky_store import Faults, _Forwarder, serve

__all__ = ["careless_store", "nanio"]


@contextmanager
def nanio(folder: Path) -> Iterator[str]:
    """A server of nanio 0.1.7 that keeps its data in a folder; its endpoint. It ignores conditions, knows no range from
    the end and refuses keys that end in a slash."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "nanio", "serve", "--data-dir", str(folder), "--host", "127.0.0.1"]
    keys = {"NANIO_ACCESS_KEY": KEY, "NANIO_SECRET_KEY": SECRET}
    with (folder / "nanio.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env={**os.environ, **keys}, stdout=log, stderr=log, cwd=folder
        )
    try:
        for _ in range(300):
            assert server.poll() is None, "nanio ended at its start"
            try:
                urlopen(f"http://127.0.0.1:{port}/", timeout=1)
            except HTTPError:  # it answers: who asks without keys is refused
                break
            except (URLError, OSError):
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@contextmanager
def careless_store(upstream: str) -> Iterator[tuple[str, list[list[str]]]]:
    """The endpoint of a store that takes a conditional put and ignores the condition, and what conditions it was asked
    for: [who, header], known when the block is left. A process of its own, as `flaky_store` is."""
    asked: list[list[str]] = []
    command = [sys.executable, "-m", "tests.weak_store", upstream]
    root = Path(__file__).parent.parent
    env = {**os.environ, **environment(upstream)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=env
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", asked
        finally:
            process.stdin.close()
            asked += json.loads(process.stdout.readline())


class _Careless(_Forwarder):
    """Conditions are signed and cannot be left out of what is passed on: what has one is written anew, without it."""

    wrong = Faults()
    client: ClassVar[Any]
    asked: ClassVar[set[tuple[str, str]]] = set()

    def _pass_on(self) -> None:
        conditions = {"if-none-match", "if-match"} & {name.lower() for name in self.headers}
        self.asked.update((self.headers["User-Agent"].partition("/")[0], name) for name in conditions)
        if self.command != "PUT" or not conditions:
            super()._pass_on()
            return
        bucket, _, key = unquote(self.path.partition("?")[0]).lstrip("/").partition("/")
        written = self.client.put_object(Bucket=bucket, Key=key, Body=b"".join(self._body()))
        self.send_response_only(200)
        self.send_header("ETag", written["ETag"])
        self.send_header("Content-Length", "0")
        self.end_headers()


def _serve(upstream: str) -> None:
    import boto3

    class Handler(_Careless):
        target = str(urlsplit(upstream).netloc)
        client = boto3.client("s3")

    serve(Handler, lambda: sorted(_Careless.asked))


if __name__ == "__main__":
    _serve(sys.argv[1])
