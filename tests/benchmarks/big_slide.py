"""The slide that the speed of the ingest is measured on: 30,000 x 30,000 px with 5,000 Visium spots.

A folder as Space Ranger writes it, so that the ingest of every day reads it: a pyramid TIFF of JPEG tiles (256 px,
quality 87, 4:2:0, shared tables, as a scanner's software writes them) at 0.245 um a pixel, a matrix in HDF5 with about
3,000 expressed genes a spot, and the lattice of 100 um. A spot's patch of 55 um is 224 px there, its niche of 255 um
1,041 px.

The picture is a periodic pattern in the colours of haematoxylin and eosin, turned, mirrored and dyed anew from block to
block. Nothing of it looks like an organ; what counts is that it compresses as tissue at this magnification does (about
2 bits a pixel) and that no tile is empty.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tests.ingestion.space_ranger_files import write_h5, write_positions

__all__ = ["COVERAGE", "FULL", "QUICK", "BigSlide", "Shape", "big_slide"]

UM_PER_PX = 0.245
PITCH_UM, DIAMETER_UM = 100.0, 55.0
ROW_UM = PITCH_UM * 3**0.5 / 2
QUALITY = 87  # of the tiles
TILE_PX = 256
GENES, EXPRESSED = 18_000, 3_000
RECIPE = 1  # raise it when the same shape comes out as another slide
# What share of the image's area lies under the spots' patches: the width of a patch, None for the spot's diameter.
COVERAGE: dict[str, float | None] = {"quarter": None, "full": 104.0}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large the slide is."""

    side_px: int = 30_000
    spots: int = 5_000
    pattern_px: int = 4_096


FULL = Shape()
QUICK = Shape(side_px=5_000, spots=110, pattern_px=1_024)


@dataclass(frozen=True, kw_only=True)
class BigSlide:
    """Where it lies, and what is in it."""

    folder: Path
    image: Path
    xy_px: np.ndarray  # (N, 2), the spots' centres in raster order
    um_per_px: float = UM_PER_PX


def big_slide(work: Path, shape: Shape = FULL, seed: int = 0) -> BigSlide:
    """The slide in a folder of `work`, made there unless it is there already; under a minute."""
    folder = work / f"slide-{shape.side_px}-{shape.spots}-{seed}-{RECIPE}"
    _, xy_px = _lattice(shape)
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=work, prefix=".writing-"))
        _write(draft, shape, np.random.default_rng(seed))
        try:
            draft.rename(folder)
        except OSError:  # another process was quicker
            shutil.rmtree(draft)
    return BigSlide(folder=folder, image=folder / "tissue_image.tif", xy_px=xy_px)


def _write(folder: Path, shape: Shape, rng: np.random.Generator) -> None:
    (folder / "spatial").mkdir()
    array, xy_px = _lattice(shape)
    letters = rng.permutation(4**8)[: len(xy_px)]
    barcodes = ["".join("ACGT"[n >> 2 * k & 3] for k in range(8)) * 2 + "-1" for n in letters.tolist()]
    where = {
        barcode: (1, int(row), int(col), float(x), float(y))
        for barcode, (row, col), (x, y) in zip(barcodes, array, xy_px, strict=True)
    }
    write_positions(folder / "spatial", where, version=2)
    factors = {
        "tissue_hires_scalef": 2000 / shape.side_px,
        "tissue_lowres_scalef": 600 / shape.side_px,
        "fiducial_diameter_fullres": 105 / UM_PER_PX,
        "spot_diameter_fullres": 70 / UM_PER_PX,
    }
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    _write_counts(folder, barcodes, rng)
    _write_image(folder / "tissue_image.tif", shape, rng)


