"""Windows of an image: the right pixels, each block read once where it can be, and a bound on what is kept."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from histolake.ingestion.images.windows import Windows

WIDTH, HEIGHT = 1300, 1700
MARGIN = 1200  # of white around the truth


class CountingImage:
    """A `SlideImage` in memory that counts how often each block is read."""

    um_per_px = None

    def __init__(self, block_px: tuple[int, int] = (128, 96)) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        self.on_white = np.pad(self.pixels, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)
        self.block_px = block_px
        self.size_px = (WIDTH, HEIGHT)
        self.reads: Counter[tuple[int, int]] = Counter()

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region; only whole blocks are ever asked for."""
        across, down = self.block_px
        assert (x % across, y % down) == (0, 0)
        assert (width, height) == (min(across, WIDTH - x), min(down, HEIGHT - y))
        self.reads[x, y] += 1
        return self.pixels[y : y + height, x : x + width]

    def overview(self, max_px: int) -> np.ndarray:
        """Nobody asks for it here."""
        raise AssertionError(max_px)

    def close(self) -> None:
        """Nothing to release."""


def truth(image: CountingImage, x: int, y: int, side: int) -> np.ndarray:
    return image.on_white[y + MARGIN : y + MARGIN + side, x + MARGIN : x + MARGIN + side]


def lattice(step: int = 100, margin: int = 200) -> np.ndarray:
    y, x = np.meshgrid(np.arange(margin, HEIGHT - margin, step), np.arange(margin, WIDTH - margin, step), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


def corners_of(centres: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    return np.stack([centres - side // 2 for side in sides], axis=1)


def cut_and_compared(image: CountingImage, windows: Windows, corners: np.ndarray, parts: list[tuple[int, int]]) -> None:
    seen = []
    for start, stop in parts:
        for i, cuts in windows.cut(start, stop):
            assert start <= i < stop
            seen.append(i)
            for (x, y), cut in zip(corners[i].tolist(), cuts, strict=True):
                side = len(cut.pixels_HWC)
                np.testing.assert_array_equal(cut.pixels_HWC, truth(image, x, y, side))
                inside = max(min(x + side, WIDTH) - max(x, 0), 0) * max(min(y + side, HEIGHT) - max(y, 0), 0)
                assert cut.outside == pytest.approx(1 - inside / side**2)
                assert cut.pixels_HWC.flags.c_contiguous
    assert sorted(seen) == sorted(i for start, stop in parts for i in range(start, stop))


@pytest.mark.parametrize("kept_bytes", [1 << 30, 400_000, 1])
@pytest.mark.parametrize("block_px", [(128, 96), (256, 256), (5000, 64), (64, 5000)])
def test_every_pixel_is_the_images_also_beyond_its_edges(block_px: tuple[int, int], kept_bytes: int) -> None:
    image = CountingImage(block_px)
    centres = np.random.default_rng(1).integers((-150, -150), (WIDTH + 150, HEIGHT + 150), (80, 2))
    centres[5] = (WIDTH + 800, 10)  # nothing of it lies in the image
    corners = corners_of(centres, (60, 333))
    windows = Windows(image, corners, (60, 333), kept_bytes=kept_bytes)
    cut_and_compared(image, windows, corners, [(0, 30), (30, 31), (31, 80)])
    cut_and_compared(image, windows, corners, [(60, 80), (0, 20)])


@pytest.mark.parametrize("part", [7, 40, 1000])
def test_spots_in_raster_order_decode_each_block_once_in_parts_of_any_size(part: int) -> None:
    image, centres = CountingImage(), lattice()
    corners = corners_of(centres, (60, 380))
    windows = Windows(image, corners, (60, 380))
    n = len(centres)
    cut_and_compared(image, windows, corners, [(a, min(a + part, n)) for a in range(0, n, part)])
    assert set(image.reads.values()) == {1}
    touched = (np.ptp(centres[:, 0]) + 380 + 127) // 128 * ((np.ptp(centres[:, 1]) + 380 + 95) // 96)
    assert len(image.reads) <= touched + 40


def test_a_narrow_memory_makes_strips_which_share_their_edges_alone() -> None:
    image, centres = CountingImage((64, 64)), lattice(step=40)
    corners = corners_of(centres, (30, 90))
    # Rows for two windows: nearly three strips of the image's width.
    windows = Windows(image, corners, (30, 90), kept_bytes=3 * 500 * (90 + 128 + 128))
    cut_and_compared(image, windows, corners, [(0, len(centres))])
    assert 1 < max(image.reads.values()) <= 2
    assert image.reads.total() < 1.35 * len(image.reads)


def test_what_is_kept_is_bounded_by_the_rows_that_are_wanted() -> None:
    image, centres = CountingImage((64, 64)), lattice()
    corners = corners_of(centres, (200,))
    windows = Windows(image, corners, (200,))
    most = 0
    for _ in windows.cut(0, len(centres)):
        most = max(most, sum(map(len, windows._blocks._rows.values())))
    rows = -(-(200 + 128) // 64) + 2
    assert most <= rows * -(-WIDTH // 64)
    windows.close()
    assert not windows._blocks._rows


def test_a_section_that_lies_on_its_side_is_read_again_and_not_kept_for_ever() -> None:
    """Spots column by column: each part begins at the top again."""
    image = CountingImage((64, 64))
    centres = lattice()
    centres = centres[np.lexsort((centres[:, 1], centres[:, 0]))]
    corners = corners_of(centres, (200,))
    windows = Windows(image, corners, (200,), kept_bytes=120 * 64 * 64 * 3)
    cut_and_compared(image, windows, corners, [(a, min(a + 30, len(centres))) for a in range(0, len(centres), 30)])
    assert max(image.reads.values()) <= 4


def test_no_centres() -> None:
    windows = Windows(CountingImage(), np.zeros((0, 1, 2), dtype=np.int64), (50,))
    assert list(windows.cut(0, 0)) == []
