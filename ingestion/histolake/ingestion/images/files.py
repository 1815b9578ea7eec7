"""What a backend is given: an image file (or a folder that is an image), on this machine, with its first bytes.

Some formats spread an image over several files. `companions` names them, so that a remote image is fetched whole and
a digest can cover all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["ImageFile", "damaged"]

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
        path = location.local_path()
        with path.open("rb") as stream:
            return cls(location=location, path=path, head=stream.read(HEAD_BYTES))


def damaged(file: ImageFile, error: Exception | str) -> SourceError:
    """The refusal of an image that cannot be decoded; its figure is the file's size in bytes."""
    said = " ".join(str(error).split()).removeprefix("unable to call ")
    return SourceError(
        f"The image {file.uri} cannot be decoded; it is truncated or damaged ({said[:160]}). Fetch it again.",
        rule="image_readable",
        figure=0.0 if file.path is None else float(file.path.stat().st_size),
        file=file.uri,
    )
