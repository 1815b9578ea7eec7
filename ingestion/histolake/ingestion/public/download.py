"""One file over HTTP: taken up again where it broke off, checked against its checksum, in place only when it is whole.

While a file is on its way it is `NAME.part`, with `NAME.part.tag` beside it (what the server calls this version of the
file). A download that breaks off goes on from there, in the same call or in a later one: with a Range request that the
server answers with the rest (206), with everything (200: begun anew), or not at all (416). What does not have the
checksum that it must have is removed and refused.

httpx, which the client of the service uses too, does the talking. pooch, the library that others keep such registries
with, checks sums but begins a broken download anew, which for images of hundreds of megabytes is no use.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from histolake.ingestion.public.catalogue import PublicSettings
from histolake.platform.errors import DownloadError

if TYPE_CHECKING:
    import httpx

__all__ = ["Fetched", "Stopped", "connect", "download", "sha256_of"]

BLOCK_BYTES = 1 << 20
OK, PARTIAL, RANGE_REFUSED = 200, 206, 416


class Stopped(Exception):  # noqa: N818 - it is no error: whoever waits has asked for it
    """The download was asked to stop. What has come stays in the `.part` file."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A whole file, as it was found."""

    sha256: str
    size_bytes: int


def connect(settings: PublicSettings) -> httpx.Client:
    """A client for downloads. It takes proxies from the environment, as other tools do."""
    import httpx

    from histolake.platform import __version__

    return httpx.Client(
        timeout=httpx.Timeout(settings.timeout_s, connect=min(settings.timeout_s, 10.0)),
        follow_redirects=True,
        # The bytes as they lie there: a packed answer would have other lengths and other ranges.
        headers={"User-Agent": f"histolake/{__version__}", "Accept-Encoding": "identity"},
    )


def sha256_of(file: Path) -> str:
    """The checksum of a file, read in blocks."""
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            total.update(block)
    return total.hexdigest()


def download(
    client: httpx.Client,
    url: str,
    target: Path,
    settings: PublicSettings,
    *,
    sha256: str | None = None,
    size_bytes: int | None = None,
    stop: threading.Event | None = None,
    tell: Callable[[int, int | None], None] = lambda *_: None,
) -> Fetched:
    """Fetch a file to `target`. `tell(bytes there, bytes in all)` hears how far it is.

    `sha256` and `size_bytes` are what the file must have; None is not known. Raises `DownloadError` where the network
    or the server fails for good or the file is another one, `Stopped` once `stop` is set.
    """
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    one = _Transfer(client, url, part, settings, stop or threading.Event(), tell, sha256, size_bytes)
    taken_up = one.clear_unless_resumable()
    found = one.run()
    if sha256 is not None and found.sha256 != sha256 and taken_up:
        # What an earlier run left may be of another version of the file: once more, from its first byte.
        one.discard()
        found = one.run()
    if sha256 is not None and found.sha256 != sha256:
        one.discard()
        raise DownloadError(
            f"{url} has the sha256 {found.sha256}, but {sha256} was expected; it was not kept. "
            "The file there has changed, or something between there and here changes it."
        )
    part.replace(target)
    one.tag.unlink(missing_ok=True)
    return found


