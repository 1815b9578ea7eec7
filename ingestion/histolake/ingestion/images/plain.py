"""Slide images: regions of plain JPEG, PNG and TIFF files through libvips.

A plain JPEG or PNG has no random access: the first region decodes the whole image once, into memory up to
`MEMORY_MB` and beyond that into a temporary file on disk, so that memory stays bounded whatever the slide's size. A
damaged or truncated file is an error, never a grey area. Whole-slide formats with pyramids want a backend of their own.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from histolake.ingestion.images.files import ImageFile, damaged

__all__ = ["PlainImage"]

MEMORY_MB = 64  # decoded images above this go to a temporary file


class PlainImage:
    """One JPEG, PNG or TIFF file."""

    def __init__(self, file: ImageFile) -> None:
        self._file = file
        self._image = _open(file)
        self._region: Any = None

    @staticmethod
    def opens(_file: ImageFile) -> bool:
        """Whatever no other backend knows: libvips looks at the bytes itself."""
        return True

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
            raise damaged(self._file, error) from error
        return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)

    def close(self) -> None:
        """Drop the image, and with it the temporary copy."""
        self._region = None
        self._image = None


def _open(file: ImageFile) -> Any:
    # libvips reads this when it first opens an image.
    os.environ.setdefault("VIPS_DISC_THRESHOLD", f"{MEMORY_MB}m")
    import pyvips

    if file.path is None:
        raise damaged(file, "it is a folder, and no image format is known by what is in it")
    if file.head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_tiff_whole(file)
    try:
        return pyvips.Image.new_from_file(str(file.path), access="random", fail_on="truncated")
    except pyvips.Error as error:
        raise damaged(file, error) from error


def _check_tiff_whole(file: ImageFile) -> None:
    """Every strip or tile must lie in the file: libtiff reads over the end of a truncated one without an error."""
    from PIL import Image, TiffTags, UnidentifiedImageError

    path = file.path
    assert path is not None
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
        raise damaged(file, error) from error
    if ends and max(ends) > path.stat().st_size:
        raise damaged(file, EOFError(f"its pixels end at byte {max(ends)}, the file at {path.stat().st_size}"))


def _as_rgb(image: Any) -> Any:
    """The image as three bands of 8 bits; transparent parts become white."""
    if image.interpretation not in ("srgb", "rgb"):
        image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=255)
    if image.bands == 1:
        image = image.bandjoin([image, image])
    return image if image.format == "uchar" else image.cast("uchar")
