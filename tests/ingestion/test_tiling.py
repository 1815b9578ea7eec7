"""Patches: where they are cut, how large they are, what is measured on them."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from histolake.ingestion.tiling import (
    PairTiler,
    PatchSettings,
    focus,
    measure,
    patch_window,
    reduced,
    tile,
    tissue_fraction,
)

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


def test_both_patches_of_a_spot_in_one_visit_are_what_each_is_alone() -> None:
    image, centres = ArrayImage(picture()), np.random.default_rng(1).uniform(-20, 620, (60, 2))
    rules = PatchSettings(max_px=64)
    tiler = PairTiler(image, centres, spot_um=30, niche_um=130, um_per_px=0.5, settings=rules)
    spots, niches = (tile(image, centres, width_um=w, um_per_px=0.5, settings=rules) for w in (30, 130))
    for start, stop in [(0, 60), (10, 25), (25, 60)]:
        found, around = tiler.pairs(start, stop)
        assert found.jpegs == spots.jpegs[start:stop]
        assert around.jpegs == niches.jpegs[start:stop]
        for name in ("tissue_fraction_N", "focus_N", "outside_N"):
            np.testing.assert_array_equal(getattr(found, name), getattr(spots, name)[start:stop])
        np.testing.assert_array_equal(around.outside_N, niches.outside_N[start:stop])
    tiler.close()


@pytest.mark.parametrize("side", [225, 448, 1041])
def test_a_reduction_is_pillows_bicubic_but_for_roundings(side: int) -> None:
    patch = np.random.default_rng(2).integers(0, 255, (side, side, 3), dtype=np.uint8)
    patch[: side // 2] = picture(side // 20 * 20 + 40, side // 20 * 20 + 40)[: side // 2, :side]
    wanted = np.asarray(Image.fromarray(patch).resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    found = reduced(patch, 224)
    assert found.dtype == np.uint8 and found.shape == (224, 224, 3)
    assert np.abs(found - wanted).max() <= 2
    assert np.abs(found - wanted).mean() < 0.02


REDUCES = """
import hashlib, numpy as np, torch
from histolake.ingestion.tiling import reduced
rng = np.random.default_rng(0)
told = hashlib.sha256()
for side in (225, 512, 1041):
    told.update(np.ascontiguousarray(reduced(rng.integers(0, 255, (side, side, 3), dtype=np.uint8), 224)))
print(torch.backends.cpu.get_cpu_capability(), told.hexdigest())
"""


def test_a_reduction_has_the_same_pixels_with_vector_units_and_without() -> None:
    told = []
    for allowed in ("default", "avx2"):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": allowed}
        done = subprocess.run([sys.executable, "-c", REDUCES], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout.split())
    assert told[0][0] == "DEFAULT"
    assert len({digest for _, digest in told}) == 1


def slowly(patch: np.ndarray) -> tuple[float, float]:
    """Tissue and focus by their definitions, pixel by pixel in float64."""
    high, low = patch.max(axis=2).astype(int), patch.min(axis=2).astype(int)
    tissue = (high - low > 24) | ((high < 100) & (high > 20))
    grey = patch @ np.array([0.299, 0.587, 0.114])
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return float(tissue.mean()), float(laplacian.var() / middle.var()) if middle.var() > 1e-3 else 0.0


@pytest.mark.parametrize("shape", [(3, 3), (5, 40), (40, 5), (224, 224), (424, 424)])
def test_figures_are_what_their_definitions_say(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    for patch in (
        rng.integers(0, 255, (*shape, 3), dtype=np.uint8),
        rng.integers(0, 130, (*shape, 3), dtype=np.uint8) // 6 + rng.integers(0, 110, (*shape, 1), dtype=np.uint8),
    ):
        tissue, sharpness = slowly(patch)
        assert tissue_fraction(patch) == pytest.approx(tissue, abs=1e-12)
        assert focus(patch) == pytest.approx(sharpness, rel=2e-5)
    assert focus(np.zeros((2, 50, 3), dtype=np.uint8)) == 0.0
