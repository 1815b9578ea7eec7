"""Pictures of sections: a small JPEG, and the spots as vectors on it, so that they stay sharp at any size.

Each JPEG is in the page once and is shown again by reference, because a section appears among the cards, the refusals
and the look-alikes. Spots are drawn at their true size where a circle of it can be seen, else as the smallest dot that
can. All drawings live in a frame that is `FRAME` units wide.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from histolake.ingestion.report.facts import SOURCES_OWN_RULES, Section

__all__ = ["FRAME", "Drawing", "draw", "picture_side", "thumbnail"]

FRAME = 1000  # units of a drawing's width
RINGS = 1200  # up to so many spots are drawn as rings, more as dots, which need fewer bytes
WHOLE_ABOVE = 0.7  # share of the frame's width or height from which spots have the whole frame shown
ROW = 12  # units, height of the rows in which dots follow each other
SMALLEST = 5.0  # units, the smallest spot that can be seen
BAR_UM = (100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)  # lengths a scale bar may have
JPEG_QUALITY = 76


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One section's picture as the template draws it. Paths are SVG, in units of the frame."""

    height: float  # of the frame, in units
    picture: str | None  # data URI
    kept: str = ""
    kept_as_dots: bool = False
    dot: float = SMALLEST  # units, the diameter of a spot drawn as a dot
    refused: dict[str, str] = field(default_factory=dict)  # rule -> crosses
    off: str = ""  # dots: spots that the source itself ruled out
    true_size: bool = True
    drawn: int = 0  # kept spots drawn
    view: tuple[float, float, float, float] = (0.0, 0.0, FRAME, FRAME)  # left, top, width, height that a card shows
    bar: tuple[float, str] | None = None  # a scale bar for the view: its length in units, and its name
    whole_bar: tuple[float, str] | None = None  # the same for the whole frame


def picture_side(sections: int) -> int:
    """Pixels of a thumbnail's longer side: smaller where there are many, so that the page stays one that opens."""
    return 720 if sections <= 16 else 480 if sections <= 60 else 320


def thumbnail(jpeg: bytes, side: int) -> str:
    """A picture reduced to at most `side` pixels, as a data URI."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        image.draft("RGB", (side, side))
        small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def draw(section: Section, side: int) -> Drawing | None:
    """The section's picture and spots; None where it has neither."""
    picture = thumbnail(section.overview, side) if section.overview else None
    frame = _frame(section, has_picture=picture is not None)
    if frame is None:
        return None
    left, top, width, height = frame
    unit = FRAME / width

    def place(xy_S2: np.ndarray) -> np.ndarray:
        return (xy_S2 - (left, top)) * unit

    view = _view(place(section.kept_xy), round(height * unit, 1))
    diameter = _diameter_px(section) * unit
    seen = max(diameter, SMALLEST)
    as_dots = len(section.kept_xy) > RINGS
    return Drawing(
        height=round(height * unit, 1),
        picture=picture,
        kept=(_dots if as_dots else _rings)(place(section.kept_xy), seen),
        kept_as_dots=as_dots,
        dot=round(seen, 1),
        refused={
            rule: _crosses(place(xy_S2), max(seen, 9.0))
            for rule, xy_S2 in section.refused_xy.items()
            if rule not in SOURCES_OWN_RULES
        },
        off=_dots(
            place(np.concatenate([section.refused_xy.get(rule, np.zeros((0, 2))) for rule in SOURCES_OWN_RULES])), seen
        ),
        true_size=diameter >= SMALLEST,
        drawn=len(section.kept_xy),
        view=view,
        bar=_bar(section, unit, view[2]),
        whole_bar=_bar(section, unit, FRAME),
    )


