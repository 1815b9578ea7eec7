"""Slide images: regions of plain JPEG, PNG and TIFF files through libvips.

A plain JPEG or PNG has no random access: the first region decodes the whole image once, into memory up to
`MEMORY_MB` and beyond that into a temporary file on disk, so that memory stays bounded whatever the slide's size. A
damaged or truncated file is an error, never a grey area. Whole-slide formats with pyramids want a backend of their own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from histolake.ingestion.slide import SlideImage
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["PlainImage", "open_image"]

MEMORY_MB = 64  # decoded images above this go to a temporary file


def open_image(uri: str) -> SlideImage:
    """The image at a URI. Only its header is read here; a remote image is first copied to the local cache."""
    return PlainImage(uri)


class PlainImage:
    """One JPEG, PNG or TIFF file."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._image = _open(uri, Location.parse(uri).local_path())
        self._region: Any = None

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height, from the header."""
        return self._image.width, self._image.height

    @property
    def um_per_px(self) -> float | None:
        """Such files state a resolution for printing, or none."""
        return None

    def overview(self, max_px: int) -> np.ndarray:
        """The whole image, its longer side at most `max_px`, as uint8 (H, W, 3); decoded in passing."""
        import pyvips

        try:
            path = str(Location.parse(self._uri).local_path())
            small = pyvips.Image.thumbnail(path, max_px, height=max_px, size="down", fail_on="truncated")
            return _as_rgb(small).numpy()
        except pyvips.Error as error:
            raise _damaged(self._uri, error) from error

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region as uint8 (H, W, 3)."""
        import pyvips

        try:
            if self._region is None:
                self._region = pyvips.Region.new(_as_rgb(self._image))
            data = self._region.fetch(x, y, width, height)
        except pyvips.Error as error:
            raise _damaged(self._uri, error) from error
        return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)

    def close(self) -> None:
        """Drop the image, and with it the temporary copy."""
        self._region = None
        self._image = None


def _open(uri: str, path: Path) -> Any:
    # libvips reads this when it first opens an image.
    os.environ.setdefault("VIPS_DISC_THRESHOLD", f"{MEMORY_MB}m")
    import pyvips

    if not path.is_file():
        raise SourceError(f"The image {uri} is not there.", rule="missing_file", figure=1.0, limit=0.0, file=uri)
    if path.suffix.lower() in (".tif", ".tiff"):
        _check_tiff_whole(uri, path)
    try:
        return pyvips.Image.new_from_file(str(path), access="random", fail_on="truncated")
    except pyvips.Error as error:
        raise _damaged(uri, error) from error


def _check_tiff_whole(uri: str, path: Path) -> None:
    """Every strip or tile must lie in the file: libtiff reads over the end of a truncated one without an error."""
    from PIL import Image, TiffTags, UnidentifiedImageError

    names = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}
    try:
        with Image.open(path) as header:
            tags: Any = getattr(header, "tag_v2", {})
            ends = [
                offset + count
                for offsets, counts in (("StripOffsets", "StripByteCounts"), ("TileOffsets", "TileByteCounts"))
                for offset, count in zip(tags.get(names[offsets], ()), tags.get(names[counts], ()), strict=True)
            ]
    except (UnidentifiedImageError, ValueError, SyntaxError, EOFError) as error:
        raise _damaged(uri, error) from error
    if ends and max(ends) > path.stat().st_size:
        raise _damaged(uri, EOFError(f"its pixels end at byte {max(ends)}, the file at {path.stat().st_size}"))


def _as_rgb(image: Any) -> Any:
    """The image as three bands of 8 bits; transparent parts become white."""
    if image.interpretation not in ("srgb", "rgb"):
        image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=255)
    if image.bands == 1:
        image = image.bandjoin([image, image])
    return image if image.format == "uchar" else image.cast("uchar")


def _damaged(uri: str, error: Exception) -> SourceError:
    said = " ".join(str(error).split()).removeprefix("unable to call ")
    return SourceError(
        f"The image {uri} cannot be decoded; it is truncated or damaged ({said[:160]}). Fetch it again.",
        rule="image_readable",
        figure=float(path.stat().st_size) if (path := Location.parse(uri).local_path()).is_file() else 0.0,  # bytes
        file=uri,
    )
