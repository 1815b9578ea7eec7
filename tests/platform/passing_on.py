"""A server that passes every request on to an object store, and tells what was asked.

    python -P passing_on.py UPSTREAM [careless]

Prints its endpoint, then one line of JSON a request: method, path, headers. It is a process of its own because calls of
deltalake hold Python's lock while they wait for an answer. A careless one makes of a sound store one that takes a
conditional put and ignores the condition. (It writes such an object itself: the condition is signed and cannot be left
out of what is passed on.) The store's keys are in the standard variables.
"""

from __future__ import annotations

import http.client
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import boto3

# Between two neighbours; not passed on.
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "expect"}


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    writer: Any = None  # a client of the store, where conditions are to be ignored

    def answer(self) -> None:
        """Ask the store the same, and give its answer."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        print(json.dumps([self.command, self.path, headers]) + "\n", end="", flush=True)
        body = self._body(headers)
        if self.writer is not None and self.command == "PUT" and "if-none-match" in headers:
            self._write(body)
            return
        passed = {name: value for name, value in headers.items() if name not in HOP_BY_HOP}
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        try:
            connection.request(self.command, self.path, body=body, headers=passed)
            got = connection.getresponse()
            data = got.read()
        finally:
            connection.close()
        self.send_response_only(got.status)
        for name, value in got.getheaders():
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        of_a_head = got.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", of_a_head or str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _write(self, body: bytes) -> None:
        bucket, _, key = unquote(self.path.partition("?")[0]).lstrip("/").partition("/")
        written = self.writer.put_object(Bucket=bucket, Key=key, Body=body)
        self.send_response_only(200)
        self.send_header("ETag", written["ETag"])
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on stderr."""


if __name__ == "__main__":
    Handler.upstream = urlsplit(sys.argv[1]).netloc
    if sys.argv[2:] == ["careless"]:
        Handler.writer = boto3.client("s3", endpoint_url=sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
