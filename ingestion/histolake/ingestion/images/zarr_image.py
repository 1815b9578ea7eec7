"""Images in zarr: an OME-NGFF group with its pyramid, such as the images of a SpatialData store.

Both zarr formats are read (2: OME-NGFF 0.4; 3: 0.5), on disk and in an object store, region by region: only the chunks
that a region touches are fetched and decoded, and the last ones are kept, for neighbouring spots want them again. A
chunk that cannot be decoded is an error. One that is absent is black: zarr stores chunks of nothing but zeros so.

Only pictures are opened: three colours of 8 bits, or four with transparency. Fluorescence is none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from histolake.ingestion.images.files import ImageFile, damaged
from histolake.ingestion.images.overview import fitted, shrunk
from histolake.ingestion.zarr_groups import DAMAGE, group_attributes, open_array
from histolake.platform.errors import SourceError

__all__ = ["ZarrImage", "multiscale"]

CACHE_BYTES = 192 << 20  # decoded chunks that are kept of one image
OVERVIEW_BYTES = 16 << 20  # the same while an overview is made, which wants each chunk once
MAX_CHUNK_BYTES = 512 << 20  # of a decoded chunk; an image written as one chunk cannot be read in regions
MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "micron": 1.0,
    "um": 1.0,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}


def multiscale(attributes: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The first pyramid of an image group's attributes, with `axes` and `datasets`; None where it has none."""
    inside = (attributes or {}).get("ome", attributes or {})
    found = inside.get("multiscales") if isinstance(inside, dict) else None
    first = found[0] if isinstance(found, list) and found else None
    return first if isinstance(first, dict) and first.get("datasets") else None


