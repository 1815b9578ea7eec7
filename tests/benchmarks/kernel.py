"""The bare kernel: what cutting, reducing and encoding patches costs when nothing else is done.

One process, one thread; no Ray, no Lance, no checks, no counts. Each tile of the image that some patch touches is read
and decoded once; each patch of each spot is reduced once, by the same function that the ingest uses, encoded once at
the same quality, and appended to one file. Spots are visited by rows of tiles over a rolling band of decoded tiles.
The JPEG decoder and encoder are the fastest among the project's dependencies, timed here on the image at hand.

It is a lower bound that can be reached, not a way to work: a damaged tile goes unseen, and what is written cannot be
found again.

Axes: N spots, P patches of a spot, H rows, W columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from histolake.ingestion.tiling import reduced

__all__ = ["STEPS", "Clock", "Decoded", "Source", "TiledJpeg", "run_kernel"]

STEPS = ("decode", "resize", "encode", "write")
TRIED = 64  # tiles on which the codecs are timed
Array = np.ndarray


@dataclass
class Clock:
    """Seconds by step, and in all."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    total: float = 0.0

    def shares(self) -> dict[str, float]:
        """The steps' shares of all; the rest is copying pixels from tiles to windows, and Python."""
        return {step: self.seconds[step] / self.total for step in STEPS}


class Source(Protocol):
    """Decoded pixels of an image."""

    size_px: tuple[int, int]

    def window(self, x: int, y: int, side: int, clock: Clock) -> Array:
        """A square that lies in the image."""


