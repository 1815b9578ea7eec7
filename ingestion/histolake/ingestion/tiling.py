"""Tiling: patches around spots, from image regions to JPEG bytes and back to nothing else.

Pure functions of the image's pixels, the centres and the settings: no files, no tables, no Ray. A patch is the square
of a physical width centred on a spot. It is stored at the image's own resolution, reduced (antialiased) only where it
is wider than `max_px`, never enlarged. What lies outside the image is white, and how much is told.

Spots are visited in the image's order (`images/windows.py`), and both patches of a spot are cut in one visit, so that
each tile of the image is decoded about once.

Axes: N spots, H rows, W columns, C colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from histolake.ingestion.images.windows import Cut, Windows
from histolake.ingestion.slide import SlideImage

__all__ = [
    "PairTiler",
    "PatchSettings",
    "Patches",
    "Tiles",
    "focus",
    "measure",
    "patch_window",
    "reduced",
    "tile",
    "tissue_fraction",
]

NICHES = ("nearest", "radius")

CHROMA_OF_TISSUE = 24  # of 255: the stains colour a pixel by more than this, glass and paper by less
DARK = 100  # of 255: a pixel darker than this is tissue, ink or dirt rather than glass, whatever its colour,
BLACK = 20  # unless it is as dark as this: what scanners and curators paint where nothing was scanned


@dataclass(frozen=True, kw_only=True)
class PatchSettings:
    """What a stored patch shows and how it is encoded."""

    spot_um: float | None = None  # micrometres, width of the spot patch; empty takes the spot's diameter
    niche_um: float | None = None  # micrometres, width of the niche patch; empty takes diameter + 2 pitches
    max_px: int = 224  # pixels, widest stored patch; a larger one is reduced, none is enlarged
    jpeg_quality: int = 90  # 1 to 100
    niche_by: str = "nearest"  # nearest: niche_k other spots; radius: all whose centres are within niche_radius_um
    niche_k: int = 3  # nearest other spots in a niche (ST-Align)
    niche_radius_um: float | None = None  # micrometres between centres, for niche_by = "radius"
    niche_include_self: bool = True  # whether a niche's mean profile holds the spot itself

    def __post_init__(self) -> None:
        faults = [
            fault
            for broken, fault in (
                (self.niche_by not in NICHES, f"niche_by is {self.niche_by!r}; it is one of {', '.join(NICHES)}"),
                (
                    self.niche_by == "radius" and not (self.niche_radius_um or 0) > 0,
                    'niche_by = "radius" needs niche_radius_um above 0 (micrometres); 110 takes in Visium neighbours',
                ),
                (
                    self.niche_by == "nearest" and self.niche_radius_um is not None,
                    'niche_radius_um is given, but niche_by is "nearest"; set niche_by = "radius" or leave it out',
                ),
                (self.niche_k < 0, f"niche_k is {self.niche_k}; it is 0 or more"),
                (self.spot_um is not None and self.spot_um <= 0, f"spot_um is {self.spot_um}; it is above 0, or empty"),
                (
                    self.niche_um is not None and self.niche_um <= 0,
                    f"niche_um is {self.niche_um}; it is above 0, or empty",
                ),
                (self.max_px < 1, f"max_px is {self.max_px}; it is 1 or more"),
                (not 1 <= self.jpeg_quality <= 100, f"jpeg_quality is {self.jpeg_quality}; it is 1 to 100"),
            )
            if broken
        ]
        if faults:
            raise ValueError("; ".join(faults))

    def widths_um(self, spot_diameter_um: float, pitch_um: float) -> tuple[float, float]:
        """The physical widths of the spot patch and of the niche patch on a slide of this geometry. Where the niche is
        a radius, its patch shows the spots that are in it."""
        spot_um = spot_diameter_um if self.spot_um is None else self.spot_um
        around_um = pitch_um if self.niche_radius_um is None else self.niche_radius_um
        niche_um = spot_diameter_um + 2 * around_um if self.niche_um is None else self.niche_um
        return spot_um, niche_um


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches:
    """One patch a spot, in the order of the centres asked for."""

    jpegs: list[bytes]
    outside_N: np.ndarray  # float32, fraction of the patch that lies outside the image and was filled with white


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """One patch a spot, in the order of the centres asked for, with what is measured on it before it is reduced."""

    jpegs: list[bytes]
    tissue_fraction_N: np.ndarray  # float32, 0 to 1
    focus_N: np.ndarray  # float32, 0 and up; higher is sharper
    outside_N: np.ndarray  # float32, fraction of the patch that lies outside the image and was filled with white


def patch_window(x_px: float, y_px: float, side_px: int) -> tuple[int, int]:
    """The upper left corner of the square of `side_px` around a centre; halves go up, so the answer never wavers."""
    return math.floor(x_px - side_px / 2 + 0.5), math.floor(y_px - side_px / 2 + 0.5)


def tile(
    image: SlideImage, xy_px_N2: np.ndarray, *, width_um: float, um_per_px: float, settings: PatchSettings
) -> Tiles:
    """Cut, measure and encode one patch a centre. Spots are visited in the image's order; the answer is in theirs."""
    jpegs: list[bytes] = [b""] * len(xy_px_N2)
    tissue_N, focus_N, outside_N = (np.zeros(len(xy_px_N2), dtype=np.float32) for _ in range(3))
    for i, (patch,) in _windows(image, xy_px_N2, [width_um / um_per_px]).cut(0, len(xy_px_N2)):
        tissue_N[i], focus_N[i] = tissue_fraction(patch.pixels_HWC), focus(patch.pixels_HWC)
        jpegs[i], outside_N[i] = _stored(patch, settings), patch.outside
    return Tiles(jpegs=jpegs, tissue_fraction_N=tissue_N, focus_N=focus_N, outside_N=outside_N)


