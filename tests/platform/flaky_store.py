"""A store that fails: an HTTP forwarder on loopback in front of a real one.

It loses requests before they reach the store, or the answers of requests that the store has carried out, or cuts an
answer in the middle. The client sees an error of the server, or a connection that ends. Requests are passed on as they
come, `Host` and signature too, so that the store behind accepts them.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

__all__ = ["Faults", "flaky_store"]

BLOCK = 1 << 16
# Of one connection, not of the message.
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection", "expect"}


@dataclass(kw_only=True)
class Faults:
    """How often what goes wrong. Half of the failures are answers of the server, half are cut connections."""

    refuse: float = 0.0  # share of all requests that never reach the store
    cut: float = 0.0  # share of all answers to reads that end in the middle
    lose: float = 0.0  # share of requests that write, which the store carries out and the client sees fail
    lose_commits: float = 0.0  # the same, of those that create a file only if it is absent: each is a commit
    lose_completions: int = 0  # of so many transfers in parts the end is carried out and seen to fail
    seed: int = 0

    def __post_init__(self) -> None:
        self.happened: Counter[str] = Counter()  # known when the block is left
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def draw(self, method: str, path: str, headers: Any) -> tuple[str, bool]:
        """What goes wrong with a request ("" for nothing), and whether the connection is cut rather than answered."""
        commit = method == "PUT" and headers.get("If-None-Match") is not None
        completion = method == "POST" and "uploadId=" in path
        writes = method in ("PUT", "POST", "DELETE")
        with self._lock:
            chances = [self._random.random() for _ in range(5)]
            certain = completion and self.happened["lost completion"] < self.lose_completions
        fault = ""
        if chances[0] < self.refuse:
            fault = "refused"
        elif commit and chances[1] < self.lose_commits:
            fault = "lost commit"
        elif certain or (writes and chances[2] < self.lose):
            fault = "lost completion" if completion else "lost"
        elif method == "GET" and chances[3] < self.cut:
            fault = "torn"
        with self._lock:
            self.happened[fault or "passed"] += 1
        return fault, chances[4] < 0.5


@contextmanager
def flaky_store(upstream: str, faults: Faults) -> Iterator[str]:
    """The endpoint of a store that has these faults, for the length of the block.

    It is a process of its own: the libraries hold Python's lock while they wait for an answer.
    """
    command = [sys.executable, "-P", __file__, upstream, json.dumps(asdict(faults))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            faults.happened = Counter(json.loads(process.stdout.readline()))


def _serve(upstream: str, faults: Faults) -> None:
    class Handler(_Forwarder):
        target = str(urlsplit(upstream).netloc)
        wrong = faults

    serve(Handler, lambda: faults.happened)


def serve(handler: type[BaseHTTPRequestHandler], happened: Callable[[], Any]) -> None:
    """Tell the port, serve until the standard input ends, tell what happened."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that goes away in the middle is none of ours."""

    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
    print(json.dumps(happened()), flush=True)


class _Forwarder(BaseHTTPRequestHandler):
    """Passes requests on, one connection to the store a connection of the client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    target: ClassVar[str]
    wrong: ClassVar[Faults]
    _upstream: http.client.HTTPConnection | None = None

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def setup(self) -> None:
        super().setup()
        self._upstream = None

    def finish(self) -> None:
        super().finish()
        if self._upstream is not None:
            self._upstream.close()

    def do_GET(self) -> None:
        self._pass_on()

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _pass_on(self) -> None:
        fault, cut = self.wrong.draw(self.command, self.path, self.headers)
        if fault == "refused":
            for _ in self._body():
                pass
            self._fail(503, "SlowDown", cut=cut)
            return
        answer = self._ask()
        if fault.startswith("lost"):
            answer.read()
            self._fail(500, "InternalError", cut=cut)
            return
        self._answer(answer, torn=fault == "torn")

    def _ask(self) -> http.client.HTTPResponse:
        if self._upstream is None:
            self._upstream = http.client.HTTPConnection(self.target, timeout=60)
        asked = self._upstream
        asked.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP:
                asked.putheader(name, value)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        if chunked:
            asked.putheader("Transfer-Encoding", "chunked")
        asked.endheaders()
        for block in self._body():
            asked.send(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
        if chunked:
            asked.send(b"0\r\n\r\n")
        return asked.getresponse()

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            block = self.rfile.read(min(BLOCK, left))
            if not block:
                return
            left -= len(block)
            yield block

    def _answer(self, answer: http.client.HTTPResponse, *, torn: bool) -> None:
        length = answer.getheader("Content-Length")
        empty = self.command == "HEAD" or answer.status in (204, 304)
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                self.send_header(name, value)
        if length is None and not empty:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        left = int(length or 0) // 2 if torn else None  # bytes to let through
        while not empty and (block := answer.read(BLOCK)):
            if left is not None:
                self.wfile.write(block[:left] if length is not None else b"")
                self._cut()
                return
            self.wfile.write(block if length is not None else b"%x\r\n%s\r\n" % (len(block), block))
        if empty:
            answer.read()
        elif length is None:
            self.wfile.write(b"0\r\n\r\n")

    def _fail(self, status: int, code: str, *, cut: bool) -> None:
        if cut:
            self._cut()
            return
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>out of order</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    _serve(sys.argv[1], Faults(**json.loads(sys.argv[2])))
