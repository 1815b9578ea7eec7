"""Patches: where they are cut, how large they are, what is measured on them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from histolake.ingestion.tiling import PatchSettings, focus, measure, patch_window, tile, tissue_fraction

FINE = PatchSettings(jpeg_quality=100)


class ArrayImage:
    """A `SlideImage` that is in memory already."""

    def __init__(self, image_HWC: np.ndarray) -> None:
        self._image_HWC = image_HWC

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self._image_HWC.shape[1], self._image_HWC.shape[0]

    @property
    def block_px(self) -> tuple[int, int]:
        """Unlike any window of these tests."""
        return 96, 64

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region as uint8 (H, W, 3)."""
        return self._image_HWC[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing to release."""


def picture(height: int = 600, width: int = 800, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def decoded(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def test_a_patch_is_the_square_around_its_centre() -> None:
    image = picture()
    centres = np.array([[300.0, 200.0], [400.5, 300.4], [99.6, 511.0]])
    tiles = tile(ArrayImage(image), centres, width_um=60.0, um_per_px=0.5, settings=FINE)
    for (x, y), jpeg in zip(centres, tiles.jpegs, strict=True):
        left, top = round(x - 60 + 1e-9), round(y - 60 + 1e-9)
        crop = image[top : top + 120, left : left + 120].astype(int)
        found = decoded(jpeg)
        assert found.shape == (120, 120, 3)
        # A patch a single pixel off would differ by more than JPEG at its best does.
        assert np.abs(found - crop).mean() < 1.5
        assert np.abs(found - np.roll(crop, 2, axis=1)).mean() > 2.5
    assert tiles.outside_N.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("x", "side", "corner"), [(10.0, 4, 8), (10.5, 4, 9), (10.49, 4, 8), (10.0, 5, 8), (-0.5, 4, -2)]
)
def test_halves_go_up(x: float, side: int, corner: int) -> None:
    assert patch_window(x, x, side) == (corner, corner)


def test_never_enlarged_and_at_most_as_wide_as_asked() -> None:
    image = ArrayImage(picture())
    centre = np.array([[400.0, 300.0]])
    widths = [(31.0, 1.0, 31), (224.0, 1.0, 224), (225.0, 1.0, 224), (500.0, 0.69, 224), (100.0, 0.69, 145)]
    for width_um, um_per_px, expected in widths:
        tiles = tile(image, centre, width_um=width_um, um_per_px=um_per_px, settings=PatchSettings())
        assert decoded(tiles.jpegs[0]).shape == (expected, expected, 3)


def test_a_reduction_is_antialiased() -> None:
    stripes = np.zeros((896, 896, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    tiles = tile(ArrayImage(stripes), np.array([[448.0, 448.0]]), width_um=896, um_per_px=1.0, settings=FINE)
    # The square reaches to the image's edge on all sides; its stripes become an even grey.
    found = decoded(tiles.jpegs[0])
    assert found.shape == (224, 224, 3)
    assert np.abs(found[10:-10, 10:-10] - 127).max() <= 3


def test_outside_the_image_is_white_and_counted() -> None:
    image = ArrayImage(np.full((100, 100, 3), 30, dtype=np.uint8))
    centres = np.array([[0.0, 50.0], [50.0, 50.0], [500.0, 500.0]])
    tiles = tile(image, centres, width_um=40, um_per_px=1.0, settings=FINE)
    np.testing.assert_allclose(tiles.outside_N, [0.5, 0.0, 1.0])
    left = decoded(tiles.jpegs[0])
    assert left[:, :19].min() > 250
    assert left[:, 21:].max() < 35
    assert tiles.tissue_fraction_N.tolist() == [0.5, 1.0, 0.0]


def test_the_answer_is_in_the_order_asked_whatever_order_is_read() -> None:
    image = ArrayImage(picture())
    centres = np.random.default_rng(3).uniform(50, 550, (40, 2))
    turned = np.random.default_rng(4).permutation(40)
    one = tile(image, centres, width_um=30, um_per_px=1.0, settings=PatchSettings())
    other = tile(image, centres[turned], width_um=30, um_per_px=1.0, settings=PatchSettings())
    assert [one.jpegs[i] for i in turned] == other.jpegs
    np.testing.assert_array_equal(one.focus_N[turned], other.focus_N)


def test_focus_falls_as_the_picture_blurs_and_ignores_contrast() -> None:
    sharp = np.random.default_rng(0).integers(60, 200, (120, 120, 3), dtype=np.uint8)
    blurred = [np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(r))) for r in (0.5, 1, 2)]
    figures = [focus(sharp), *(focus(patch) for patch in blurred)]
    assert figures == sorted(figures, reverse=True)
    assert focus((sharp // 2).astype(np.uint8)) == pytest.approx(focus(sharp), rel=0.02)
    assert focus(np.full((50, 50, 3), 240, dtype=np.uint8)) == 0.0


def test_tissue_is_coloured_or_dark_but_not_black() -> None:
    patch = np.full((10, 10, 3), 240, dtype=np.uint8)
    assert tissue_fraction(patch) == 0.0
    patch[:5] = (200, 120, 170)
    assert tissue_fraction(patch) == 0.5
    patch[5:7] = 40
    assert tissue_fraction(patch) == pytest.approx(0.7)
    patch[7:] = 0  # painted black where nothing was scanned
    assert tissue_fraction(patch) == pytest.approx(0.7)


def test_widths_follow_the_slide_unless_they_are_set() -> None:
    assert PatchSettings().widths_um(100, 200) == (100, 500)
    assert PatchSettings().widths_um(55, 100) == (55, 255)
    assert PatchSettings(spot_um=160, niche_um=400).widths_um(55, 100) == (160, 400)


def test_measuring_alone_finds_what_tiling_finds() -> None:
    image, centres = ArrayImage(picture()), np.random.default_rng(1).uniform(0, 600, (40, 2))
    tiles = tile(image, centres, width_um=50, um_per_px=0.5, settings=PatchSettings())
    tissue, sharpness = measure(image, centres, width_um=50, um_per_px=0.5)
    np.testing.assert_array_equal(tissue, tiles.tissue_fraction_N)
    np.testing.assert_array_equal(sharpness, tiles.focus_N)
