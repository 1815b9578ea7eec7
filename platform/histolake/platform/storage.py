"""URIs, credentials and file systems: the one place that touches them.

A `Location` is a place on disk (`/data/lake`, `file:///data/lake`) or in an object store (`s3://bucket/lake`). Lance,
Delta and Arrow each want credentials under names of their own; they ask here. Standard AWS variables are honoured
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`), and settings of
the section `store` override them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from histolake.platform.cache import cache_folder, trim, use
from histolake.platform.errors import LocationError

__all__ = ["CLOCK_SLACK_S", "Entry", "Location", "StoreSettings"]

# Clocks of machines and object stores differ: a file is taken for older only by more than this.
CLOCK_SLACK_S = 60.0

COPY_BYTES = 8 << 20
STORE_TRIES = 10  # of one request; the libraries' own three are too few for a store that fails one in twenty
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # what file systems without links say
PART_PREFIX = ".writing-"  # of a file that is about to get its name
FILE_TRIES = 5  # of a whole file whose transfer broke off
MOST_CONNECTIONS = 64  # of an impatient client


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """How to reach an object store. Empty values fall back on the standard AWS variables."""

    endpoint: str | None = None  # URL of an S3 server other than Amazon's
    region: str | None = None
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    session_token: SecretStr | None = None
    cache_gb: float = 50.0  # GB of copies of remote files that this machine keeps
    sole_writer: bool = False  # this process alone writes to lakes on a store that does not keep writers apart

    def resolved(self) -> dict[str, str]:
        """Endpoint, region and keys as plain text, each from the settings or else from the standard variable."""

        def pick(value: SecretStr | str | None, *names: str) -> str:
            if value is not None:
                return value.get_secret_value() if isinstance(value, SecretStr) else value
            return next((os.environ[name] for name in names if os.environ.get(name)), "")

        return {
            "endpoint": pick(self.endpoint, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            "region": pick(self.region, "AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1",
            "access_key": pick(self.access_key, "AWS_ACCESS_KEY_ID"),
            "secret_key": pick(self.secret_key, "AWS_SECRET_ACCESS_KEY"),
            "session_token": pick(self.session_token, "AWS_SESSION_TOKEN"),
        }


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file below a location."""

    location: Location
    size_bytes: int
    modified_s: float  # seconds since the epoch


