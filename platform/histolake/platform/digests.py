"""The digest of what a file or a folder holds, taken once for as long as nothing of it changes.

An ingest asks for the digests of all its sources, also of those that the lake holds already, and a cohort is
terabytes. So a digest is kept in this machine's cache under the file's **stamp**: on disk its device, inode, size and
times of change (`ctime` too, which no program sets back), in a store its ETag, size and time. A folder's stamp is that
of all its files. Whatever rewrites a file gives it another stamp.

One gap is left: a file that is written twice within the tick of a clock has one stamp for two contents. So a digest is
kept only if the file was at rest for `AT_REST_S` before it was read and has the same stamp after. An entry is a file of
its own, written aside and renamed, so processes may share the cache; entries that were not used for long go when there
are too many.
"""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from histolake.platform.cache import cache_folder, use
from histolake.platform.storage import Location

__all__ = ["Stamp", "content_digest", "stamp"]

BLOCK_BYTES = 8 << 20
AT_REST_S = 2.0
MOST_IN_SHELF = 256  # entries in one of 256 folders: 65,000 files of sources, 4 KB each on most disks


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What tells a state of a file from every other."""

    text: str
    age_s: float  # how long ago the file was changed, by the clock of whoever keeps it; a folder's youngest file counts


def content_digest(location: Location, *, rehash: bool = False) -> bytes:
    """SHA-256 of a file, or over the paths and digests of all files of a folder; 32 bytes.

    With `rehash` everything is read, whatever is known. Raises `OSError`.
    """
    before = stamp(location)
    entry = _entry(location, before)
    if not rehash and (known := _known(entry)) is not None:
        return known
    found = _read(location)
    if before.age_s > AT_REST_S and stamp(location).text == before.text:
        _keep(entry, found)
    return found


def stamp(location: Location) -> Stamp:
    """The stamp of a file or a folder as it is now. Raises `OSError`."""
    files = list(_stamps(location))
    if not files:
        raise FileNotFoundError(f"There is nothing at {location}.")
    if files[0][0] == "":
        return files[0][1]
    total = hashlib.sha256()
    for name, one in sorted(files, key=lambda file: file[0]):
        total.update(f"\0{name}\0{one.text}".encode())
    return Stamp(text=f"folder {total.hexdigest()}", age_s=min(one.age_s for _, one in files))


def _stamps(location: Location) -> Iterator[tuple[str, Stamp]]:
    """The path below a folder ("" for a file) and the stamp of each file."""
    if location.is_remote:
        yield from _stamps_in_store(location)
    elif location.is_dir():
        for entry in location.entries():
            yield entry.location.uri[len(location.uri) :], _stamp_on_disk(Path(entry.location.uri).stat())
    else:
        yield "", _stamp_on_disk(Path(location.uri).stat())


def _stamp_on_disk(found: os.stat_result) -> Stamp:
    text = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    return Stamp(text=text, age_s=time.time() - max(found.st_mtime, found.st_ctime))


def _stamps_in_store(location: Location) -> Iterator[tuple[str, Stamp]]:
    """One request for a file, and one for a thousand files of a folder."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = location.uri.removeprefix("s3://").partition("/")
    client = location.s3_client()
    try:
        try:
            found = client.head_object(Bucket=bucket, Key=key)
            yield "", _stamp_in_store(found, found["ContentLength"], _now(found))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{key}/"):
                for found in page.get("Contents", ()):
                    yield found["Key"][len(key) :], _stamp_in_store(found, found["Size"], _now(page))
    except (BotoCoreError, ClientError) as error:
        raise OSError(f"{location}: {error}") from error


def _stamp_in_store(found: Mapping[str, Any], size: int, now: datetime) -> Stamp:
    text = f"{found['ETag']} {size} {found['LastModified'].isoformat()}"
    return Stamp(text=text, age_s=(now - found["LastModified"]).total_seconds())


def _now(answer: Mapping[str, Any]) -> datetime:
    """The store's clock."""
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


def _read(location: Location) -> bytes:
    content = hashlib.sha256()
    if location.is_dir():
        for entry in location.entries():
            content.update(f"\0{entry.location.uri[len(location.uri) :]}\0".encode())
            content.update(_read(entry.location))
        return content.digest()
    filesystem, path = location.filesystem()
    with filesystem.open_input_stream(path, compression=None) as stream:
        while block := stream.read(BLOCK_BYTES):
            content.update(block)
    return content.digest()


def _entry(location: Location, state: Stamp) -> Path:
    endpoint = location.store.resolved()["endpoint"] if location.is_remote else ""
    key = hashlib.sha256(f"{endpoint}\0{location.uri}\0{state.text}".encode()).hexdigest()
    return cache_folder("digests", make=False) / key[:2] / key[2:34]


def _known(entry: Path) -> bytes | None:
    """What an entry says; None where there is none, or not a whole one."""
    with suppress(OSError, ValueError):
        if use(entry):
            known = bytes.fromhex(entry.read_text())
            return known if len(known) == hashlib.sha256().digest_size else None
    return None


def _keep(entry: Path, digest: bytes) -> None:
    """Keep a digest. A cache that cannot be written to costs time and nothing else."""
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, prefix=".writing-", delete=False) as part:
            part.write(digest.hex())
        Path(part.name).replace(entry)
        shelf = list(entry.parent.iterdir())
        if len(shelf) > MOST_IN_SHELF:
            _thin(shelf)


def _thin(shelf: list[Path]) -> None:
    used = []
    for path in shelf:
        with suppress(FileNotFoundError):  # another process thins too
            used.append((path.stat().st_mtime, random.random(), path))
    for _, _, path in sorted(used)[: len(used) // 2]:
        path.unlink(missing_ok=True)
