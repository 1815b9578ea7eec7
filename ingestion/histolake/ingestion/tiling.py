"""Tiling: patches around spots, from image regions to JPEG bytes and back to nothing else.

`tile` is a pure function of the image's pixels, the centres and the settings: no files, no tables, no Ray. A patch is
the square of a physical width centred on a spot. It is stored at the image's own resolution, reduced (antialiased) only
where it is wider than `max_px`, never enlarged. What lies outside the image is white, and how much is told.

Axes: N spots, H rows, W columns, C colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from histolake.ingestion.slide import SlideImage

__all__ = ["PatchSettings", "Tiles", "focus", "measure", "patch_window", "tile", "tissue_fraction"]

NICHES = ("nearest", "radius")

WHITE = 255
CHROMA_OF_TISSUE = 24  # of 255: the stains colour a pixel by more than this, glass and paper by less
DARK = 100  # of 255: a pixel darker than this is tissue, ink or dirt rather than glass, whatever its colour,
BLACK = 20  # unless it is as dark as this: what scanners and curators paint where nothing was scanned
LOCALITY_PX = 512  # spots are visited cell by cell of this size, so that neighbouring reads follow each other


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
class Tiles:
    """One patch a spot, in the order of the centres asked for."""

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
    import simplejpeg

    n = len(xy_px_N2)
    jpegs: list[bytes] = [b""] * n
    tissue_N, focus_N, outside_N = (np.zeros(n, dtype=np.float32) for _ in range(3))
    for i, patch_HWC, outside in _patches(image, xy_px_N2, width_um / um_per_px):
        outside_N[i] = outside
        tissue_N[i] = tissue_fraction(patch_HWC)
        focus_N[i] = focus(patch_HWC)
        stored = np.ascontiguousarray(_reduced(patch_HWC, settings.max_px))
        jpegs[i] = simplejpeg.encode_jpeg(stored, quality=settings.jpeg_quality, colorsubsampling="420")
    return Tiles(jpegs=jpegs, tissue_fraction_N=tissue_N, focus_N=focus_N, outside_N=outside_N)


def measure(
    image: SlideImage, xy_px_N2: np.ndarray, *, width_um: float, um_per_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Tissue fraction and focus of the patches, float32 (N,) each, as `tile` finds them; nothing is encoded."""
    tissue_N, focus_N = (np.zeros(len(xy_px_N2), dtype=np.float32) for _ in range(2))
    for i, patch_HWC, _ in _patches(image, xy_px_N2, width_um / um_per_px):
        tissue_N[i] = tissue_fraction(patch_HWC)
        focus_N[i] = focus(patch_HWC)
    return tissue_N, focus_N


def _patches(image: SlideImage, xy_px_N2: np.ndarray, width_px: float) -> Iterator[tuple[int, np.ndarray, float]]:
    """Each centre's number, its patch and the fraction of it outside the image, in the image's order."""
    side = max(1, round(width_px))
    cells = np.floor(np.asarray(xy_px_N2) / LOCALITY_PX)
    for i in np.lexsort((cells[:, 0], cells[:, 1])):
        x_px, y_px = xy_px_N2[i]
        yield int(i), *_cut(image, *patch_window(x_px, y_px, side), side)


def _cut(image: SlideImage, x: int, y: int, side: int) -> tuple[np.ndarray, float]:
    """The square at a corner, white where it leaves the image, and the fraction of it that does."""
    width, height = image.size_px
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + side, width), min(y + side, height)
    if right <= left or bottom <= top:
        return np.full((side, side, 3), WHITE, dtype=np.uint8), 1.0
    inside = image.read_region(left, top, right - left, bottom - top)
    if inside.shape[:2] == (side, side):
        return inside, 0.0
    patch = np.full((side, side, 3), WHITE, dtype=np.uint8)
    patch[top - y : bottom - y, left - x : right - x] = inside
    return patch, 1.0 - inside.shape[0] * inside.shape[1] / side**2


def _reduced(patch_HWC: np.ndarray, max_px: int) -> np.ndarray:
    """The patch at most `max_px` wide; a reduction is antialiased (Lanczos over the source pixels)."""
    if patch_HWC.shape[0] <= max_px:
        return patch_HWC
    from PIL import Image

    picture = Image.fromarray(patch_HWC)
    return np.asarray(picture.resize((max_px, max_px), Image.Resampling.LANCZOS, reducing_gap=3.0))


def tissue_fraction(patch_HWC: np.ndarray) -> float:
    """The fraction of pixels that are tissue: coloured (largest less smallest colour above `CHROMA_OF_TISSUE`), or dark
    without being black.

    Empty glass is bright and nearly grey; haematoxylin and eosin both colour. No stain vectors are fitted, so the
    figure is the same whatever else is on the slide; pen marks count as tissue.
    """
    high = np.maximum(np.maximum(patch_HWC[..., 0], patch_HWC[..., 1]), patch_HWC[..., 2])
    low = np.minimum(np.minimum(patch_HWC[..., 0], patch_HWC[..., 1]), patch_HWC[..., 2])
    return float(np.mean(((high - low) > CHROMA_OF_TISSUE) | ((high < DARK) & (high > BLACK))))


def focus(patch_HWC: np.ndarray) -> float:
    """How sharp a patch is: the variance of its Laplacian over the variance of its luminance; 0 for a flat patch.

    The ratio does not change with contrast or exposure, and falls as the patch is blurred. Compare it only between
    patches of equal micrometres per pixel.
    """
    grey_HW = patch_HWC @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    if min(grey_HW.shape) < 3:
        return 0.0
    middle = grey_HW[1:-1, 1:-1]
    laplacian = grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:] - 4 * middle
    spread = float(middle.var())
    return float(laplacian.var()) / spread if spread > 1e-3 else 0.0
