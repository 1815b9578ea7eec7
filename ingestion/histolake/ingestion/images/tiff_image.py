"""TIFF images by their own tiles: Aperio SVS, generic tiled TIFF, OME-TIFF, and strips and planes of any of them.

A region is put together from decoded segments (tiles or strips), of which the last ones are kept: spots are visited in
the image's order, so most segments are decoded once. For JPEG tiles that is several times as fast as OpenSlide, and
equal to it in every bit (`tests/ingestion/test_image_backends.py`). What OpenSlide knows better (formats whose tiles
overlap or hide in another file), and pages that cannot be decoded segment by segment, are left to the other backends.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Any

import numpy as np

from histolake.ingestion.images.files import ImageFile, damaged
from histolake.ingestion.images.overview import fitted, shrunk
from histolake.ingestion.images.pixel_size import from_aperio, from_ome, from_tags
from histolake.ingestion.images.tiff_layout import JPEG, Level, Picture, find_picture, is_tiff, stack_in
from histolake.platform.errors import SourceError

__all__ = ["TiffImage"]

WHITE = 255
STRIPS_PX = 512
KEPT_BYTES = 64 << 20  # decoded segments that an image keeps
ENDING = {JPEG, 33005, 34712}  # JPEG, and both of JPEG 2000: they end with a mark
END_OF_JPEG = b"\xff\xd9"
SLACK_BYTES = 64  # that a writer may leave between a tile's end and its length
# Formats whose largest page is the slide as it is. OpenSlide composes the others of their pages.
OURS = {None, "generic-tiff", "aperio"}


class TiffImage:
    """One TIFF file whose segments can be decoded one by one."""

    def __init__(self, file: ImageFile) -> None:
        import tifffile

        self.file = file
        self._tiff = tifffile.TiffFile(file.local)
        if stack := stack_in(self._tiff):
            self._tiff.close()
            raise SourceError(
                f"The image {file.uri} is a stack ({stack}); give a picture of the slide in colour, one plane of it.",
                rule="image_readable",
                file=file.uri,
            )
        picture = find_picture(self._tiff)
        assert picture is not None, "`opens` said so"
        self._picture: Picture = picture
        self._segments = _Segments(file, self._tiff.filehandle, picture.bits)

    @staticmethod
    def opens(file: ImageFile) -> bool:
        """A TIFF in which the slide is one page, or one page a colour, in segments that we can decode."""
        if not is_tiff(file) or _vendor(file) not in OURS:
            return False
        import tifffile

        # What tifffile cannot parse may still be a TIFF to the others; they say what is wrong with it.
        with suppress(tifffile.TiffFileError, ValueError), tifffile.TiffFile(file.local) as tiff:
            return find_picture(tiff) is not None or stack_in(tiff) is not None
        return False

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self._picture.levels[0].size_px

    @property
    def is_tiled(self) -> bool:
        """Whether a region costs no more than itself; strips cost their whole rows."""
        return self._picture.is_tiled

    @property
    def block_px(self) -> tuple[int, int]:
        """A tile's; of strips, squares that share the strips that are kept."""
        page = self._picture.levels[0].pages[0]
        return (page.tilewidth, page.tilelength) if page.is_tiled else (STRIPS_PX, STRIPS_PX)

    @property
    def um_per_px(self) -> float | None:
        """Micrometres a pixel, by OME's XML, by Aperio's description, or by the resolution tags."""
        if self._tiff.is_ome:
            return from_ome(self.file, self._tiff.ome_metadata, self.size_px)
        page = self._picture.levels[0].pages[0]
        return from_aperio(page.description) if page.is_svs else from_tags(self.file, page)

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region as uint8 (H, W, 3)."""
        return self._read(self._picture.levels[0], x, y, width, height)

    def overview(self, max_px: int) -> np.ndarray:
        """The whole image, its longest side `max_px`, from the smallest level that is large enough."""
        target = fitted(self.size_px, max_px)
        level = next(level for level in reversed(self._picture.levels) if level.size_px[0] >= target[0])
        return shrunk(lambda *region: self._read(level, *region), level.size_px, target)

    def close(self) -> None:
        """Close the file and drop what was decoded."""
        self._segments.clear()
        self._tiff.close()

    def _read(self, level: Level, x: int, y: int, width: int, height: int) -> np.ndarray:
        page = level.pages[0]
        step_x, step_y = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        if (x % step_x, y % step_y, width, height) == (0, 0, step_x, step_y):
            return self._segments.read(level, y // step_y, x // step_x)[:height, :width]
        region = np.empty((height, width, 3), dtype=np.uint8)
        for row in range(y // step_y, (y + height - 1) // step_y + 1):
            for column in range(x // step_x, (x + width - 1) // step_x + 1):
                left, top = column * step_x, row * step_y
                piece = self._segments.read(level, row, column)
                x0, x1 = max(x, left), min(x + width, left + step_x)
                y0, y1 = max(y, top), min(y + height, top + step_y)
                region[y0 - y : y1 - y, x0 - x : x1 - x] = piece[y0 - top : y1 - top, x0 - left : x1 - left]
        return region


class _Segments:
    """Decoded segments as RGB, the most recently used ones kept."""

    def __init__(self, file: ImageFile, handle: Any, bits: int) -> None:
        self._file = file
        self._handle = handle
        self._bits = bits
        self._kept: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._bytes = 0

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        self._bytes = 0

    def read(self, level: Level, row: int, column: int) -> np.ndarray:
        """The segment as uint8 (H, W, 3), at least as large as its part of the image."""
        key = (id(level), row, column)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._kept[key] = self._rgb(level, row, column)
        self._bytes += made.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return made

    def _rgb(self, level: Level, row: int, column: int) -> np.ndarray:
        page = level.pages[0]
        across = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
        down = -(-page.imagelength // (page.tilelength if page.is_tiled else page.rowsperstrip))
        index, planes = row * across + column, across * down
        if len(level.pages) == 3:
            found = [self._decoded(part, index) for part in level.pages]
        elif page.planarconfig == 2:
            found = [self._decoded(page, index + plane * planes) for plane in range(page.samplesperpixel)]
        else:
            found = [self._decoded(page, index)]
        samples = [piece for piece in found if piece is not None]
        if len(samples) < len(found):
            # A tile of no bytes was never scanned.
            return np.full(
                (page.tilelength or page.rowsperstrip, page.tilewidth or page.imagewidth, 3), WHITE, np.uint8
            )
        return _as_rgb(samples[0] if len(samples) == 1 else np.concatenate(samples, axis=2), page, self._bits)

    def _decoded(self, page: Any, index: int) -> np.ndarray | None:
        """The samples (H, W, S) of one segment of one page; None where it has no bytes."""
        start, length = page.dataoffsets[index], page.databytecounts[index]
        if length == 0:
            return None
        self._handle.seek(start)
        packed = self._handle.read(length)
        if page.compression in ENDING and packed.rfind(END_OF_JPEG, -SLACK_BYTES) < 0:
            # The decoders fill up what they do not find, and only warn.
            raise damaged(self._file, f"segment {index} is a JPEG without its end")
        try:
            data, _, _ = page.decode(packed, index, jpegtables=page.jpegtables)
        # tifffile raises ValueError; the codecs' own errors are RuntimeErrors.
        except (ValueError, RuntimeError) as error:
            raise damaged(self._file, f"segment {index}: {error}") from error
        return data[0]


def _as_rgb(samples_HWS: np.ndarray, page: Any, bits: int) -> np.ndarray:
    """8 bits and three colours; greys three times, transparent parts white."""
    if samples_HWS.dtype != np.uint8:
        samples_HWS = np.minimum(samples_HWS >> (bits - 8), 255).astype(np.uint8)
    n = samples_HWS.shape[2]
    if n == 1:
        return np.repeat(samples_HWS, 3, axis=2)
    if n == 3 or page.extrasamples[:1] not in ((1,), (2,)):
        return np.ascontiguousarray(samples_HWS[..., :3])
    colour, alpha = samples_HWS[..., :3].astype(np.uint16), samples_HWS[..., 3:].astype(np.uint16)
    if page.extrasamples[0] == 2:  # colours that are not yet multiplied by their opacity
        colour = (colour * alpha + 127) // 255
    return np.minimum(colour + (WHITE - alpha), 255).astype(np.uint8)


def _vendor(file: ImageFile) -> str | None:
    import openslide

    return openslide.OpenSlide.detect_format(str(file.local))
