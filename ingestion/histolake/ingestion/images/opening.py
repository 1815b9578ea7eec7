"""Opening an image: the one place that decides which backend reads a file, by looking at the file.

A backend is a class that follows `Backend`: it says by `opens` whether it knows a file, and is itself the image once it
is made with one. They are asked in the order of `BACKENDS`; a backend must be sure before it says yes, and the last one
takes whatever is left.
"""

from __future__ import annotations

from typing import Protocol

from histolake.ingestion.images.bmp_image import BmpImage
from histolake.ingestion.images.files import ImageFile, damaged
from histolake.ingestion.images.openslide_image import OpenSlideImage
from histolake.ingestion.images.plain import PlainImage
from histolake.ingestion.images.tiff_image import TiffImage
from histolake.ingestion.images.tiff_layout import is_tiff, missing_bytes
from histolake.ingestion.images.zarr_image import ZarrImage
from histolake.ingestion.slide import SlideImage

__all__ = ["BACKENDS", "Backend", "ImageFile", "open_image"]


class Backend(Protocol):
    """A class of images. `__call__` makes one: a `SlideImage`; it reads the header and no pixel."""

    def opens(self, file: ImageFile) -> bool:
        """Whether this backend knows the file. Looks at its first bytes or header, never at its name alone."""

    def __call__(self, file: ImageFile) -> SlideImage:
        """The image. Raises `SourceError` (image_readable) where it is damaged."""


BACKENDS: tuple[Backend, ...] = (ZarrImage, TiffImage, OpenSlideImage, BmpImage, PlainImage)


def open_image(uri: str) -> SlideImage:
    """The image at a URI. Only its header is read here; a remote image is first copied to the local cache.

    Raises `SourceError`: `missing_file` where nothing is there, `image_readable` where no backend can open it.
    """
    file = ImageFile.at(uri)
    if is_tiff(file) and (gone := missing_bytes(file.local)):
        raise damaged(file, gone)
    return next(backend for backend in BACKENDS if backend.opens(file))(file)
