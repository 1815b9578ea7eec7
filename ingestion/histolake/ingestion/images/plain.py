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
from histolake.ingestion.images.overview import fitted
from histolake.ingestion.images.pixel_size import from_tags
from histolake.ingestion.images.tiff_layout import is_tiff

__all__ = ["PlainImage"]

MEMORY_MB = 64  # decoded images above this go to a temporary file


class PlainImage:
    """One JPEG, PNG or TIFF file."""

    def __init__(self, file: ImageFile) -> None:
        self.file = file
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
    def block_px(self) -> tuple[int, int]:
        """No size is cheaper than another."""
        return 512, 512

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region as uint8 (H, W, 3)."""
        import pyvips

        try:
            if self._region is None:
                self._region = pyvips.Region.new(_as_rgb(self._image))
            data = self._region.fetch(x, y, width, height)
        except pyvips.Error as error:
            raise damaged(self.file, error) from error
        return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)

    @property
    def is_tiled(self) -> bool:
        """No: the first region decodes the whole image."""
        return False

    @property
    def um_per_px(self) -> float | None:
        """Micrometres a pixel by a TIFF's resolution tags; the other formats state a screen's or nothing."""
        if not is_tiff(self.file):
            return None
        import tifffile

        with tifffile.TiffFile(self.file.local) as tiff:
            return from_tags(self.file, tiff.pages[0])

    def stream(self) -> Any:
        """The pixels as an image of libvips, RGB of 8 bits, to be read once from top to bottom."""
        import pyvips

        return _as_rgb(pyvips.Image.new_from_file(str(self.file.local), access="sequential", fail_on="truncated"))

    def overview(self, max_px: int) -> np.ndarray:
        """The whole image, its longest side `max_px`, shrunk while it is decoded."""
        import pyvips

        width, height = fitted(self.size_px, max_px)
        try:
            small = pyvips.Image.thumbnail(
                str(self.file.local), width, height=height, size="force", no_rotate=True, fail_on="truncated"
            )
            data = _as_rgb(small).write_to_memory()
        except pyvips.Error as error:
            raise damaged(self.file, error) from error
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
    try:
        return pyvips.Image.new_from_file(str(file.local), access="random", fail_on="truncated")
    except pyvips.Error as error:
        raise damaged(file, error) from error


def _as_rgb(image: Any) -> Any:
    """The image as three bands of 8 bits; transparent parts become white."""
    if image.interpretation not in ("srgb", "rgb"):
        image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=255)
    if image.bands == 1:
        image = image.bandjoin([image, image])
    return image if image.format == "uchar" else image.cast("uchar")
