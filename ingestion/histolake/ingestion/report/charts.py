"""The report's charts as inline SVG: light, sharp in print, their words searchable, drawn with the page's own colours.

Each function takes numbers and gives `Markup` with one `<svg>`. Texts that come from outside are escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from histolake.ingestion.report.distributions import Distribution, Measure

__all__ = ["ORIGINS", "bars", "histogram", "number", "scale_rows", "spark"]

LEFT, RIGHT, TOP, BOTTOM = 52, 14, 22, 40
# An origin of the scale: its words, its colour, its shape.
ORIGINS = {
    "stated": ("stated by the curator", "#24212b", "diamond"),
    "pitch": ("fitted to the spots' pitch", "#4a3a8c", "circle"),
    "fiducial": ("fiducial marks", "#0f8577", "square"),
    "image_tag": ("the image file's own tag", "#d1477a", "triangle"),
    "source": ("the source's own table", "#b5790f", "plus"),
    "": ("not recorded who says so", "#8a8592", "circle"),
}


def number(value: float | None, digits: int = 3) -> str:
    """A figure for people: thousands apart, no more digits than it deserves."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _text(x: float, y: float, words: object, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


# -- distributions -------------------------------------------------------------------------------------------------


def _span(measure: Measure, parts: Sequence[Distribution], limits: Sequence[float]) -> tuple[int, int]:
    """The first and the last bin to draw: those with spots or a limit, and one more at each side."""
    edges = measure.edges()
    if not measure.log:
        return 0, measure.bins
    held = np.flatnonzero(sum((part.count_B for part in parts), np.zeros(measure.bins, dtype=np.int64)))
    lines = np.searchsorted(edges, [limit for limit in limits if limit > 0], side="right") - 1
    every = np.concatenate([held, np.clip(lines, 0, measure.bins - 1)])
    return max(int(every.min()) - 1, 0), min(int(every.max()) + 2, measure.bins)


def _ticks(measure: Measure, low: float, high: float) -> list[float]:
    if not measure.log:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


def histogram(
    kept: Distribution, lost: Distribution | None = None, limits: Sequence[float] = (), *, width: int = 520
) -> Markup:
    """Spots by one measure: those kept, on top of them those refused by its rule, and the limits as lines."""
    measure, height = kept.measure, 210
    parts = [kept, *([lost] if lost is not None and lost.n else [])]
    first, last = _span(measure, parts, limits)
    edges = measure.edges()
    low, high = edges[first], edges[last]
    top = max(int(sum(part.count_B for part in parts)[first:last].max()), 1)  # type: ignore[index]  # a sum of arrays
    inner_w, inner_h = width - LEFT - RIGHT, height - TOP - BOTTOM

    def x(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if measure.log else (value - low) / (high - low)
        return LEFT + inner_w * share

    def y(count: float) -> float:
        return TOP + inner_h * (1 - count / top)

    made = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(measure.title)}">']
    for count in _counts(top):
        made.append(f'<path class="grid" d="M{LEFT} {y(count):.1f}H{width - RIGHT}"/>')
        made.append(_text(LEFT - 7, y(count) + 4, f"{count:,}", 'text-anchor="end"'))
    base = np.zeros(measure.bins, dtype=np.int64)
    for part, name in zip(parts, ("kept", "lost"), strict=False):
        for b in range(first, last):
            if part.count_B[b]:
                left, right = x(edges[b]), x(edges[b + 1])
                y0, y1 = y(base[b]), y(base[b] + part.count_B[b])
                made.append(
                    f'<rect class="{name}" x="{left + 0.4:.1f}" y="{y1:.1f}" width="{right - left - 0.8:.1f}" '
                    f'height="{max(y0 - y1, 0.8):.1f}"/>'
                )
        base = base + part.count_B
    made.append(f'<path class="axis" d="M{LEFT} {y(0):.1f}H{width - RIGHT}"/>')
    for tick in _ticks(measure, low, high):
        made.append(_text(x(tick), height - BOTTOM + 16, number(tick), 'text-anchor="middle"'))
    made.append(_text(LEFT + inner_w / 2, height - 6, measure.unit, 'text-anchor="middle"'))
    made.append(_text(4, 11, "spots", ""))
    made += [_limit(x(limit), height, width, limit) for limit in limits if low <= limit <= high]
    return Markup("".join([*made, "</svg>"]))


def _limit(at: float, height: int, width: int, limit: float) -> str:
    right = at > width * 0.7
    words = _text(
        at - 5 if right else at + 5, TOP - 4, f"limit {number(limit)}",
        f'class="limit" text-anchor="{"end" if right else "start"}"',
    )  # fmt: skip
    return f'<path class="limit" d="M{at:.1f} {TOP - 14}V{height - BOTTOM}"/>{words}'


def _counts(top: int) -> list[int]:
    """Round counts for the upright axis, two to five of them, from 0."""
    step = 10 ** math.floor(math.log10(top))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if top / s <= 5)
    return [round(step * i) for i in range(int(top / step) + 1)] if step >= 1 else [0, top]


