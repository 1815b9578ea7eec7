"""A rolling band over an image: windows of it in any number, each block of it read about once.

Spots lie close together and their niches overlap, so a pixel is wanted by many windows. The windows are visited from
top to bottom over an array that holds some rows of the image at once; a block (a tile of the file) is read when the
first window touches it, into its place in the array, and a window is copied from there. When the array is full it is
rolled on: the rows that are still wanted are copied to its top.

Centres are asked for part by part, and the array stays for the next part. It does best where parts follow each other
down the image, as spots in raster order do; where they do not, what the next part wants is read again. An image whose
windows spread too wide for `BAND_BYTES` is visited in strips from left to right, part by part, and what two strips or
two parts share is read twice.

Axes: N centres, S windows of a centre, H rows, W columns, C colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from histolake.ingestion.slide import SlideImage

__all__ = ["BAND_BYTES", "Cut", "Windows"]

WHITE = 255
BAND_BYTES = 384 << 20  # of the array, unless a single window wants more
ROW_PX = 128  # centres that lie this close in height are visited from left to right
ROLLED = 2  # times the rows that windows want at once are in the array, so that few are copied when it is rolled on


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """A window's pixels. They are good until the next centre is asked for."""

    pixels_HWC: np.ndarray  # uint8, contiguous; white where the window leaves the image
    outside: float  # the fraction of it that does


class Windows:
    """Squares of `sides` (S) at each centre's upper left corners (x, y), to be cut from an image."""

    def __init__(
        self, image: SlideImage, corners_NS2: np.ndarray, sides: Sequence[int], band_bytes: int = BAND_BYTES
    ) -> None:
        self._image = image
        self._corners_NS2 = corners_NS2
        self._starts_N2 = corners_NS2.min(axis=1)
        self._ends_N2 = (corners_NS2 + np.asarray(sides)[:, None]).max(axis=1)
        self._held = [np.empty((side, side, 3), dtype=np.uint8) for side in sides]
        reach = int((self._ends_N2 - self._starts_N2).max(initial=0))  # of a centre's windows, across and down
        self._rows = ROLLED * (reach + ROW_PX + image.block_px[1])
        self._strip_px = max(band_bytes // (3 * self._rows), 2 * reach) - reach
        # The highest row that a centre or any after it wants.
        self._rest_N = np.append(np.minimum.accumulate(self._starts_N2[::-1, 1])[::-1], self._image.size_px[1])
        self._band: _Band | None = None

    def cut(self, start: int, stop: int) -> Iterator[tuple[int, tuple[Cut, ...]]]:
        """The windows of centres [start, stop), in the image's order with the centre's number.

        Raises `SourceError` where the image is damaged.
        """
        stop = min(stop, len(self._starts_N2))
        part = np.arange(start, stop)
        if not len(part):
            return
        whole_px = int(np.ptp(self._starts_N2[:, 0])) + 1
        if whole_px <= self._strip_px:
            self._band = self._band or self._band_over(slice(None))
            yield from self._visit(self._band, part, int(self._rest_N[stop]))
            return
        n = -(-whole_px // self._strip_px)
        strip = (self._starts_N2[part, 0] - self._starts_N2[:, 0].min()) * n // whole_px
        for here in (part[strip == k] for k in range(n)):
            if len(here):
                yield from self._visit(self._band_over(here), here, self._image.size_px[1])

    def close(self) -> None:
        """Forget the band."""
        self._band = None

    def _band_over(self, centres: np.ndarray | slice) -> _Band:
        left, right = int(self._starts_N2[centres, 0].min()), int(self._ends_N2[centres, 0].max())
        return _Band(self._image, left, right, self._rows)

    def _visit(self, band: _Band, centres: np.ndarray, rest: int) -> Iterator[tuple[int, tuple[Cut, ...]]]:
        starts_N2 = self._starts_N2[centres]
        order = np.lexsort((starts_N2[:, 0], starts_N2[:, 1] // ROW_PX))
        wanted_from = np.minimum.accumulate(starts_N2[order[::-1], 1])[::-1]
        for i, first in zip(centres[order].tolist(), wanted_from.tolist(), strict=True):
            band.roll(first, int(self._ends_N2[i, 1]), min(first, rest))
            corners = self._corners_NS2[i].tolist()
            yield i, tuple(band.cut(x, y, into) for (x, y), into in zip(corners, self._held, strict=True))


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

    def roll(self, first: int, last: int, later: int) -> None:
        """Have room for the rows from `first` to `last`; those above are wanted no more, or by later parts if they are
        not above `later`."""
        down, size = self._block[1], len(self._rows_HWC)
        first, last = max(first, 0), min(last, self._size[1])
        if first >= self._top and last <= self._top + size:
            return
        top = max(later, 0) if last - max(later, 0) + 2 * down <= size * (ROLLED + 1) // (2 * ROLLED) else first
        steps = top // down - self._top // down
        kept = max(len(self._read) - steps, 0) if steps >= 0 else 0
        for k in range(kept):
            if self._read[k + steps].any():
                here = slice(k * down, (k + 1) * down)
                self._rows_HWC[here] = self._rows_HWC[here.start + steps * down : here.stop + steps * down]
        self._read[:kept] = self._read[steps : steps + kept]
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