@dataclass(frozen=True)
class Location:
    """A file or folder, on disk or in an object store. Cheap, immutable, and safe to send to a worker."""

    uri: str
    store: StoreSettings = field(default_factory=StoreSettings, repr=False, compare=False)

    @classmethod
    def parse(cls, uri: str | Path | Location, store: StoreSettings | None = None) -> Location:
        """Read `/path`, `path`, `file:///path` or `s3://bucket/key`; raises `LocationError` on any other scheme."""
        if isinstance(uri, Location):
            return uri
        text = str(uri)
        parts = urlsplit(text)
        if parts.scheme == "s3":
            if not parts.netloc:
                raise LocationError(f"{text!r} names no bucket; write s3://bucket/path.")
            return cls(f"s3://{parts.netloc}/{parts.path.strip('/')}".rstrip("/"), store or _default_store())
        if parts.scheme == "file":
            return cls(str(Path(unquote(parts.path)).resolve()), store or _default_store())
        if parts.scheme and "://" in text:
            raise LocationError(f"{text!r} has the scheme {parts.scheme}://; use a path, file:// or s3://.")
        if not text:
            raise LocationError("An empty location was given; name a path, a file:// or an s3:// URI.")
        return cls(str(Path(text).expanduser().resolve()), store or _default_store())

    @property
    def is_remote(self) -> bool:
        """Whether this lies in an object store."""
        return self.uri.startswith("s3://")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        """The last ending, lower case, with its dot; "" where there is none."""
        return Path(self.name).suffix.lower()

    def join(self, *parts: str) -> Location:
        """The location below this one."""
        return Location("/".join([self.uri.rstrip("/"), *(part.strip("/") for part in parts)]), self.store)

    def parent(self) -> Location:
        """The folder this lies in."""
        return Location(self.uri.rstrip("/").rsplit("/", 1)[0] or "/", self.store)

    # -- what the libraries want to know -------------------------------------------------------------------------

    def filesystem(self) -> tuple[Any, str]:
        """A `pyarrow.fs` file system and the path in it."""
        if not self.is_remote:
            return _local_filesystem(), self.uri
        return _s3_filesystem(tuple(sorted(self.store.resolved().items()))), self.uri.removeprefix("s3://")

    def lance_options(self) -> dict[str, str] | None:
        """Storage options for Lance; None on disk."""
        return self._object_store_options() if self.is_remote else None

    def delta_options(self) -> dict[str, str] | None:
        """Storage options for Delta; None on disk."""
        if not self.is_remote:
            return None
        return {key.upper(): value for key, value in self._object_store_options().items()}

    def _object_store_options(self) -> dict[str, str]:
        known = self.store.resolved()
        options = {"aws_region": known["region"]}
        if known["endpoint"]:
            key = "aws_endpoint_url"
            options |= {key: known["endpoint"], "aws_endpoint": known["endpoint"]}
            if known["endpoint"].startswith("http://"):
                options |= {"allow_http": "true", "aws_allow_http": "true"}
        for name, option in (
            ("access_key", "aws_access_key_id"),
            ("secret_key", "aws_secret_access_key"),
            ("session_token", "aws_session_token"),
        ):
            if known[name]:
                options[option] = known[name]
        return options

    def s3_client(self, *, timeout_s: float | None = None) -> Any:
        """A boto3 client for this location's store; with a timeout (seconds), one that asks once and does not wait
        longer for a connection or for an answer."""
        return _s3_client(tuple(sorted(self.store.resolved().items())), timeout_s)

    def bucket_and_key(self) -> tuple[str, str]:
        """The bucket of a place in an object store, and the key in it ("" for the bucket itself)."""
        bucket, _, key = self.uri.removeprefix("s3://").partition("/")
        return bucket, key

    def zarr_store(self) -> Any:
        """A store for zarr to read groups and arrays from."""
        from zarr.storage import FsspecStore, LocalStore

        if not self.is_remote:
            return LocalStore(self.uri, read_only=True)
        filesystem, path = self.filesystem()
        return FsspecStore(_asynchronous(filesystem), read_only=True, path=path)

    # -- files ----------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether a file or a folder with something in it is here."""
        from pyarrow.fs import FileType

        filesystem, path = self.filesystem()
        return filesystem.get_file_info(path).type != FileType.NotFound

    def is_file(self) -> bool:
        """Whether a file is here."""
        from pyarrow.fs import FileType

        filesystem, path = self.filesystem()
        return filesystem.get_file_info(path).type == FileType.File

    def is_dir(self) -> bool:
        """Whether a folder is here."""
        from pyarrow.fs import FileType

        filesystem, path = self.filesystem()
        return filesystem.get_file_info(path).type == FileType.Directory

    def read_bytes(self) -> bytes:
        """The whole file, as it was at one moment. Raises `FileNotFoundError`, or another `OSError`.

        Arrow would ask a store for the size first and then for so many bytes: of a file that is replaced in between it
        gives the beginning of the new one. One request gives one file.
        """
        if not self.is_remote:
            return Path(self.uri).read_bytes()
        from botocore.exceptions import BotoCoreError

        failure: Exception | None = None
        for _ in range(FILE_TRIES):
            answer = self._ask("get_object")
            try:
                body: bytes = answer["Body"].read()
            except BotoCoreError as error:  # the connection ended in the middle of the file
                failure = error
                continue
            return body
        raise OSError(f"{self.uri}: {failure}") from failure

    def _ask(self, operation: str, **arguments: Any) -> Any:
        """One operation of the store on the object here (or on a bucket). Raises `FileNotFoundError`, `FileExistsError`
        where a condition did not hold, or another `OSError`."""
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, key = self.bucket_and_key()
        place = {"Bucket": bucket, "Key": key} if key else {"Bucket": bucket}
        try:
            return getattr(self.s3_client(), operation)(**place, **arguments)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            kind = {404: FileNotFoundError, 412: FileExistsError}.get(status, OSError)
            raise kind(f"{self.uri}: {error}") from error
        except BotoCoreError as error:
            raise OSError(f"{self.uri}: {error}") from error

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file, making its folder; the new content appears at once or not at all."""
        if self.is_remote:
            self._ask("put_object", Body=data)
            return
        part = self._part(data)
        part.replace(self.uri)

    def _part(self, data: bytes) -> Path:
        """A file with a name of its own in the folder of this one, which is made."""
        folder = Path(self.uri).parent
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{PART_PREFIX}{uuid.uuid4().hex}"
        part.write_bytes(data)
        return part

    def upload(self, source: Path) -> None:
        """Copy a file of this machine to here, block by block; in a store it appears at once or not at all."""
        filesystem, path = self.filesystem()
        failure: OSError | None = None
        for _ in range(FILE_TRIES):
            try:
                with source.open("rb") as stream, filesystem.open_output_stream(path) as out:
                    while block := stream.read(COPY_BYTES):
                        out.write(block)
            except OSError as error:  # a transfer in parts cannot be taken up again once its end is in doubt
                failure = error
                continue
            return
        raise OSError(f"{source.name} could not be copied to {self.uri}: {failure}") from failure

    def download(self, target: Path) -> None:
        """Copy this file to a path on this machine, block by block."""
        filesystem, path = self.filesystem()
        with filesystem.open_input_stream(path, compression=None) as stream, target.open("wb") as out:
            while block := stream.read(COPY_BYTES):
                out.write(block)

    @contextmanager
    def borrowed(self) -> Iterator[Path]:
        """A path on this machine with the content: the file itself, or a copy of a remote one that goes with the
        block. What was opened inside may be read on after it."""
        if not self.is_remote:
            yield Path(self.uri)
            return
        with tempfile.TemporaryDirectory(prefix="histolake-") as folder:
            copy = Path(folder) / self.name
            self.download(copy)
            yield copy

    def create(self, data: bytes) -> bool:
        """Write the file only if there is none; False if another writer was first. Atomic on disk and on S3.

        Give it data that no other writer would write: a store may carry a request out and fail to say so, and then only
        the content tells who was first. Raises `OSError` where the store gives no answer.
        """
        if not self.is_remote:
            return self._create_on_disk(data)
        failure: OSError | None = None
        for _ in range(FILE_TRIES):
            try:
                self._ask("put_object", Body=data, IfNoneMatch="*")
                return True
            except OSError as error:
                failure = error
            try:
                return self.read_bytes() == data
            except FileNotFoundError:  # it was not carried out, or two writers were in each other's way
                continue
        raise OSError(f"{self.uri} could not be created: {failure}") from failure

    def _create_on_disk(self, data: bytes) -> bool:
        part = self._part(data)
        try:
            Path(self.uri).hardlink_to(part)  # with its content from the first moment
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_by_name(Path(self.uri), data)
        finally:
            part.unlink()
        return True

    def modified_s(self) -> float:
        """When the file was written, seconds since the epoch, by the clock that stamps it (`clock_s`)."""
        filesystem, path = self.filesystem()
        written = filesystem.get_file_info(path).mtime
        return float(written.timestamp()) if written else 0.0

    def clock_s(self) -> float:
        """The time, seconds since the epoch, by the clock that stamps the files of this folder: that of the store or of
        the file server, which may differ from this machine's. At most a second behind."""
        if self.is_remote:
            bucket = self.uri.removeprefix("s3://").partition("/")[0]
            answer = Location(f"s3://{bucket}", self.store)._ask("head_bucket")
            return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
        try:
            with tempfile.TemporaryFile(dir=self.uri) as stamped:
                return os.fstat(stamped.fileno()).st_mtime
        except (FileNotFoundError, PermissionError):  # nothing is written here
            return time.time()

    def delete(self) -> None:
        """Remove the file, or the folder with all that is in it. Nothing happens where nothing is."""
        from pyarrow.fs import FileType

        filesystem, path = self.filesystem()
        kind = filesystem.get_file_info(path).type
        if kind == FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == FileType.File and self.is_remote:
            self._ask("delete_object")
        elif kind == FileType.File:
            Path(path).unlink(missing_ok=True)  # another process may be at it too

    def entries(self, *, recursive: bool = True) -> Iterator[Entry]:
        """The files below this folder, by path; nothing where there is no folder."""
        from pyarrow.fs import FileSelector, FileType

        filesystem, path = self.filesystem()
        found = filesystem.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True))
        for info in sorted(found, key=lambda info: info.path):
            if info.type == FileType.File:
                uri = f"s3://{info.path}" if self.is_remote else info.path
                modified_s = info.mtime.timestamp() if info.mtime else 0.0
                yield Entry(location=Location(uri, self.store), size_bytes=info.size, modified_s=modified_s)

    def list(self, *, recursive: bool = False) -> list[Location]:
        """The files and folders below this one, by name."""
        from pyarrow.fs import FileSelector

        filesystem, path = self.filesystem()
        found = filesystem.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True))
        prefix = "s3://" if self.is_remote else ""
        return [Location(prefix + info.path, self.store) for info in sorted(found, key=lambda info: info.path)]

    def contents(self) -> tuple[tuple[Location, ...], tuple[Location, ...]]:
        """The files and the folders directly in this folder, each by name, in one request."""
        from pyarrow.fs import FileSelector, FileType

        filesystem, path = self.filesystem()
        found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        prefix = "s3://" if self.is_remote else ""
        found = sorted(found, key=lambda info: info.path)
        files, folders = (
            tuple(Location(prefix + info.path, self.store) for info in found if info.type == kind)
            for kind in (FileType.File, FileType.Directory)
        )
        return files, folders

    def local_path(self) -> Path:
        """A file on this machine with the content: the file itself, or a copy in the cache of a remote one.

        The copy is named by URI, size and time of change, so that a changed remote file is fetched again. Copies that
        were not used for long go when the cache is full (`cache.py`).
        """
        if not self.is_remote:
            return Path(self.uri)
        filesystem, path = self.filesystem()
        info = filesystem.get_file_info(path)
        key = hashlib.sha256(f"{self.uri}\0{info.size}\0{info.mtime_ns}".encode()).hexdigest()[:24]
        cached = cache_folder("files") / f"{key}-{self.name}"
        if not use(cached):
            with (
                filesystem.open_input_stream(path, compression=None) as stream,
                tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as part,
            ):
                while block := stream.read(COPY_BYTES):
                    part.write(block)
            Path(part.name).replace(cached)
            trim(self.store.cache_gb)
        return cached

    def __str__(self) -> str:
        return self.uri


