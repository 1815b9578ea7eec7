"""A rolling band over an image: windows of it in any number, each block of it read once.

Spots lie close together and their niches overlap, so a pixel is wanted by many windows. The windows are visited from
top to bottom over an array that holds some rows of the image at once; a block (a tile of the file) is read when the
first window touches it, into its place in the array, and a window is copied from there. When the array is full it is
rolled on: the rows that are still wanted are copied to its top.

An image too wide for `BAND_BYTES` is visited in strips from left to right; only what the windows at a strip's edge
reach beyond it is read twice.

Axes: N centres, S windows of a centre, H rows, W columns, C colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from histolake.ingestion.slide import SlideImage

__all__ = ["BAND_BYTES", "Cut", "cut_all"]

WHITE = 255
BAND_BYTES = 256 << 20  # of the array, unless a single window wants more
ROW_PX = 128  # centres that lie this close in height are visited from left to right
ROLLED = 2  # times the rows that windows want at once are in the array, so that few are copied when it is rolled on


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """A window's pixels. They are good until the next centre is asked for."""

    pixels_HWC: np.ndarray  # uint8, contiguous; white where the window leaves the image
    outside: float  # the fraction of it that does


def cut_all(
    image: SlideImage, corners_NS2: np.ndarray, sides: Sequence[int], band_bytes: int = BAND_BYTES
) -> Iterator[tuple[int, tuple[Cut, ...]]]:
    """Squares of `sides` (S) at each centre's upper left corners (x, y), in the image's order with the centre's number.

    Raises `SourceError` where the image is damaged.
    """
    if not len(corners_NS2):
        return
    ends_NS2 = corners_NS2 + np.asarray(sides)[:, None]
    starts_N2, ends_N2 = corners_NS2.min(axis=1), ends_NS2.max(axis=1)
    reach = int((ends_N2 - starts_N2).max())  # of a centre's windows, across and down
    wanted_px = reach + ROW_PX + image.block_px[1]  # rows that the next windows want at once
    across_px = max(band_bytes // (3 * ROLLED * wanted_px), 2 * reach)
    for strip in _strips(starts_N2[:, 0], across_px - reach):
        left, right = int(starts_N2[strip, 0].min()), int(ends_N2[strip, 0].max())
        order = strip[np.lexsort((starts_N2[strip, 0], starts_N2[strip, 1] // ROW_PX))]
        wanted_from = np.minimum.accumulate(starts_N2[order[::-1], 1])[::-1]
        band = _Band(image, left, right, ROLLED * wanted_px)
        held = [np.empty((side, side, 3), dtype=np.uint8) for side in sides]
        for i, first in zip(order.tolist(), wanted_from.tolist(), strict=True):
            band.roll(first, int(ends_N2[i, 1]))
            yield i, tuple(band.cut(x, y, into) for (x, y), into in zip(corners_NS2[i].tolist(), held, strict=True))


def _strips(left_N: np.ndarray, width_px: int) -> Iterator[np.ndarray]:
    """Numbers of the centres whose windows begin in each of as few strips as there have to be, of equal widths."""
    first, span = int(left_N.min()), int(left_N.max() - left_N.min()) + 1
    n = -(-span // max(width_px, 1))
    strip_N = (left_N - first) * n // span
    for strip in range(n):
        here = np.flatnonzero(strip_N == strip)
        if len(here):
            yield here


class _Band:
    """Some rows of a strip of an image, as far as they were asked for."""

    def __init__(self, image: SlideImage, left: int, right: int, rows: int) -> None:
        self._image = image
        self._size = image.size_px
        self._block = across, down = tuple(min(b, s) for b, s in zip(image.block_px, image.size_px, strict=True))
        self._left = max(left, 0) // across * across
        columns = max(-(-(min(right, self._size[0]) - self._left) // across), 0)
        self._top = 0  # the image's row that is the array's first, at a block's edge
        rows = min(rows, self._size[1])
        self._rows_HWC = np.empty((-(-rows // down) * down, columns * across, 3), dtype=np.uint8)
        self._read = np.zeros((len(self._rows_HWC) // down, columns), dtype=bool)  # blocks that are in the array

    def roll(self, first: int, last: int) -> None:
        """Make room for the rows up to `last`; those above `first` are wanted no more."""
        if min(last, self._size[1]) <= self._top + len(self._rows_HWC):
            return
        down = self._block[1]
        steps = max(first, 0) // down - self._top // down
        kept = max(len(self._read) - steps, 0)
        for k in range(kept):
            if self._read[k + steps].any():
                here = slice(k * down, (k + 1) * down)
                self._rows_HWC[here] = self._rows_HWC[here.start + steps * down : here.stop + steps * down]
        self._read[:kept] = self._read[steps:]
        self._read[kept:] = False
        self._top += steps * down

    def cut(self, x: int, y: int, into_HWC: np.ndarray) -> Cut:
        """The window at a corner, copied to `into_HWC`; its rows are in the array's reach."""
        side_y, side_x, _ = into_HWC.shape
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + side_x, self._size[0]), min(y + side_y, self._size[1])
        inside_px = max(right - left, 0) * max(bottom - top, 0)
        if inside_px < side_x * side_y:
            into_HWC[:] = WHITE
        if inside_px:
            self._ensure(left, top, right, bottom)
            into_HWC[top - y : bottom - y, left - x : right - x] = self._rows_HWC[
                top - self._top : bottom - self._top, left - self._left : right - self._left
            ]
        return Cut(into_HWC, 1.0 - inside_px / (side_x * side_y))

    def _ensure(self, left: int, top: int, right: int, bottom: int) -> None:
        """Read the blocks that a region touches and that are not there yet."""
        across, down = self._block
        first_row, first_column = (top - self._top) // down, (left - self._left) // across
        rows = slice(first_row, (bottom - 1 - self._top) // down + 1)
        columns = slice(first_column, (right - 1 - self._left) // across + 1)
        there = self._read[rows, columns]
        if there.all():
            return
        for row, column in np.argwhere(~there).tolist():
            at_row, at_column = (first_row + row) * down, (first_column + column) * across
            x, y = self._left + at_column, self._top + at_row
            block = self._image.read_region(x, y, min(across, self._size[0] - x), min(down, self._size[1] - y))
            self._rows_HWC[at_row : at_row + block.shape[0], at_column : at_column + block.shape[1]] = block
            there[row, column] = True
