"""What a backend is given: an image file (or a folder that is an image), on this machine, with its first bytes.

Some formats spread an image over several files. `companions` names them, so that a remote image is fetched whole and
a digest can cover all of it.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path

from histolake.platform.cache import cache_folder
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["ImageFile", "companions", "damaged"]

HEAD_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One image as its bytes lie there."""

    location: Location
    path: Path | None  # where it can be read on this machine; None for a folder, such as a zarr store
    head: bytes  # the first `HEAD_BYTES` of the file; b"" for a folder

    @property
    def uri(self) -> str:
        """The URI that the image was asked for by."""
        return self.location.uri

    @property
    def local(self) -> Path:
        """`path` of what is known to be a file."""
        assert self.path is not None, f"{self.uri} is a folder"
        return self.path

    @classmethod
    def at(cls, uri: str) -> ImageFile:
        """Look at a URI; a remote file is first copied to the local cache. Raises `SourceError` (missing_file)."""
        location = Location.parse(uri)
        if location.is_dir():
            return cls(location=location, path=None, head=b"")
        if not location.is_file():
            raise SourceError(f"The image {uri} is not there.", rule="missing_file", figure=1.0, limit=0.0, file=uri)
        path = _on_this_machine(location)
        with path.open("rb") as stream:
            return cls(location=location, path=path, head=stream.read(HEAD_BYTES))


def companions(uri: str) -> tuple[str, ...]:
    """URIs of the other files that an image is spread over: a digest should cover them, and a copy needs them.

    An MRXS file has a folder of its name beside it; the files of a VMS, VMU or DICOM slide lie together in a folder.
    """
    location = Location.parse(uri)
    if location.suffix == ".mrxs":
        return tuple(entry.location.uri for entry in location.parent().join(location.name[: -len(".mrxs")]).entries())
    if location.suffix not in (".vms", ".vmu", ".dcm"):
        return ()
    beside, _ = location.parent().contents()
    kinds = (".dcm",) if location.suffix == ".dcm" else (".vms", ".vmu", ".jpg", ".opt")
    return tuple(file.uri for file in beside if file.uri != location.uri and file.suffix in kinds)


def _on_this_machine(location: Location) -> Path:
    """The file, or a copy of a remote one; one in several files is copied with them, and linked as they lie there."""
    others = [Location.parse(uri) for uri in companions(location.uri)] if location.is_remote else []
    if not others:
        return location.local_path()
    root = location.parent().uri
    folder = cache_folder("slides") / hashlib.sha256(location.uri.encode()).hexdigest()[:24]
    for part in [*others, location]:
        link, copy = folder / part.uri[len(root) :].strip("/"), part.local_path()
        if not link.is_symlink() or link.readlink() != copy:
            link.parent.mkdir(parents=True, exist_ok=True)
            new = link.with_name(f".{uuid.uuid4().hex}")
            new.symlink_to(copy)
            new.replace(link)  # at once, for others may open the slide too
    return folder / location.name


def damaged(file: ImageFile, error: Exception | str) -> SourceError:
    """The refusal of an image that cannot be decoded; its figure is the file's size in bytes."""
    said = " ".join(str(error).split()).removeprefix("unable to call ")
    return SourceError(
        f"The image {file.uri} cannot be decoded; it is truncated or damaged ({said[:160]}). Fetch it again.",
        rule="image_readable",
        figure=0.0 if file.path is None else float(file.path.stat().st_size),
        file=file.uri,
    )
