"""Whole-slide formats that OpenSlide composes: NDPI, MRXS, SCN, BIF, DICOM, Philips, Trestle, and the rest of Aperio's.

Label and macro pictures are never asked for. What was not scanned is transparent to OpenSlide and white here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from histolake.ingestion.images.files import ImageFile, damaged
from histolake.ingestion.images.overview import fitted, shrunk
from histolake.ingestion.images.pixel_size import believed

__all__ = ["OpenSlideImage"]

WHITE = 255


class OpenSlideImage:
    """One slide in a format of OpenSlide's."""

    def __init__(self, file: ImageFile) -> None:
        import openslide

        self._file = file
        try:
            self._slide: Any = openslide.OpenSlide(str(file.local))
        except openslide.OpenSlideError as error:
            raise damaged(file, error) from error

    @staticmethod
    def opens(file: ImageFile) -> bool:
        """What OpenSlide says it knows, by the file's content."""
        if file.path is None:
            return False
        import openslide

        return openslide.OpenSlide.detect_format(str(file.local)) is not None

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self._slide.dimensions

    @property
    def is_tiled(self) -> bool:
        """Every format of OpenSlide's is read in parts."""
        return True

    @property
    def um_per_px(self) -> float | None:
        """Micrometres a pixel, as OpenSlide reads them from the vendor's metadata."""
        x_um, y_um = (_number(self._slide.properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
        return believed(self._file, x_um, y_um)

    @property
    def block_px(self) -> tuple[int, int]:
        """A tile's where OpenSlide tells it, in fours: a call costs as much as a small tile."""
        told = (self._slide.properties.get(f"openslide.level[0].tile-{side}") for side in ("width", "height"))
        width, height = (int(number) if number else 0 for number in map(_number, told))
        return (2 * width, 2 * height) if 64 <= width <= 1024 and 64 <= height <= 1024 else (512, 512)

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region as uint8 (H, W, 3)."""
        return self._read(0, x, y, width, height)

    def overview(self, max_px: int) -> np.ndarray:
        """The whole image, its longest side `max_px`, from the smallest level that is large enough."""
        target = fitted(self.size_px, max_px)
        sizes = self._slide.level_dimensions
        level = max((i for i, size in enumerate(sizes) if size[0] >= target[0] and size[1] >= target[1]), default=0)
        return shrunk(partial(self._read, level), sizes[level], target)

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        import openslide

        scale = self._slide.level_downsamples[level]
        try:
            picture = self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        except openslide.OpenSlideError as error:
            raise damaged(self._file, error) from error
        pixels_HWA = np.asarray(picture)
        alpha = pixels_HWA[..., 3:]
        if alpha.min() == WHITE:
            return np.ascontiguousarray(pixels_HWA[..., :3])
        part = alpha.astype(np.uint16)
        return ((pixels_HWA[..., :3] * part + WHITE * (WHITE - part) + 127) // WHITE).astype(np.uint8)


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