def run_kernel(
    source: Source, xy_px_N2: Array, sides: tuple[int, ...], *, max_px: int, quality: int, out: Path
) -> tuple[int, Clock]:
    """Cut all patches; how many bytes were written, and the clock."""
    import simplejpeg
    import torch

    torch.set_num_threads(1)
    clock = Clock()
    began = now = time.perf_counter()
    seconds = clock.seconds
    with out.open("wb") as file:
        for x, y in xy_px_N2[np.lexsort((xy_px_N2[:, 0], xy_px_N2[:, 1] // 256))].tolist():
            for side in sides:
                corner = _inside(x, side, source.size_px[0]), _inside(y, side, source.size_px[1])
                patch = source.window(*corner, side, clock)
                now = time.perf_counter()
                patch = reduced(patch, max_px)
                seconds["resize"] += (then := time.perf_counter()) - now
                jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(patch), quality, "rgb", "420")
                seconds["encode"] += (now := time.perf_counter()) - then
                file.write(jpeg)
                seconds["write"] += time.perf_counter() - now
        written = file.tell()
    clock.total = time.perf_counter() - began
    return written, clock


def _inside(centre: float, side: int, size: int) -> int:
    """Where a window begins; one that would leave the image is moved into it."""
    return min(max(int(np.floor(centre - side / 2 + 0.5)), 0), size - side)


class TiledJpeg:
    """A TIFF of JPEG tiles: the rows of tiles that windows touch at the moment, each tile decoded once."""

    def __init__(self, path: Path) -> None:
        import tifffile

        self._tiff = tifffile.TiffFile(path)
        page: Any = self._tiff.pages[0]
        self.size_px: tuple[int, int] = (page.imagewidth, page.imagelength)
        self._side = page.tilewidth
        self._across = -(-page.imagewidth // self._side)
        self._page = page
        self._decode = _fastest(self._decoders(), [self._packed(i) for i in self._some_tiles()])
        self._tiles: dict[int, Array] = {}
        self._windows: dict[int, Array] = {}
        self._top_row = 0
        self.decoded = 0

    def _some_tiles(self) -> Iterator[int]:
        middle = len(self._page.dataoffsets) // 2
        return iter(range(middle, min(middle + TRIED, len(self._page.dataoffsets))))

    def _packed(self, index: int) -> bytes:
        handle = self._tiff.filehandle
        handle.seek(self._page.dataoffsets[index])
        return handle.read(self._page.databytecounts[index])

    def _decoders(self) -> list[Callable[[bytes], Array]]:
        import imagecodecs
        import simplejpeg

        tables = self._page.jpegtables or b"\xff\xd8\xff\xd9"
        colours = "YCBCR" if self._page.photometric == 6 else "RGB"
        # Adobe's marker says which colours are in the stream, where only the TIFF's tags do.
        marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([colours == "YCBCR"])
        head = tables[:2] + marker + tables[2:-2]
        return [
            lambda packed: simplejpeg.decode_jpeg(head + packed[2:]),
            lambda packed: imagecodecs.jpeg8_decode(packed, tables=tables, colorspace=colours, outcolorspace="RGB"),
        ]

    def window(self, x: int, y: int, side: int, clock: Clock) -> Array:
        """A square of the image, put together from tiles; it is good until the next of its size is asked for."""
        step, across = self._side, self._across
        self._drop(y // step)
        window = self._windows.get(side)
        if window is None:
            window = self._windows[side] = np.empty((side, side, 3), np.uint8)
        columns = [
            (column, slice(max(column * step - x, 0), column * step + step - x), slice(max(x - column * step, 0), step))
            for column in range(x // step, (x + side - 1) // step + 1)
        ]
        for row in range(y // step, (y + side - 1) // step + 1):
            band = window[max(row * step - y, 0) : row * step + step - y]
            rows = slice(max(y - row * step, 0), max(y - row * step, 0) + len(band))
            for column, into, source in columns:
                tile = self._tiles.get(row * across + column)
                if tile is None:
                    tile = self._tile(row * across + column, clock)
                part = band[:, into]
                part[:] = tile[rows, source.start : source.start + part.shape[1]]
        return window

    def _tile(self, index: int, clock: Clock) -> Array:
        began = time.perf_counter()
        tile = self._tiles[index] = self._decode(self._packed(index))
        clock.seconds["decode"] += time.perf_counter() - began
        self.decoded += 1
        return tile

    def _drop(self, top_row: int) -> None:
        """Forget the rows of tiles that lie well above all windows to come."""
        if top_row > self._top_row + 2:
            self._tiles = {i: tile for i, tile in self._tiles.items() if i >= (top_row - 2) * self._across}
            self._top_row = top_row

    def close(self) -> None:
        """Close the file and forget the tiles."""
        self._tiles.clear()
        self._tiff.close()


def _fastest(decoders: list[Callable[[bytes], Array]], tiles: list[bytes]) -> Callable[[bytes], Array]:
    """The quickest of some decoders that agree in every bit."""
    best: list[float] = []
    for decode in decoders:
        for tile in tiles[:3]:
            assert np.array_equal(decode(tile), decoders[0](tile)), "the decoders disagree"
        rounds = []
        for _ in range(3):
            began = time.perf_counter()
            for tile in tiles:
                decode(tile)
            rounds.append(time.perf_counter() - began)
        best.append(min(rounds))
    return decoders[best.index(min(best))]


class Decoded:
    """An image in one piece (JPEG, PNG): the whole of it is decoded once, when the first window is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pixels: Array | None = None
        import pyvips

        header = pyvips.Image.new_from_file(str(path))
        self.size_px: tuple[int, int] = (header.width, header.height)

    def window(self, x: int, y: int, side: int, clock: Clock) -> Array:
        """A square of the image."""
        if self._pixels is None:
            began = time.perf_counter()
            self._pixels = self._decode()
            clock.seconds["decode"] += time.perf_counter() - began
        return np.ascontiguousarray(self._pixels[y : y + side, x : x + side])

    def _decode(self) -> Array:
        import imagecodecs
        import simplejpeg

        data = self._path.read_bytes()
        if data[:2] == b"\xff\xd8":
            return simplejpeg.decode_jpeg(data)
        pixels = imagecodecs.imread(data) if data[:4] != b"\x89PNG" else imagecodecs.png_decode(data)
        return np.ascontiguousarray(pixels[..., :3] if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=2))

    def close(self) -> None:
        """Forget the pixels."""
        self._pixels = None
