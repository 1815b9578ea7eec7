"""Windows of an image in any number, each block of it read about once.

Spots lie close together and their niches overlap, so a pixel is wanted by many windows. The windows are visited from
top to bottom, and what is decoded is kept block by block (a tile of the file, as it comes) until the visit has gone
past it: a band of rows that rolls down the image.

Centres are asked for part by part, and what the next part wants is kept for it. That does best where parts follow each
other down the image, as spots in raster order do; where they do not, blocks are read again. An image whose windows
spread too wide for `KEPT_BYTES` is visited in strips from left to right, part by part, and what two strips or two parts
share is read twice.

Axes: N centres, S windows of a centre, H rows, W columns, C colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from histolake.ingestion.slide import SlideImage

__all__ = ["KEPT_BYTES", "Cut", "Windows"]

WHITE = 255
KEPT_BYTES = 256 << 20  # of decoded blocks, unless a single window wants more
ROW_PX = 128  # centres that lie this close in height are visited from left to right


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """A window's pixels. They are good until the next centre is asked for."""

    pixels_HWC: np.ndarray  # uint8, contiguous; white where the window leaves the image
    outside: float  # the fraction of it that does


class Windows:
    """Squares of `sides` (S) at each centre's upper left corners (x, y), to be cut from an image."""

    def __init__(
        self, image: SlideImage, corners_NS2: np.ndarray, sides: Sequence[int], kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._corners_NS2 = corners_NS2
        self._starts_N2 = corners_NS2.min(axis=1)
        ends_N2 = (corners_NS2 + np.asarray(sides)[:, None]).max(axis=1)
        self._held = [np.empty((side, side, 3), dtype=np.uint8) for side in sides]
        # The highest row that a centre or any after it wants.
        self._rest_N = np.append(np.minimum.accumulate(self._starts_N2[::-1, 1])[::-1], image.size_px[1])
        reach = int((ends_N2 - self._starts_N2).max(initial=0))  # of a centre's windows, across and down
        rows = reach + ROW_PX + 2 * image.block_px[1]  # that are wanted at once, in whole blocks
        self._strip_px = max(kept_bytes // (3 * rows), 2 * reach) - reach
        self._blocks = _Blocks(image, kept_bytes)

    def cut(self, start: int, stop: int) -> Iterator[tuple[int, tuple[Cut, ...]]]:
        """The windows of centres [start, stop), in the image's order with the centre's number.

        Raises `SourceError` where the image is damaged.
        """
        stop = min(stop, len(self._starts_N2))
        part = np.arange(start, stop)
        if not len(part):
            return
        from_left_N = self._starts_N2[:, 0] - self._starts_N2[:, 0].min()
        n = -(-(int(from_left_N.max()) + 1) // self._strip_px)
        strip = from_left_N[part] * n // (int(from_left_N.max()) + 1)
        rest = int(self._rest_N[stop])
        for number in range(n):
            if number:
                self._blocks.forget()
            yield from self._visit(part[strip == number], rest if n == 1 else None)

    def close(self) -> None:
        """Forget what was decoded."""
        self._blocks.forget()

    def _visit(self, centres: np.ndarray, rest: int | None) -> Iterator[tuple[int, tuple[Cut, ...]]]:
        starts_N2 = self._starts_N2[centres]
        order = np.lexsort((starts_N2[:, 0], starts_N2[:, 1] // ROW_PX))
        wanted_from = np.minimum.accumulate(starts_N2[order[::-1], 1])[::-1]
        for i, first in zip(centres[order].tolist(), wanted_from.tolist(), strict=True):
            self._blocks.keep(first, first if rest is None else min(first, rest))
            corners = self._corners_NS2[i].tolist()
            yield i, tuple(self._blocks.cut(x, y, into) for (x, y), into in zip(corners, self._held, strict=True))


class _Blocks:
    """Decoded blocks of an image, row by row of blocks."""

    def __init__(self, image: SlideImage, kept_bytes: int) -> None:
        self._image = image
        self._size = image.size_px
        self._side = image.block_px
        self._most = max(kept_bytes // (3 * self._side[0] * self._side[1]), 1)
        self._rows: dict[int, dict[int, np.ndarray]] = {}

    def forget(self) -> None:
        """Drop all of them."""
        self._rows.clear()

    def keep(self, first: int, later: int) -> None:
        """Drop what lies above the image's row `later`; above `first`, where that is too much to keep."""
        self._drop(later)
        if later < first and sum(map(len, self._rows.values())) > self._most:
            self._drop(first)

    def _drop(self, first: int) -> None:
        while self._rows and (row := min(self._rows)) < first // self._side[1]:
            del self._rows[row]

    def cut(self, x: int, y: int, into_HWC: np.ndarray) -> Cut:
        """The window at a corner, copied to `into_HWC`."""
        side_y, side_x, _ = into_HWC.shape
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + side_x, self._size[0]), min(y + side_y, self._size[1])
        inside_px = max(right - left, 0) * max(bottom - top, 0)
        if inside_px < side_x * side_y:
            into_HWC[:] = WHITE
        if inside_px:
            self._copy(into_HWC, x, y, _pieces(left, right, self._side[0]), _pieces(top, bottom, self._side[1]))
        return Cut(into_HWC, 1.0 - inside_px / (side_x * side_y))

    def _copy(self, into: np.ndarray, x: int, y: int, columns: list[_Piece], rows: list[_Piece]) -> None:
        across, down = self._side
        whither = [
            (column, slice(start - x, stop - x), slice(start - column * across, stop - column * across))
            for column, start, stop in columns
        ]
        for row, start, stop in rows:
            blocks = self._rows.get(row)
            if blocks is None:
                blocks = self._rows[row] = {}
            band = into[start - y : stop - y]
            source = slice(start - row * down, stop - row * down)
            for column, there, here in whither:
                block = blocks.get(column)
                if block is None:
                    block = blocks[column] = self._block(column, row)
                band[:, there] = block[source, here]

    def _block(self, column: int, row: int) -> np.ndarray:
        (across, down), (width, height) = self._side, self._size
        x, y = column * across, row * down
        return self._image.read_region(x, y, min(across, width - x), min(down, height - y))


_Piece = tuple[int, int, int]  # number of a block, and where a window's part of it starts and stops


def _pieces(start: int, stop: int, side: int) -> list[_Piece]:
    """The blocks that a stretch touches."""
    return [(k, max(start, k * side), min(stop, k * side + side)) for k in range(start // side, (stop - 1) // side + 1)]
