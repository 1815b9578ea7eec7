"""Micrometres a pixel, as an image file states them, where that can be believed.

TIFF's resolution tags are often filled with a screen's or a printer's dots an inch. A pixel of a slide is between
0.05 and 50 um wide, and no round number of dots an inch is a microscope's.
"""

from __future__ import annotations

import re
from typing import Any

from histolake.ingestion.images.files import ImageFile
from histolake.platform.errors import SourceError

__all__ = ["believed", "from_aperio", "from_ome", "from_tags"]

SMALLEST_UM, LARGEST_UM = 0.05, 50.0  # micrometres a pixel
SQUARE = 0.01  # a pixel's width and height agree when they differ by less than this fraction
DOTS_PER_INCH = (600, 720, 800, 1000, 1200, 1440, 2400, 3200, 3600, 4800, 9600)  # below 508, a pixel is above 50 um
UM_PER_INCH = 25_400.0
INCH, CENTIMETRE = 2, 3  # values of ResolutionUnit
# OME-XML's units of length that a pixel is given in.
OME_UNITS = {"pm": 1e-6, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}


def believed(file: ImageFile, x_um: float | None, y_um: float | None) -> float | None:
    """The mean of a pixel's width and height, or None where they are absent or no slide's.

    Raises `SourceError` (scale_agrees) where they differ: every patch would be distorted.
    """
    if x_um is None or y_um is None:
        return None
    if not all(SMALLEST_UM <= side <= LARGEST_UM for side in (x_um, y_um)):
        return None
    ratio = max(x_um, y_um) / min(x_um, y_um)
    if ratio > 1 + SQUARE:
        raise SourceError(
            f"The image {file.uri} states pixels of {x_um:g} by {y_um:g} um; pixels must be square. Correct the file's "
            "tags, or resample it.",
            rule="scale_agrees",
            figure=ratio,
            limit=1 + SQUARE,
            file=file.uri,
        )
    return (x_um + y_um) / 2


def from_tags(file: ImageFile, page: Any) -> float | None:
    """By the resolution tags of a page of a TIFF."""
    unit = page.tags.valueof(296, INCH)
    sides = []
    for tag in (282, 283):  # XResolution, YResolution
        value = page.tags.valueof(tag)
        per_unit = value[0] / value[1] if value is not None and value[1] else 0.0
        if per_unit <= 0 or unit not in (INCH, CENTIMETRE):
            return None
        sides.append((UM_PER_INCH if unit == INCH else 1e4) / per_unit)
    placeholder = any(abs(UM_PER_INCH / side / dots - 1) < 1e-3 for side in sides for dots in DOTS_PER_INCH)
    return None if placeholder else believed(file, *sides)


def from_aperio(description: str) -> float | None:
    """By Aperio's description, `... |MPP = 0.4990| ...`."""
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", description)
    side = float(found[1]) if found else 0.0
    return side if SMALLEST_UM <= side <= LARGEST_UM else None


def from_ome(file: ImageFile, xml: str | None, size_px: tuple[int, int]) -> float | None:
    """By PhysicalSizeX and PhysicalSizeY of the OME-XML image of this size; micrometres where no unit is named."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(xml or "<OME/>")
    except ElementTree.ParseError:
        return None
    for pixels in root.iter():
        if not pixels.tag.endswith("Pixels"):
            continue
        if (pixels.get("SizeX"), pixels.get("SizeY")) != (str(size_px[0]), str(size_px[1])):
            continue
        sides = [
            _ome_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"
        ]
        return believed(file, *sides)
    return None


def _ome_um(size: str | None, unit: str) -> float | None:
    try:
        return float(size or "") * OME_UNITS[unit]
    except (KeyError, ValueError):
        return None