def _lattice(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Array positions (row, column) and centres in pixels (x, y) of the spots, in raster order; as square as can be."""
    across = round((shape.spots * 3**0.5 / 2) ** 0.5)
    down = -(-shape.spots // across)
    row, place = (axis.ravel()[: shape.spots] for axis in np.indices((down, across)))
    array = np.stack([row, 2 * place + row % 2], axis=1)
    xy_um = np.stack([array[:, 1] * PITCH_UM / 2, array[:, 0] * ROW_UM], axis=1)
    middle = (xy_um.max(axis=0) + xy_um.min(axis=0)) / 2
    return array, np.round((xy_um - middle) / UM_PER_PX + shape.side_px / 2, 2)


def _write_counts(folder: Path, barcodes: list[str], rng: np.random.Generator) -> None:
    """Poisson counts by genes' own rates and spots' own depths, about `EXPRESSED` genes a spot."""
    from scipy.sparse import csr_array, vstack

    from histolake.platform.lake.genes import vocabulary

    known = vocabulary().to_pydict()
    chosen = np.sort(rng.choice(len(known["symbol"]), GENES, replace=False)).tolist()
    features = [(known["ensembl_id"][g], known["symbol"][g], "Gene Expression", "GRCh38") for g in chosen]
    rates = np.exp(rng.normal(-3.5, 1.9, GENES))
    for _ in range(20):  # scaled until the expected number of expressed genes is right
        rates *= EXPRESSED / (1 - np.exp(-rates)).sum()
    parts = []
    for start in range(0, len(barcodes), 250):
        depth = rng.gamma(8.0, 1 / 8.0, (len(barcodes[start : start + 250]), 1))
        parts.append(csr_array(rng.poisson(rates * depth).astype(np.int32)))
    attributes = {"chemistry_description": "Spatial 3' v1", "software_version": "spaceranger-2.0.0"}
    write_h5(folder / "filtered_feature_bc_matrix.h5", barcodes, vstack(parts).tocsr(), features, attributes)


def _write_image(path: Path, shape: Shape, rng: np.random.Generator) -> None:
    """The pyramid, streamed: libvips puts the blocks together while it writes."""
    import pyvips

    pattern = pyvips.Image.new_from_array(_pattern(shape.pattern_px, rng)).copy(interpretation="srgb")
    across = -(-shape.side_px // shape.pattern_px)
    blocks = [_varied(pattern, rng) for _ in range(across * across)]
    whole = pyvips.Image.arrayjoin(blocks, across=across).crop(0, 0, shape.side_px, shape.side_px)
    whole.tiffsave(
        str(path),
        tile=True,
        tile_width=TILE_PX,
        tile_height=TILE_PX,
        pyramid=True,
        compression="jpeg",
        Q=QUALITY,
        bigtiff=True,
        resunit="cm",
        xres=1000 / UM_PER_PX,
        yres=1000 / UM_PER_PX,
    )


def _varied(pattern: Any, rng: np.random.Generator) -> Any:
    """A block: the pattern turned or mirrored, and its dyes a little stronger or weaker."""
    block = pattern.rot(["d0", "d90", "d180", "d270"][rng.integers(4)])
    block = block.fliphor() if rng.integers(2) else block
    gain = rng.uniform(0.92, 1.06, 3).tolist()
    return block.linear(gain, [255 * (1 - g) for g in gain], uchar=True)


def _pattern(side: int, rng: np.random.Generator) -> np.ndarray:
    """A periodic picture, uint8 (side, side, 3): two dyes over white by Beer-Lambert, with a camera's noise."""
    cloud, fibre, nuclei, grain = (_smooth_noise(side, width, rng) for width in (90.0, 9.0, 7.0, 1.4))
    eosin = np.clip(0.45 + 0.12 * cloud + 0.13 * fibre + 0.05 * grain, 0, None)
    haematoxylin = 0.05 + 0.75 / (1 + np.exp(-6 * (nuclei + 0.3 * cloud - 1.1))) * (1 + 0.12 * grain)
    absorbs = {"haematoxylin": (1.30, 1.42, 0.62), "eosin": (0.16, 1.05, 0.52)}
    picture = np.empty((side, side, 3), np.uint8)
    for c in range(3):
        depth = haematoxylin * absorbs["haematoxylin"][c] + eosin * absorbs["eosin"][c]
        noise = rng.normal(0, 3.0, (side, side)).astype(np.float32)
        picture[..., c] = np.clip(244 * np.exp(-depth) + noise, 0, 255)
    return picture


def _smooth_noise(side: int, width_px: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of deviation 1, smoothed by a Gaussian of this width; periodic."""
    from scipy.fft import irfft2, rfft2

    spectrum = rfft2(rng.standard_normal((side, side), dtype=np.float32))
    y, x = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    smooth = irfft2(spectrum * np.exp(-2 * (np.pi * width_px) ** 2 * (x**2 + y**2)).astype(np.float32), s=(side, side))
    return (smooth / smooth.std()).astype(np.float32)