class ZarrImage:
    """One OME-NGFF image group."""

    def __init__(self, file: ImageFile) -> None:
        self._file = file
        pyramid = multiscale(group_attributes(file.location))
        if pyramid is None:
            raise damaged(file, "it holds no OME-NGFF image")
        try:
            self._axes = [str(axis["name"] if isinstance(axis, dict) else axis) for axis in pyramid["axes"]]
            self._units = [axis.get("unit") if isinstance(axis, dict) else None for axis in pyramid["axes"]]
            self._step = _scale_of(pyramid["datasets"][0], len(self._axes))
            self._paths = [str(level["path"]) for level in pyramid["datasets"]]
            self._full = self._level(self._paths[0])
        except DAMAGE as error:
            raise damaged(file, error) from error

    @staticmethod
    def opens(file: ImageFile) -> bool:
        """A folder whose zarr attributes tell of a pyramid."""
        return file.path is None and multiscale(group_attributes(file.location)) is not None

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self._full.size_px

    @property
    def um_per_px(self) -> float | None:
        """Micrometres a pixel, where the axes x and y have units of length and one scale. SpatialData writes none."""
        told = []
        for name in "xy":
            i = self._axes.index(name)
            unit = MICROMETRES.get(str(self._units[i]).lower())
            told.append(None if unit is None else unit * self._step[i])
        across, down = told
        if across is None or down is None or not 0.01 < across < 100 or abs(across / down - 1) > 0.01:
            return None
        return (across + down) / 2

    @property
    def block_px(self) -> tuple[int, int]:
        """A chunk's."""
        return self._full.block_px

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region as uint8 (H, W, 3)."""
        try:
            return self._full.read(x, y, width, height)
        except DAMAGE as error:
            raise damaged(self._file, error) from error

    def overview(self, max_px: int) -> np.ndarray:
        """The whole image, its longer side at most `max_px`, from the smallest level that is large enough."""
        try:
            level = self._level(self._paths[0], OVERVIEW_BYTES)
            for path in self._paths[1:]:
                smaller = self._level(path, OVERVIEW_BYTES)
                if max(smaller.size_px) < max_px:
                    break
                level = smaller
            return shrunk(level.read, level.size_px, fitted(self.size_px, max_px))
        except DAMAGE as error:
            raise damaged(self._file, error) from error

    def close(self) -> None:
        """Drop the chunks that are kept."""
        self._full.forget()

    def _level(self, path: str, keep_bytes: int = CACHE_BYTES) -> _Level:
        array = open_array(self._file.location, path)
        colours = array.shape[self._axes.index("c")] if "c" in self._axes else 1
        if array.dtype != np.uint8 or colours not in (3, 4):
            raise SourceError(
                f"The image {self._file.uri} has {colours} channels of {array.dtype}; a picture has three of uint8, or "
                "four with transparency. Fluorescence is no histology: name another image in the metadata.",
                rule="image_readable",
                figure=float(colours),
                limit=3.0,
                file=self._file.uri,
            )
        level = _Level(array, self._axes, colours, keep_bytes)
        if level.chunk_bytes > MAX_CHUNK_BYTES:
            raise SourceError(
                f"The image {self._file.uri} is stored in chunks of {level.chunk_bytes >> 20} MiB; at most "
                f"{MAX_CHUNK_BYTES >> 20} are read. Write it again in chunks of about 1024 x 1024 pixels.",
                rule="image_readable",
                figure=float(level.chunk_bytes),
                limit=float(MAX_CHUNK_BYTES),
                file=self._file.uri,
            )
        return level


class _Level:
    """One array of a pyramid, read in blocks that are its chunks in y and x with all colours."""

    def __init__(self, array: Any, axes: list[str], colours: int, keep_bytes: int) -> None:
        self._array = array
        self._keep_bytes = keep_bytes
        self._axes = axes
        self._x, self._y = axes.index("x"), axes.index("y")
        self.size_px = int(array.shape[self._x]), int(array.shape[self._y])
        self.block_px = (
            min(int(array.chunks[self._x]), self.size_px[0]),
            min(int(array.chunks[self._y]), self.size_px[1]),
        )
        self.chunk_bytes = self.block_px[0] * self.block_px[1] * colours
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """uint8 (H, W, 3), put together from blocks."""
        wide, high = self.block_px
        region = np.empty((height, width, 3), np.uint8)
        for row in range(y // high, (y + height - 1) // high + 1):
            for column in range(x // wide, (x + width - 1) // wide + 1):
                block = self._block(column, row)
                left, top = column * wide, row * high
                x0, x1 = max(x, left), min(x + width, left + block.shape[1])
                y0, y1 = max(y, top), min(y + height, top + block.shape[0])
                region[y0 - y : y1 - y, x0 - x : x1 - x] = block[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def forget(self) -> None:
        """Drop the kept blocks."""
        self._kept.clear()

    def _block(self, column: int, row: int) -> np.ndarray:
        if (column, row) in self._kept:
            self._kept.move_to_end((column, row))
            return self._kept[column, row]
        block = self._kept[column, row] = self._decoded(column, row)
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._keep_bytes:
            self._kept.popitem(last=False)
        return block

    def _decoded(self, column: int, row: int) -> np.ndarray:
        wide, high = self.block_px
        # An axis that is neither a place nor a colour (time, depth) has its first plane read.
        where: list[Any] = [0] * len(self._axes)
        where[self._x] = slice(column * wide, (column + 1) * wide)
        where[self._y] = slice(row * high, (row + 1) * high)
        where[self._axes.index("c")] = slice(None)
        left = [name for name in self._axes if name in "xyc"]
        block = np.asarray(self._array[tuple(where)]).transpose([left.index(name) for name in "yxc"])
        return np.ascontiguousarray(block if block.shape[2] == 3 else _on_white(block))


def _on_white(block: np.ndarray) -> np.ndarray:
    alpha = block[..., 3:].astype(np.float32) / 255
    return np.rint(block[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _scale_of(level: Mapping[str, Any], n_axes: int) -> list[float]:
    """Length of a pixel of a level along each axis."""
    for transformation in level.get("coordinateTransformations", ()):
        if transformation.get("type") == "scale":
            return [float(v) for v in transformation["scale"]]
    return [1.0] * n_axes