def _view(xy_S2: np.ndarray, height: float) -> tuple[float, float, float, float]:
    """What a card shows: the whole frame, or where the spots take up a small part of it, that part with a margin."""
    if len(xy_S2) < 2:
        return 0.0, 0.0, FRAME, height
    (left, top), (right, bottom) = xy_S2.min(axis=0), xy_S2.max(axis=0)
    wide, high = max(right - left, 0.25 * FRAME), max(bottom - top, 0.25 * height)
    if wide > WHOLE_ABOVE * FRAME or high > WHOLE_ABOVE * height:
        return 0.0, 0.0, FRAME, height
    margin = 0.14 * max(wide, high)
    x0, x1 = max((left + right - wide) / 2 - margin, 0.0), min((left + right + wide) / 2 + margin, FRAME)
    y0, y1 = max((top + bottom - high) / 2 - margin, 0.0), min((top + bottom + high) / 2 + margin, height)
    return round(float(x0), 1), round(float(y0), 1), round(float(x1 - x0), 1), round(float(y1 - y0), 1)


def _frame(section: Section, *, has_picture: bool) -> tuple[float, float, float, float] | None:
    """Left, top, width and height in pixels: the whole image, or where there is no picture the spots with a margin."""
    wide, high = section.row.get("image_width_px"), section.row.get("image_height_px")
    if has_picture and wide and high:
        return 0.0, 0.0, float(wide), float(high)
    spots = [xy for xy in (section.kept_xy, *section.refused_xy.values()) if len(xy)]
    if not spots or (has_picture and not (wide and high)):
        return _size_of(section) if has_picture else None
    every_S2 = np.concatenate(spots)
    margin = max(2 * _diameter_px(section), 0.04 * float(np.ptp(every_S2, axis=0).max()), 1.0)
    (left, top), (right, bottom) = every_S2.min(axis=0) - margin, every_S2.max(axis=0) + margin
    return float(left), float(top), float(right - left), float(bottom - top)


def _size_of(section: Section) -> tuple[float, float, float, float]:
    """The frame of a picture whose full size nobody knows: its own pixels."""
    from PIL import Image

    assert section.overview is not None
    with Image.open(io.BytesIO(section.overview)) as image:
        return 0.0, 0.0, float(image.width), float(image.height)


def _diameter_px(section: Section) -> float:
    diameter, scale = section.row.get("spot_diameter_um"), section.row.get("um_per_px")
    return float(diameter) / float(scale) if diameter and scale else 0.0


def _bar(section: Section, unit: float, width: float) -> tuple[float, str] | None:
    """A scale bar of at most a third of the width: a wrong scale is seen at once beside tissue."""
    scale = section.row.get("um_per_px")
    if not scale:
        return None
    per_um = unit / float(scale)
    fitting = [um for um in BAR_UM if um * per_um <= 0.3 * width]
    if not fitting:
        return None
    um = fitting[-1]
    return round(um * per_um, 1), f"{um // 1000} mm" if um >= 1000 else f"{um} µm"


# -- paths ---------------------------------------------------------------------------------------------------------


def _whole(xy_S2: np.ndarray) -> Sequence[tuple[int, int]]:
    return [(round(x), round(y)) for x, y in xy_S2 if math.isfinite(x) and math.isfinite(y)]


def _dots(xy_S2: np.ndarray, _diameter: float) -> str:
    """A point a spot: a stroke of no length whose round ends are the dot.

    Spots follow each other to and fro in rows, each told by its step from the last one: about six bytes a spot.
    """
    rows = sorted(_whole(xy_S2), key=lambda p: (p[1] // ROW, p[0] if p[1] // ROW % 2 else -p[0], p[1]))
    parts: list[str] = []
    at = (0, 0)
    for x, y in rows:
        step_x, step_y = x - at[0], y - at[1]
        parts.append(f"m{step_x}{'' if step_y < 0 else ' '}{step_y}z" if parts else f"M{x} {y}z")
        at = (x, y)
    return "".join(parts)


def _rings(xy_S2: np.ndarray, diameter: float) -> str:
    """A circle a spot."""
    r = diameter / 2
    a = f"a{r:.3g} {r:.3g} 0 1 0"
    return "".join(f"M{x - r:.4g} {y:.4g}{a} {2 * r:.4g} 0{a}-{2 * r:.4g} 0" for x, y in xy_S2)


def _crosses(xy_S2: np.ndarray, diameter: float) -> str:
    """A cross a spot."""
    h = round(diameter / 2)
    return "".join(f"M{x - h} {y - h}l{2 * h} {2 * h}m0-{2 * h}l-{2 * h} {2 * h}" for x, y in _whole(xy_S2))