class _Transfer:
    """The state of one file on its way."""

    def __init__(
        self,
        client: httpx.Client,
        url: str,
        part: Path,
        settings: PublicSettings,
        stop: threading.Event,
        tell: Callable[[int, int | None], None],
        sha256: str | None,
        size_bytes: int | None,
    ) -> None:
        self.client, self.url, self.part, self.settings, self.stop, self.tell = client, url, part, settings, stop, tell
        self.known = sha256 is not None
        self.answered = False
        self.problem = "the connection ended early"
        self.size_bytes = size_bytes
        self.tag = part.with_name(part.name + ".tag")

    def discard(self) -> None:
        """Remove what has come."""
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)

    def clear_unless_resumable(self) -> bool:
        """Whether an earlier run's part is there to be taken up.

        Only where its end can be judged: by a checksum, or by the server, which is asked whether the version is still
        the same. Otherwise two versions could be joined and nobody would see it.
        """
        if self.part.is_file() and self.part.stat().st_size and (self.known or self.tag.is_file()):
            return True
        self.discard()
        return False

    def run(self) -> Fetched:
        """Until the file is whole; a broken connection is taken up again, `retries` times without a byte between."""
        import httpx

        failures = 0
        while True:
            before = self._size()
            try:
                if self._once():
                    return Fetched(sha256=sha256_of(self.part), size_bytes=self._size())
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                self.problem = str(error) or "no answer"
                if not self.answered:  # there is no network, or no such server: waiting does not help
                    raise DownloadError(_unreachable(self.url, self.problem, self._size())) from error
            except httpx.TransportError as error:
                self.problem = str(error) or type(error).__name__
            failures = 1 if self._size() > before else failures + 1
            if failures > self.settings.retries:
                raise DownloadError(_unreachable(self.url, self.problem, self._size()))
            if self.stop.wait(self.settings.retry_wait_s * 2 ** (failures - 1)):
                raise Stopped(self.url)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _once(self) -> bool:
        """One request; whether the file is whole after it."""
        start = self._size()
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and self.tag.is_file():
            headers["If-Range"] = self.tag.read_text()
        with self.client.stream("GET", self.url, headers=headers) as answer:
            code = answer.status_code
            self.answered = True
            if code == RANGE_REFUSED:
                if _total(answer) == start:  # everything had come
                    return True
                self.discard()
                return False
            if code >= 500:
                # A moment's trouble of the server: like a broken connection.
                self.problem = f"the server answered {code} {answer.reason_phrase}"
                return False
            if code not in (OK, PARTIAL) or (code == PARTIAL and not start):
                raise DownloadError(f"{self.url} was answered with {code} {answer.reason_phrase}.{_hint(code)}")
            if code == PARTIAL and _first(answer) != start:
                self.discard()
                return False
            if code == OK:
                start = 0
            total = _total(answer)
            self._check_size(total)
            self._remember(answer)
            return self._receive(answer, start, total)

    def _check_size(self, total: int | None) -> None:
        if self.size_bytes is not None and total is not None and total != self.size_bytes:
            self.discard()
            raise DownloadError(
                f"{self.url} has {total} bytes, but {self.size_bytes} were expected; it was not fetched. "
                "The file there has changed."
            )

    def _remember(self, answer: httpx.Response) -> None:
        """Keep what the server calls this version. A weak tag says nothing of single bytes and cannot be asked for."""
        tag = answer.headers.get("ETag", "")
        version = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
        if version:
            self.tag.write_text(version)
        else:
            self.tag.unlink(missing_ok=True)

    def _receive(self, answer: httpx.Response, start: int, total: int | None) -> bool:
        with self.part.open("ab" if start else "wb", buffering=0) as out:
            done = start
            self.tell(done, total)
            for block in answer.iter_raw():
                _write_all(out, block)
                done += len(block)
                self.tell(done, total)
                if self.stop.is_set():
                    raise Stopped(self.url)
        return total is None or done == total


def _write_all(out: BinaryIO, block: bytes) -> None:
    """Write a block whole: an unbuffered file may take a part of it."""
    rest = memoryview(block)
    while rest:
        rest = rest[out.write(rest) :]


def _first(answer: httpx.Response) -> int | None:
    """The first byte of a 206, from `Content-Range: bytes 5-9/10`."""
    first = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None


def _total(answer: httpx.Response) -> int | None:
    """The bytes of the whole file, as the server says."""
    if answer.status_code == OK:
        length = answer.headers.get("Content-Length", "")
    else:
        length = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(length) if length.isdigit() else None


def _hint(code: int) -> str:
    if code in (401, 403):
        return " The server, or a proxy on the way, does not let it through."
    return " It is not there (any more); is public.base_url right?" if code in (404, 410) else ""


def _unreachable(url: str, problem: str, there: int) -> str:
    kept = f" What has come ({there} bytes) is kept and taken up next time." if there else ""
    return (
        f"{url} cannot be fetched: {problem}.{kept} Without internet access, name a folder of sections with --from, "
        "or a mirror in public.base_url."
    )