def measure(
    image: SlideImage, xy_px_N2: np.ndarray, *, width_um: float, um_per_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Tissue fraction and focus of the patches, float32 (N,) each, as `tile` finds them; nothing is encoded."""
    tissue_N, focus_N = (np.zeros(len(xy_px_N2), dtype=np.float32) for _ in range(2))
    for i, (patch,) in _windows(image, xy_px_N2, [width_um / um_per_px]).cut(0, len(xy_px_N2)):
        tissue_N[i], focus_N[i] = tissue_fraction(patch.pixels_HWC), focus(patch.pixels_HWC)
    return tissue_N, focus_N


class PairTiler:
    """Cuts the patches of spots and of their niches, part by part; both of a spot in one visit."""

    def __init__(
        self,
        image: SlideImage,
        xy_px_N2: np.ndarray,
        *,
        spot_um: float,
        niche_um: float,
        um_per_px: float,
        settings: PatchSettings,
    ) -> None:
        self._windows = _windows(image, xy_px_N2, [spot_um / um_per_px, niche_um / um_per_px])
        self._settings = settings

    def pairs(self, start: int, stop: int) -> tuple[Tiles, Patches]:
        """Those of centres [start, stop): of the spots as `tile` gives them; on the niches' nothing is measured. Parts
        that follow each other down the image decode a tile once."""
        n = stop - start
        jpegs: list[bytes] = [b""] * n
        niche_jpegs: list[bytes] = [b""] * n
        tissue_N, focus_N, outside_N, niche_outside_N = (np.zeros(n, dtype=np.float32) for _ in range(4))
        for number, (spot, niche) in self._windows.cut(start, stop):
            i = number - start
            tissue_N[i], focus_N[i] = tissue_fraction(spot.pixels_HWC), focus(spot.pixels_HWC)
            jpegs[i], outside_N[i] = _stored(spot, self._settings), spot.outside
            niche_jpegs[i], niche_outside_N[i] = _stored(niche, self._settings), niche.outside
        spots = Tiles(jpegs=jpegs, tissue_fraction_N=tissue_N, focus_N=focus_N, outside_N=outside_N)
        return spots, Patches(jpegs=niche_jpegs, outside_N=niche_outside_N)

    def close(self) -> None:
        """Forget what was decoded. The image stays open."""
        self._windows.close()


def _windows(image: SlideImage, xy_px_N2: np.ndarray, widths_px: Sequence[float]) -> Windows:
    """The centres' patches of each width."""
    sides = [max(1, round(width_px)) for width_px in widths_px]
    corners = np.array([[patch_window(x, y, side) for side in sides] for x, y in xy_px_N2], dtype=np.int64)
    return Windows(image, corners.reshape(-1, len(sides), 2), sides)


def _stored(patch: Cut, settings: PatchSettings) -> bytes:
    """The patch as it is stored."""
    import simplejpeg

    pixels_HWC = np.ascontiguousarray(reduced(patch.pixels_HWC, settings.max_px))
    return simplejpeg.encode_jpeg(pixels_HWC, quality=settings.jpeg_quality, colorsubsampling="420")


def reduced(patch_HWC: np.ndarray, max_px: int) -> np.ndarray:
    """The square patch at most `max_px` wide; a reduction is antialiased (bicubic over the source pixels, a = -0.5).

    It is Pillow's BICUBIC but for roundings (a level here and there), and ten times as fast where the processor has
    AVX2. All of it is integer arithmetic: the same pixels with vector units and without.
    """
    if patch_HWC.shape[0] <= max_px:
        return patch_HWC
    import torch

    # torch wants memory that can be written, and would copy what lies scattered itself, with all threads it finds.
    patch_HWC = np.require(patch_HWC, requirements=["C", "W"])
    image_BCHW = torch.from_numpy(patch_HWC)[None].permute(0, 3, 1, 2)
    small_BCHW = torch.nn.functional.interpolate(image_BCHW, size=(max_px, max_px), mode="bicubic", antialias=True)
    return small_BCHW[0].permute(1, 2, 0).numpy()


def tissue_fraction(patch_HWC: np.ndarray) -> float:
    """The fraction of pixels that are tissue: coloured (largest less smallest colour above `CHROMA_OF_TISSUE`), or dark
    without being black.

    Empty glass is bright and nearly grey; haematoxylin and eosin both colour. No stain vectors are fitted, so the
    figure is the same whatever else is on the slide; pen marks count as tissue.
    """
    # Each value with the two that follow it: every third of these neighbourhoods is a pixel. Contiguous passes over
    # three times too much are quicker than one over scattered values.
    flat = patch_HWC.reshape(-1)
    pair = np.maximum(flat[:-1], flat[1:])
    high = np.maximum(pair[:-1], flat[2:])
    np.minimum(flat[:-1], flat[1:], out=pair)
    low = np.minimum(pair[:-1], flat[2:])
    tissue = np.subtract(high, low, out=low) > CHROMA_OF_TISSUE
    tissue |= np.subtract(high, BLACK + 1, out=high) < DARK - BLACK - 1  # what is darker than that wraps around
    tissue &= _pixels(len(tissue))
    return np.count_nonzero(tissue) / (len(flat) // 3)


@lru_cache(maxsize=8)
def _pixels(n: int) -> np.ndarray:
    """Which of `n` neighbourhoods of three values are pixels."""
    return np.arange(n) % 3 == 0


def focus(patch_HWC: np.ndarray) -> float:
    """How sharp a patch is: the variance of its Laplacian over the variance of its luminance; 0 for a flat patch.

    The ratio does not change with contrast or exposure, and falls as the patch is blurred. Compare it only between
    patches of equal micrometres per pixel.
    """
    height, width, _ = patch_HWC.shape
    if min(height, width) < 3:
        return 0.0
    grey = (patch_HWC @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).reshape(-1)
    grey -= grey[::61].mean()  # about 0, where float32 counts finest
    # The rows but the first and the last, one after the other, so that a neighbour is a step along them; their ends,
    # which have no neighbour beside them, count for nothing.
    n = (height - 2) * width
    middle = grey[width : width + n]
    laplacian = middle * -4
    for first in (0, width - 1, width + 1, 2 * width):
        laplacian += grey[first : first + n]
    for values in (laplacian, middle):
        values.reshape(height - 2, width)[:, :: width - 1] = 0
    counted = (height - 2) * (width - 2)
    spread = _variance(middle, counted)
    return _variance(laplacian, counted) / spread if spread > 1e-3 else 0.0


def _variance(values: np.ndarray, n: int) -> float:
    """Of `n` values, among others that are 0."""
    return float(np.dot(values, values)) / n - (float(values.sum()) / n) ** 2
