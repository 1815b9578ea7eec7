"""Arrays of spots: what a technology's name, its barcodes and its lattice say about pitch and diameter.

| array | spots | pitch | lattice |
| --- | --- | --- | --- |
| Visium | 55 um | 100 um | hexagonal |
| Spatial Transcriptomics, 1,007 spots (33 by 35) | 100 um | 200 um | square |
| Spatial Transcriptomics, 1,934 spots | 100 um | 150 um | staggered: columns 100 um apart, rows 111.8 um |

The second kind of Spatial Transcriptomics array numbers its spots in half steps (10x10, 10x12, 11x11 ...): a spot's
nearest neighbour is one column and one row away. With 150 um to it (Wang et al. 2024, Nature Communications,
doi 10.1038/s41467-024-54145-w) and the proportions of real sections (a row is 1.112 times a column) the printed area
measures 6.3 by 6.7 mm, which is that of the first kind. The squamous carcinoma sections of Ji et al. 2020 are of this
kind too; their spots are given as 110 um.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from histolake.ingestion.readers.lattice import Lattice

__all__ = ["ST", "ST_STAGGERED", "VISIUM", "Array", "array_name", "recognise", "technology_name"]


@dataclass(frozen=True, kw_only=True)
class Array:
    """A kind of array."""

    technology: str
    pitch_um: float  # micrometres between neighbouring spots' centres
    spot_diameter_um: float  # micrometres


VISIUM = Array(technology="Visium", pitch_um=100.0, spot_diameter_um=55.0)
ST = Array(technology="Spatial Transcriptomics", pitch_um=200.0, spot_diameter_um=100.0)
ST_STAGGERED = Array(technology="Spatial Transcriptomics", pitch_um=150.0, spot_diameter_um=100.0)

STAGGERED_RATIO = 1.118  # a row by a column of the staggered array, from 100 um and 111.8 um
SAME = 0.03

_VISIUM_BARCODE = re.compile(r"(^|[^A-Za-z])[ACGT]{16}(-\d+)?$")
_ARRAY_NAME = re.compile(r"(?:^|[^0-9.])(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)$")
_TECHNOLOGIES = (
    ("visium hd", re.compile(r"visium\W*hd", re.I), "Visium HD"),
    ("visium", re.compile(r"visium|spatial 3'|spaceranger", re.I), VISIUM.technology),
    ("xenium", re.compile(r"xenium", re.I), "Xenium"),
    ("st", re.compile(r"^(legacy )?st$|spatial transcriptomics", re.I), ST.technology),
)


def technology_name(text: str) -> str:
    """A technology by its one name here ("10x Visium" is Visium); an unknown one as it is written."""
    return next((name for _, pattern, name in _TECHNOLOGIES if pattern.search(text.strip())), text.strip())


def array_name(barcode: str) -> tuple[float, float] | None:
    """Column and row of a barcode like 10x21 or C2_10x21; None of any other."""
    match = _ARRAY_NAME.search(barcode)
    return (float(match.group(1)), float(match.group(2))) if match else None


def recognise(technology: str | None, barcodes: Sequence[str], lattice: Lattice | None) -> Array | None:
    """The array that these spots lie on, or None where nothing tells it.

    A technology that is named decides; else the barcodes of the first spots (16 bases with a number: Visium; NxM:
    Spatial Transcriptomics) together with a lattice that fits. Between the two kinds of Spatial Transcriptomics
    arrays the lattice decides.
    """
    if technology == VISIUM.technology:
        return VISIUM
    if technology == ST.technology:
        return _st(lattice)
    if technology is not None or lattice is None or not len(barcodes):
        return None
    some = barcodes[: min(len(barcodes), 50)]
    if lattice.neighbours == 6 and all(_VISIUM_BARCODE.search(name) for name in some):
        return VISIUM
    return _st(lattice) if all(array_name(name) for name in some) else None


def _st(lattice: Lattice | None) -> Array | None:
    if lattice is None or (lattice.neighbours == 4 and not lattice.staggered):
        return ST
    if lattice.neighbours == 4 and abs(lattice.ratio / STAGGERED_RATIO - 1) < SAME:
        return ST_STAGGERED
    return None
