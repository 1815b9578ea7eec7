"""The files of an export, by name: on disk, in an object store, or on a web server.

An export that is not whole is found out here, before anyone trains on it: the manifest is written last, every shard
that it lists must be there with its size, and what is read has the SHA-256 that the manifest gives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from histolake.platform.errors import IntegrityError, StoreError, UsageError
from histolake.platform.export import Manifest
from histolake.platform.storage import Location

if TYPE_CHECKING:
    import httpx

__all__ = ["Shard", "ShardSet"]

MANIFEST = "manifest.json"
FORMAT, VERSION = "histolake-export", 1
TRIES = 5  # of one request to a web server
TIMEOUT_S = 60.0
ASKED_AT_ONCE = 8  # sizes of files on a web server


@dataclass(frozen=True)
class Shard:
    """A tar of samples, as the manifest lists it."""

    name: str
    rows: int
    size_bytes: int
    sha256: str


class _Files(Protocol):
    def read(self, name: str) -> bytes:
        """The whole file. Raises `FileNotFoundError`, or another `OSError`."""
        ...

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        """Bytes of those of the files that are there, None where nobody says."""
        ...


@dataclass(frozen=True)
class _InFolder:
    """On disk or in an object store."""

    folder: Location

    def read(self, name: str) -> bytes:
        return self.folder.join(name).read_bytes()

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        held = {entry.location.name: entry.size_bytes for entry in self.folder.entries(recursive=False)}
        return {name: held[name] for name in names if name in held}


class _AtUrl:
    """Below a URL; files need not be listed there. Threads may share it."""

    def __init__(self, url: str) -> None:
        import httpx

        self.url = url
        # Shards are compressed pictures: the server shall give their bytes, whose size is known, as they are.
        self._client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=True, headers={"accept-encoding": "identity"})

    def read(self, name: str) -> bytes:
        return self._ask("GET", name).content

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        with ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="ask-shards") as pool:
            return dict(found for found in pool.map(self._size, names) if found is not None)

    def _size(self, name: str) -> tuple[str, int | None] | None:
        try:
            said = self._ask("HEAD", name).headers.get("content-length")
        except FileNotFoundError:
            return None
        return name, int(said) if said else None

    def _ask(self, method: str, name: str) -> httpx.Response:
        import httpx

        failure: httpx.HTTPError | None = None
        for _ in range(TRIES):
            try:
                answer = self._client.request(method, f"{self.url}/{name}")
                if answer.status_code in (404, 410):
                    raise FileNotFoundError(f"{self.url}/{name}")
                return answer.raise_for_status()
            except httpx.HTTPStatusError as error:
                if answer.status_code < 500:  # asking again would not change it
                    raise OSError(str(error)) from error
                failure = error
            except httpx.TransportError as error:
                failure = error
        raise OSError(f"{self.url}/{name}: {failure}") from failure


class ShardSet:
    """A whole export: its manifest, and its shards read one by one and checked."""

    def __init__(self, export: str | Location) -> None:
        """`export` is the folder that `histolake export` wrote: a path, an `s3://` or an `http(s)://` URL. Raises
        `UsageError` where there is no finished export, and `IntegrityError` where some of it is gone."""
        self.uri = str(export).rstrip("/")
        at_url = self.uri.startswith(("http://", "https://"))
        self._files: _Files = _AtUrl(self.uri) if at_url else _InFolder(Location.parse(export))
        self.manifest = self._read_manifest()
        self.shards = [
            Shard(each["name"], each["rows"], each["bytes"], each["sha256"]) for each in self.manifest.shards
        ]
        self._require_whole()
        self._checked: set[str] = set()

    def samples(self, shard: Shard, data: bytes) -> Iterator[dict[str, Any]]:
        """The samples of a shard's bytes, in its order, as webdataset gives them: `__key__`, `jpg`, `txt`, `json`."""
        from io import BytesIO

        from webdataset.tariterators import group_by_keys, tar_file_expander

        rows = 0
        for sample in group_by_keys(tar_file_expander([{"url": shard.name, "stream": BytesIO(data)}])):
            rows += 1
            yield sample
        if rows != shard.rows:
            raise IntegrityError(f"{shard.name} of {self.uri} holds {rows} samples, its manifest says {shard.rows}.")

    def read(self, shard: Shard) -> bytes:
        """The bytes of a shard; its SHA-256 is taken the first time."""
        try:
            data = self._files.read(shard.name)
        except FileNotFoundError as error:
            raise IntegrityError(f"{shard.name} of {self.uri} is gone; export again under another name.") from error
        except OSError as error:
            raise StoreError(f"{shard.name} of {self.uri} could not be read ({error}).") from error
        if shard.name not in self._checked:
            if hashlib.sha256(data).hexdigest() != shard.sha256:
                raise IntegrityError(
                    f"{shard.name} of {self.uri} is not the file that its manifest describes (another SHA-256); "
                    "copy it again from where it was exported."
                )
            self._checked.add(shard.name)
        return data

    def _read_manifest(self) -> Manifest:
        try:
            found = json.loads(self._files.read(MANIFEST))
        except FileNotFoundError as error:
            raise UsageError(
                f"{self.uri} holds no {MANIFEST}, so no export was finished there; "
                "name the folder that `histolake export` wrote."
            ) from error
        except OSError as error:
            raise StoreError(f"{self.uri}/{MANIFEST} could not be read ({error}).") from error
        except ValueError as error:
            raise IntegrityError(f"{self.uri}/{MANIFEST} is no JSON ({error}); export again.") from error
        if not isinstance(found, dict) or (found.get("format"), found.get("format_version")) != (FORMAT, VERSION):
            raise UsageError(f"{self.uri}/{MANIFEST} is not of a histolake export of version {VERSION}.")
        return Manifest(**{each.name: found[each.name] for each in fields(Manifest) if each.name in found})

    def _require_whole(self) -> None:
        sizes = self._files.sizes([shard.name for shard in self.shards])
        gone = [shard.name for shard in self.shards if shard.name not in sizes]
        other = [shard.name for shard in self.shards if sizes.get(shard.name) not in (None, shard.size_bytes)]
        rows = sum(shard.rows for shard in self.shards)
        found = []
        if gone:
            found.append(f"{len(gone)} of its {len(self.shards)} shards are gone ({gone[0]} is the first)")
        if other:
            found.append(f"{len(other)} have another size than its manifest says ({other[0]} is the first)")
        if rows != self.manifest.pairs:
            found.append(f"its shards hold {rows} pairs and it has {self.manifest.pairs}")
        if found:
            raise IntegrityError(f"The export at {self.uri} is not whole: {', '.join(found)}; copy or make it again.")
