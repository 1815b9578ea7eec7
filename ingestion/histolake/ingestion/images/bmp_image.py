"""BMP images, which libvips does not read: their rows lie in the file as they are, so a region is a slice of it."""

from __future__ import annotations

import struct

import numpy as np

from histolake.ingestion.images.files import ImageFile, damaged
from histolake.ingestion.images.overview import fitted, shrunk

__all__ = ["BmpImage"]

UNCOMPRESSED = 0


class BmpImage:
    """One uncompressed BMP file of 24 or 32 bits a pixel, or of 8 with a palette."""

    def __init__(self, file: ImageFile) -> None:
        # Offsets by the format's header: pixels at 10, its own length at 14, then width, height, planes, bits, ...
        start, header, width, height, _, bits, packing = struct.unpack_from("<IIiiHHI", file.head.ljust(34, b"\0"), 10)
        if header < 40 or packing != UNCOMPRESSED or bits not in (8, 24, 32) or width <= 0 or height == 0:
            raise damaged(file, f"a BMP of {bits} bits a pixel, packed by method {packing}; write it as PNG")
        stride = (width * bits // 8 + 3) // 4 * 4  # rows are filled to four bytes
        size = file.local.stat().st_size
        if start + stride * abs(height) > size:
            raise damaged(file, f"its pixels would end at byte {start + stride * abs(height)}, the file ends at {size}")
        self._size_px = width, abs(height)
        self._bytes = bits // 8
        self._palette = np.frombuffer(file.head, np.uint8)[14 + header : start].reshape(-1, 4) if bits == 8 else None
        rows = np.memmap(file.local, dtype=np.uint8, mode="r", offset=start, shape=(abs(height), stride))
        self._rows: np.ndarray | None = rows[::-1] if height > 0 else rows  # the last row comes first

    @staticmethod
    def opens(file: ImageFile) -> bool:
        """By its first two bytes, and a header of a length that is one."""
        return file.head[:2] == b"BM" and struct.unpack_from("<I", file.head.ljust(18, b"\0"), 14)[0] in (
            12,
            40,
            108,
            124,
        )

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self._size_px

    @property
    def is_tiled(self) -> bool:
        """A region costs its rows' bytes, which nothing has to decode."""
        return True

    @property
    def um_per_px(self) -> float | None:
        """A BMP states a screen's resolution."""
        return None

    @property
    def block_px(self) -> tuple[int, int]:
        """No size is cheaper than another."""
        return 512, 512

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region as uint8 (H, W, 3)."""
        assert self._rows is not None, "the image is closed"
        n = self._bytes
        part = self._rows[y : y + height, x * n : (x + width) * n].reshape(height, width, n)
        if self._palette is not None:
            part = self._palette[part[..., 0]]
        return np.ascontiguousarray(part[..., 2::-1])  # blue comes first

    def overview(self, max_px: int) -> np.ndarray:
        """The whole image, its longest side `max_px`."""
        return shrunk(self.read_region, self.size_px, fitted(self.size_px, max_px))

    def close(self) -> None:
        """Let go of the file."""
        self._rows = None