def _create_by_name(path: Path, data: bytes) -> bool:
    """Where a file system knows no links: another process may see the file before its content."""
    try:
        with path.open("xb") as stream:
            stream.write(data)
    except FileExistsError:
        return False
    return True


def _default_store() -> StoreSettings:
    from histolake.platform.settings import load_settings

    store = load_settings().section("store")
    assert isinstance(store, StoreSettings)
    return store


def _asynchronous(filesystem: Any) -> Any:
    """A file system of Arrow's as the asynchronous one of fsspec's that zarr wants: one client for all of a store."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    class Wrapped(ArrowFSWrapper):
        @property
        def fsid(self) -> str:  # fsspec's own takes it from a host that only HDFS has
            return f"arrow_{filesystem.type_name}"

    return AsyncFileSystemWrapper(Wrapped(filesystem), asynchronous=True)


@lru_cache(maxsize=1)
def _local_filesystem() -> Any:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


@lru_cache(maxsize=8)
def _s3_client(known: tuple[tuple[str, str], ...], timeout_s: float | None = None) -> Any:
    import boto3
    from botocore.config import Config

    values = {name: value or None for name, value in known}
    asked: dict[str, Any] = {"retries": {"mode": "standard", "total_max_attempts": STORE_TRIES}}
    if timeout_s is not None:
        asked = {
            "connect_timeout": timeout_s,
            "read_timeout": timeout_s,
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": MOST_CONNECTIONS,
        }
    return boto3.client(
        "s3",
        config=Config(**asked),
        endpoint_url=values["endpoint"],
        region_name=values["region"],
        aws_access_key_id=values["access_key"],
        aws_secret_access_key=values["secret_key"],
        aws_session_token=values["session_token"],
    )


@lru_cache(maxsize=8)
def _s3_filesystem(known: tuple[tuple[str, str], ...]) -> Any:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    values = dict(known)
    scheme, _, host = values["endpoint"].partition("://")
    return S3FileSystem(
        access_key=values["access_key"] or None,
        secret_key=values["secret_key"] or None,
        session_token=values["session_token"] or None,
        region=values["region"],
        endpoint_override=host or None,
        scheme=scheme or None,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=STORE_TRIES),
    )
