"""The map's drawing: one path a section and layer, which the page colours by cohort, section, patient or technology.

All four colourings are in the page; which one is seen is a matter of style, so it needs no script.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from histolake.ingestion.report import charts
from histolake.ingestion.report.projection import KINDS, Map

__all__ = ["Legend", "MapPicture", "map_picture"]

SIDE = 560  # units of the drawing
LAYERS = 6  # a section's points are drawn in so many turns, so that none covers all others
LISTED = 14  # names in a legend
# Told apart by colour-blind eyes and in print; more than these go around the circle of hues.
PALETTE = ("#4a3a8c", "#d1477a", "#c98a1b", "#0f8577", "#6aa7d8", "#8a5a3c", "#8c8797", "#b04fc4", "#5f8f2f", "#e07b53")


@dataclass(frozen=True, kw_only=True)
class Legend:
    """The colours of one kind."""

    kind: str
    entries: tuple[tuple[str, str, int], ...]  # name, colour, pairs
    more: int  # names left out


@dataclass(frozen=True, kw_only=True)
class MapPicture:
    """What the template draws."""

    m: Map
    svg: Markup
    legends: tuple[Legend, ...]
    mixing: Markup | None
    words: tuple[str, ...]


def map_picture(found: Map) -> MapPicture:
    """The map as SVG, its legends, and the figure of mixing."""
    legends, colour_of = [], {}
    for kind in KINDS:
        size: dict[str, int] = {}
        for index, n in zip(*np.unique(found.section_S, return_counts=True), strict=True):
            value = str(found.sections[index][kind])
            size[value] = size.get(value, 0) + int(n)
        names = sorted(size, key=lambda name: (-size[name], name))
        colours = {name: _colour(i, len(names)) for i, name in enumerate(names)}
        colour_of[kind] = colours
        entries = tuple((name, colours[name], size[name]) for name in names[:LISTED])
        legends.append(Legend(kind=kind, entries=entries, more=max(len(names) - LISTED, 0)))
    rows = [(f"same {m.kind}", m.share, m.chance) for m in found.mixing]
    return MapPicture(
        m=found,
        svg=_svg(found, colour_of),
        legends=tuple(legends),
        mixing=charts.bars(rows) if rows else None,
        words=tuple(_words(m) for m in found.mixing if m.kind in ("cohort", "patient", "technology")),
    )


def _colour(index: int, of: int) -> str:
    if of <= len(PALETTE):
        return PALETTE[index]
    hue = (index * 0.618034) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, 0.42 + 0.16 * (index % 3) / 2, 0.55)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _svg(found: Map, colour_of: dict[str, dict[str, str]]) -> Markup:
    low, high = found.xy_S2.min(axis=0), found.xy_S2.max(axis=0)
    unit = (SIDE - 24) / max(float((high - low).max()), 1e-9)
    xy_S2 = 12 + (found.xy_S2 - low) * unit + (SIDE - 24 - (high - low) * unit) / 2
    layer_S = np.random.default_rng(0).integers(0, LAYERS, len(xy_S2))
    made = [f'<svg class="map" viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="map of sampled pairs">']
    for layer in range(LAYERS):
        for index, label in enumerate(found.sections):
            own = xy_S2[(layer_S == layer) & (found.section_S == index)]
            if not len(own):
                continue
            style = ";".join(f"--{kind}:{colour_of[kind][str(label[kind])]}" for kind in KINDS)
            points = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in own)
            made.append(f'<path data-points="{len(own)}" style="{style}" d="{points}"/>')
    return Markup("".join([*made, "</svg>"]))


def _words(mixing: Any) -> str:
    """One kind's mixing in a sentence."""
    near, chance = f"{mixing.share:.0%}", f"{mixing.chance:.0%}"
    if mixing.share - mixing.chance < 0.1:
        told = f"about what chance gives ({chance}): they mix well"
    elif mixing.share > 0.9 and mixing.chance < 0.8:
        told = f"where chance gives {chance}: they hardly mix"
    else:
        told = f"where chance gives {chance}: they mix in part"
    plural = {"technology": "technologies"}.get(mixing.kind, f"{mixing.kind}s")
    return f"Of {mixing.values} {plural}: {near} of a pair's nearest neighbours are of its own {mixing.kind}, {told}."
