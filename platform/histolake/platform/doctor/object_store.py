"""An object store under examination: what Lance, Delta, Arrow and the lake itself ask of S3, tried with small objects.

Who asks what was seen by listening to them: commits of Lance and Delta and the lake's seals put with
`If-None-Match: *`; nobody puts with `If-Match`, nobody copies. Arrow uploads even small files in parts, marks folders
by empty objects whose key ends in a slash, and deletes many objects at once.
"""

from __future__ import annotations

import atexit
import email.utils
import os
import statistics
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from histolake.platform.doctor.deadline import Racers
from histolake.platform.doctor.diagnosis import Probe
from histolake.platform.doctor.race import race
from histolake.platform.storage import CLOCK_SLACK_S, Location

__all__ = ["ObjectStore"]

T = TypeVar("T")

TIMEOUT_S = 4.0  # of one request; less than a probe may take
TRIES = 4  # of a request that fails in passing
AGAIN_S = 1.0  # one that has failed for so long is not repeated
LATE_S = 0.75  # how long the losers of the race are waited for, at least
LINGER_S = 15.0  # how long the end of the process waits for what is removed in the background
REFUSED = (409, 412)


class ObjectStore:
    """A context: what was written goes when it is left."""

    def __init__(self, place: Location) -> None:
        self._place = place
        self._bucket, key = place.bucket_and_key()
        self._above = "/".join([*([key] if key else []), f"doctor-{uuid.uuid4().hex}"])
        self._prefix = self._above
        self._written: set[str] = set()  # keys
        self._racers: list[Racers] = []
        self._put_s = LATE_S / 10
        self._apart_s: list[float] = []  # the store's clock less ours
        self.server = ""

    def __enter__(self) -> ObjectStore:
        return self

    def __exit__(self, *_: object) -> None:
        if all(racers.wait(0) for racers in self._racers):
            self._remove()
            return
        # A loser that comes late must find its file, or it would write it after all.
        thread = threading.Thread(target=self._remove, daemon=True)
        thread.start()
        atexit.register(thread.join, LINGER_S)

    def probes(self) -> list[tuple[str, Callable[[], Probe]]]:
        """The questions, in their order; where the first fails the others make no sense."""
        return [
            ("reachable", self._reachable),
            ("read after write", self._read_after_write),
            ("ranges", self._ranges),
            ("listing", self._listing),
            ("folders", self._folders),
            ("parts", self._parts),
            ("deletion", self._deletion),
            ("clock", self._clock),
            ("latency", self._latency),
            ("conditional put", self._conditional_put),
            ("conditional replacement", self._conditional_replacement),
            ("race", self._race),
        ]

    # -- the questions --------------------------------------------------------------------------------------------

    def _reachable(self) -> Probe:
        data = os.urandom(512)
        self._listed("first")  # before the first put: some stores make a bucket that is not there
        self._put("first", data)
        same = self._get("first") == data
        gone = self._listed("first") == ["first"]
        self._client().delete_object(Bucket=self._bucket, Key=self._key("first"))
        gone = gone and self._listed("first") == []
        means = f"{self.server or 'A server without a name'} takes an object, gives it back, lists it and deletes it."
        if not same:
            means = "An object that was put came back with other bytes: do not use this store."
        elif not gone:
            means = (
                "The listing does not show an object that was put, or shows one that was deleted: use another store."
            )
        return Probe(probe="reachable", ok=same and gone, figure=self.server or None, limit=None, means=means)

    def _read_after_write(self) -> Probe:
        """Objects that are replaced while another thread reads them."""
        from botocore.exceptions import BotoCoreError, ClientError

        known = {bytes([65 + n]) * (3000 + 977 * n) for n in range(6)}
        versions = sorted(known)
        self._put("replaced", versions[0])
        stop, torn = threading.Event(), []

        def watch() -> None:
            while not stop.is_set():
                try:
                    if self._get("replaced") not in known:
                        torn.append(1)
                except (BotoCoreError, ClientError):
                    continue  # the other reads of this probe tell of it

        reader = threading.Thread(target=watch, daemon=True)
        reader.start()
        stale = 0
        try:
            for version in versions[1:]:
                self._put("replaced", version)
                stale += self._get("replaced") != version
        finally:
            stop.set()
            reader.join(TIMEOUT_S)
        means = "A replaced object reads whole, and new at once."
        if stale or torn:
            means = f"Of 5 reads after a replacement {stale} gave the old content, and {len(torn)} reads a mixture: "
            means += "leases and commits cannot be trusted there, use another store."
        return Probe(
            probe="read after write", ok=not stale and not torn, figure=f"{stale} stale, {len(torn)} torn",
            limit="0", means=means,
        )  # fmt: skip

    def _ranges(self) -> Probe:
        data = os.urandom(4096)
        self._put("bytes", data)
        asked = {
            "the first 100 bytes": ("bytes=0-99", data[:100]),
            "bytes from the middle": ("bytes=1000-1999", data[1000:2000]),
            "all from byte 4000 on": ("bytes=4000-", data[4000:]),
            "the last 100 bytes": ("bytes=-100", data[-100:]),
        }
        wrong = [what for what, (header, part) in asked.items() if not self._gives(header, part)]
        means = "Parts of an object come as they were asked for."
        if wrong:
            means = f"Asked for {' and '.join(wrong)}, the store gives something else or refuses: "
            means += "tables cannot be read reliably there, use another store."
        figure = f"{len(asked) - len(wrong)} of {len(asked)} right"
        return Probe(probe="ranges", ok=not wrong, figure=figure, limit="4 of 4 right", means=means)

    def _gives(self, header: str, part: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            answer = self._client().get_object(Bucket=self._bucket, Key=self._key("bytes"), Range=header)
        except ClientError as error:
            if self.is_fleeting(error):
                raise
            return False
        return bool(answer["Body"].read() == part and answer["ResponseMetadata"]["HTTPStatusCode"] == 206)

    def _listing(self) -> Probe:
        names = [f"list/{letter}" for letter in "abcde"]
        for name in reversed(names):
            self._put(name, b"x")
        pages: list[str] = []
        more: dict[str, str] = {}
        for _ in names:
            page = self._client().list_objects_v2(Bucket=self._bucket, Prefix=self._key("list/"), MaxKeys=2, **more)
            pages += [entry["Key"] for entry in page.get("Contents", [])]
            if not page.get("IsTruncated"):
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
        wrong = []
        if pages != [self._key(name) for name in names]:
            wrong.append("page by page")
        if self._listed("list/", after="list/b") != names[2:]:
            wrong.append("from a key on")
        means = "Objects are listed at once, in order, page by page, and from a key on."
        if wrong:
            means = f"Objects are not listed right {' nor '.join(wrong)}: versions would be missed, use another store."
        return Probe(probe="listing", ok=not wrong, figure=None, limit=None, means=means)

    def _folders(self) -> Probe:
        self._put("folder/", b"")
        listed = self._listed("folder/") == ["folder/"]
        means = "An empty object whose key ends in a slash is kept: so Arrow marks a folder."
        if not listed:
            means = (
                "An empty object whose key ends in a slash, as Arrow marks a folder, is not listed: use another store."
            )
        return Probe(probe="folders", ok=listed, figure=None, limit=None, means=means)

    def _parts(self) -> Probe:
        client, data = self._client(), os.urandom(300)
        where = {"Bucket": self._bucket, "Key": self._key("parts")}
        self._written.add(where["Key"])
        upload = client.create_multipart_upload(**where)["UploadId"]
        part = client.upload_part(**where, UploadId=upload, PartNumber=1, Body=data)
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)
        same = self._get("parts") == data
        means = "An object that is uploaded in parts comes back whole."
        if not same:
            means = "An object that was uploaded in parts came back with other bytes: do not use this store."
        return Probe(probe="parts", ok=same, figure=None, limit=None, means=means)

    def _deletion(self) -> Probe:
        for number in range(3):
            self._put(f"many/{number}", b"x")
        keys = [{"Key": self._key(f"many/{number}")} for number in range(3)]
        answer = self._client().delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})
        left = self._listed("many/")
        ok = not answer.get("Errors") and not left
        means = "Many objects are deleted in one request."
        if not ok:
            means = f"Of 3 objects deleted in one request {len(left)} are still there: vacuum and forget need it."
        return Probe(probe="deletion", ok=ok, figure=f"{len(left)} left", limit="0 left", means=means)

    def _clock(self) -> Probe:
        before_s = time.time()
        self._put("clock", b"x")
        answer = self._client().head_object(Bucket=self._bucket, Key=self._key("clock"))
        after_s = time.time()
        written_s = answer["LastModified"].timestamp()  # whole seconds
        apart = [_outside(written_s, before_s, after_s), *self._apart_s]
        worst_s = max(apart, key=abs)
        ok = abs(worst_s) < CLOCK_SLACK_S
        means = f"The store's clock and this machine's differ by {abs(worst_s):.0f} s."
        if not ok:
            means += " Vacuum would take fresh files for old ones, or leases for dead: set both clocks (NTP)."
        return Probe(probe="clock", ok=ok, figure=f"{worst_s:+.0f} s", limit=f"{CLOCK_SLACK_S:.0f} s", means=means)

    def _latency(self) -> Probe:
        data = os.urandom(4096)
        took: dict[str, list[float]] = {"put": [], "get": []}
        for _ in range(5):
            start_s = time.perf_counter()
            self._put("latency", data)
            took["put"].append(time.perf_counter() - start_s)
            start_s = time.perf_counter()
            self._get("latency")
            took["get"].append(time.perf_counter() - start_s)
        put_s, get_s = (statistics.median(took[verb]) for verb in ("put", "get"))
        self._put_s = put_s
        return Probe(
            probe="latency", ok=True, figure=f"put {put_s * 1000:.1f} ms, get {get_s * 1000:.1f} ms", limit=None,
            means="Medians of five requests of 4 KiB, one after another.",
        )  # fmt: skip

    def _conditional_put(self) -> Probe:
        first, second = self._create("once", b"first"), self._create("once", b"second")
        kept = self._get("once") == b"first"
        ok = first and not second and kept
        means = "A file is created only where there is none: the second put with `If-None-Match: *` was refused."
        if second or not kept:
            means = (
                "The second put with `If-None-Match: *` was not refused but replaced the first. Rows of several "
                "writers would be lost while each reports success: use another store."
            )
        elif not first:
            means = (
                "The first put with `If-None-Match: *` was refused though there was no such object: use another store."
            )
        return Probe(
            probe="conditional put", ok=ok, figure="refused" if not second else "ignored", limit="refused", means=means
        )

    def _conditional_replacement(self) -> Probe:
        from botocore.exceptions import ClientError

        old = self._put("matched", b"one")["ETag"]
        self._put("matched", b"two")
        try:
            self._client().put_object(Bucket=self._bucket, Key=self._key("matched"), Body=b"3", IfMatch=old)
            figure = "ignored"
        except ClientError as error:
            figure = "refused" if _status(error) in REFUSED else f"not understood ({_status(error)})"
        means = f"A put with `If-Match` and a stale ETag is {figure}; neither Lance nor Delta nor the lake asks for it."
        return Probe(probe="conditional replacement", ok=True, figure=figure, limit=None, means=means)

    def _race(self) -> Probe:
        found, self._racers = race("race", self._create, self._get, self._put_s, max(LATE_S, 10 * self._put_s))
        return found

    # -- requests -------------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        return self._place.s3_client(timeout_s=TIMEOUT_S)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _put(self, name: str, data: bytes, **condition: str) -> Any:
        self._written.add(self._key(name))
        before_s = time.time()
        put = partial(self._client().put_object, Bucket=self._bucket, Key=self._key(name), Body=data, **condition)
        answer = put() if condition else self._again(put)  # the outcome of one that failed is not known
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        self.server = headers.get("server", self.server)
        if told := email.utils.parsedate_to_datetime(headers["date"]) if "date" in headers else None:
            self._apart_s.append(_outside(told.timestamp(), before_s, time.time()))
        return answer

    def _get(self, name: str) -> bytes:
        key = self._key(name)

        def get() -> bytes:
            data: bytes = self._client().get_object(Bucket=self._bucket, Key=key)["Body"].read()
            return data

        return self._again(get)

    def _again(self, request: Callable[[], T]) -> T:
        """What a request gives that may be repeated; it is, where it failed in passing and did not take long."""
        start_s = time.monotonic()
        for _ in range(TRIES - 1):
            try:
                return request()
            except Exception as error:
                if not self.is_fleeting(error) or time.monotonic() - start_s > AGAIN_S:
                    raise
        return request()

    def _create(self, name: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._put(name, data, IfNoneMatch="*")
        except ClientError as error:
            if _status(error) in REFUSED:
                return False
            raise
        return True

    def _listed(self, prefix: str, after: str | None = None) -> list[str]:
        start = {} if after is None else {"StartAfter": self._key(after)}
        page = self._again(
            lambda: self._client().list_objects_v2(Bucket=self._bucket, Prefix=self._key(prefix), **start)
        )
        return [entry["Key"].removeprefix(self._key("")) for entry in page.get("Contents", [])]

    def _remove(self) -> None:
        """Delete all that was written, one by one: a store that fails may not know how to delete many at once."""
        from botocore.exceptions import BotoCoreError, ClientError

        for racers in self._racers:
            racers.wait(LINGER_S)
        for _ in range(2):  # the second time for what a passing failure left
            for key in sorted(self._written):
                try:
                    self._client().delete_object(Bucket=self._bucket, Key=key)
                except (BotoCoreError, ClientError):
                    continue  # the diagnosis has said what is wrong
                self._written.discard(key)

    def afresh(self) -> None:
        """Use other names from now on: what was asked before may still be carried out."""
        self._prefix = f"{self._above}/{uuid.uuid4().hex[:8]}"

    def is_fleeting(self, error: Exception) -> bool:
        """Whether the same request may well succeed the next time."""
        from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError

        if isinstance(error, ClientError):
            return _status(error) >= 500 or _status(error) == 429
        return isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError)

    def says(self, error: Exception) -> str:
        """One sentence: what was asked of whom, what came, what to do."""
        from botocore import exceptions as failures

        endpoint = self._place.store.resolved()["endpoint"]
        asked = f"{f'The store at {endpoint}' if endpoint else 'Amazon S3'} was asked for {self._place.uri}"
        if isinstance(error, failures.ClientError):
            said = error.response.get("Error", {})
            code, text = str(said.get("Code", _status(error))), str(said.get("Message", "")).rstrip(".")
            return f"{asked}, and {error.operation_name} was answered {code} ({text}); {_advice(code)}."
        if isinstance(error, failures.NoCredentialsError | failures.PartialCredentialsError):
            return f"{asked}, but there are no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        if isinstance(error, failures.ConnectionError | failures.HTTPClientError):
            came = "gave no answer in time" if "imeout" in type(error).__name__ else "nothing answers there"
            return f"{asked}, and {came}; start the server, or name another one in AWS_ENDPOINT_URL."
        return f"{asked}, and it failed: {error}."


def _outside(told_s: float, before_s: float, after_s: float) -> float:
    """How far a time in whole seconds lies outside of an interval."""
    if told_s > after_s:
        return told_s - after_s
    return min(0.0, told_s + 1.0 - before_s)


def _status(error: Any) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _advice(code: str) -> str:
    if code in ("NoSuchBucket",):
        return "make the bucket or name another"
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"):
        return "give keys that may read, write, list and delete there"
    return "use another store if it cannot do that"