def spark(part: Distribution, whole: Distribution, limits: Sequence[float] = ()) -> Markup:
    """One section's distribution in a line of a table, on the cohort's axis, with its middle half and median."""
    measure, width, height = part.measure, 150, 30
    first, last = _span(measure, [whole], limits)
    edges = measure.edges()
    low, high = edges[first], edges[last]

    def x(value: float) -> float:
        value = min(max(value, low), high)
        share = math.log(value / low) / math.log(high / low) if measure.log else (value - low) / (high - low)
        return width * share

    count = part.count_B[first:last]
    top = max(int(count.max()), 1)
    points = [f"M0 {height - 5}"]
    for b, n in enumerate(count, start=first):
        points.append(f"H{x(edges[b]):.0f}V{(height - 5) * (1 - n / top):.0f}")
    points.append(f"H{width}V{height - 5}Z")
    _, q25, q50, q75, _ = part.quantiles
    made = [f'<svg class="spark" viewBox="0 0 {width} {height}" aria-hidden="true">']
    made.append(f'<path class="area" d="{"".join(points)}"/>')
    made.append(f'<path class="half" d="M{x(q25):.0f} {height - 2}H{max(x(q75), x(q25) + 1):.0f}"/>')
    made.append(f'<path class="middle" d="M{x(q50):.0f} 2V{height}"/>')
    made += [f'<path class="limit" d="M{x(v):.0f} 0V{height}"/>' for v in limits if low <= v <= high]
    return Markup("".join([*made, "</svg>"]))


# -- scale ---------------------------------------------------------------------------------------------------------

SCALE_ROW, SCALE_SPAN = 22, 0.15  # units high; how far from the scale in use the axis reaches


def scale_rows(rows: Sequence[tuple[str, str, Sequence[tuple[str, float]], float | None]], tolerance: float) -> Markup:
    """A row a section: where each statement of micrometres a pixel lies, against the one in use; of a refused section,
    which uses none, against the least.

    `rows`: name, words for the right margin, (origin, difference as a fraction), and for a refused section how far
    apart its statements are (else None).
    """
    name_w, words_w, plot_w = 230, 250, 660
    width, height = name_w + plot_w + words_w, SCALE_ROW * len(rows) + 44
    bottom = height - 30

    def x(share: float) -> float:
        return name_w + plot_w * (min(max(share, -SCALE_SPAN), SCALE_SPAN) + SCALE_SPAN) / (2 * SCALE_SPAN)

    made = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="scale audit">']
    made.append(
        f'<rect class="band" x="{x(-tolerance):.1f}" y="4" width="{x(tolerance) - x(-tolerance):.1f}" '
        f'height="{bottom - 4}"/>'
    )
    made.append(f'<path class="axis" d="M{x(0):.1f} 4V{bottom}"/>')
    for index, (name, words, found, apart) in enumerate(rows):
        y = 4 + SCALE_ROW * (index + 0.5)
        made.append(f'<path class="grid" d="M{name_w} {y:.1f}H{name_w + plot_w}"/>')
        made.append(_text(name_w - 12, y + 4, _short(name, 34), 'text-anchor="end" class="name"'))
        made.append(_text(name_w + plot_w + 12, y + 4, words, ""))
        if apart is not None:
            end = x(apart)
            made.append(f'<path class="apart" d="M{x(0):.1f} {y - 5:.1f}v10m0-5H{end:.1f}m0-5v10"/>')
        for place, (origin, share) in enumerate(found):
            # One above the other a little, so that statements which agree can all be seen.
            lift = 4.2 * (place - (len(found) - 1) / 2)
            made.append(_mark(x(share), y + lift, origin, beyond=abs(share) > SCALE_SPAN))
    for share in (-0.1, -tolerance, 0.0, tolerance, 0.1):
        label = "in use" if share == 0 else f"{share:+.0%}".replace("-", "−")
        made.append(_text(x(share), bottom + 16, label, 'text-anchor="middle"'))
    return Markup("".join([*made, "</svg>"]))


def _mark(x: float, y: float, origin: str, *, beyond: bool) -> str:
    words, colour, shape = ORIGINS.get(origin, (origin, "#6d6876", "circle"))
    paths = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.6"/>',
        "square": f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>',
        "triangle": f'<path d="M{x:.1f} {y - 5.4:.1f}l5.2 9h-10.4z"/>',
        "diamond": f'<path d="M{x:.1f} {y - 6:.1f}l6 6-6 6-6-6z"/>',
        "plus": f'<path d="M{x - 1.6:.1f} {y - 5.5:.1f}h3.2v3.9h3.9v3.2h-3.9v3.9h-3.2v-3.9h-3.9v-3.2h3.9z"/>',
    }
    more = ' stroke-dasharray="2 2" fill-opacity=".35"' if beyond else ""
    return f'<g fill="{colour}" stroke="#fff"{more}><title>{escape(words)}</title>{paths[shape]}</g>'


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most // 2 - 1] + "…" + name[-(most // 2) :]


# -- shares --------------------------------------------------------------------------------------------------------


def bars(rows: Sequence[tuple[str, float, float]]) -> Markup:
    """Rows of (name, share, share by chance): a bar to the share, a line where chance would be."""
    name_w, plot_w, words_w, row = 120, 250, 150, 34
    width, height = name_w + plot_w + words_w, row * len(rows) + 26
    made = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="mixing beside chance">']
    for share in (0.0, 0.5, 1.0):
        at = name_w + plot_w * share
        made.append(f'<path class="grid" d="M{at:.1f} 4V{height - 22}"/>')
        made.append(_text(at, height - 6, f"{share:.0%}", 'text-anchor="middle"'))
    for index, (name, share, chance) in enumerate(rows):
        y = 4 + row * (index + 0.5)
        at = name_w + plot_w * chance
        made.append(_text(name_w - 10, y + 4, name, 'text-anchor="end" class="name"'))
        made.append(
            f'<rect class="kept" x="{name_w}" y="{y - 8:.1f}" width="{plot_w * share:.1f}" height="16" rx="2"/>'
        )
        made.append(f'<path class="chance" d="M{at:.1f} {y - 13:.1f}v26"/>')
        made.append(_text(name_w + plot_w + 12, y + 4, f"{share:.0%} (chance {chance:.0%})"))
    return Markup("".join([*made, "</svg>"]))
