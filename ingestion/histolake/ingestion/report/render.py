"""The page: facts become what `report.html.j2` names. Words and layout are in the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version as package_version
from typing import Any

from markupsafe import Markup, escape

from histolake.ingestion.report import charts, pictures
from histolake.ingestion.report.advice import flag_words, next_step, rule_words
from histolake.ingestion.report.distributions import MEASURES
from histolake.ingestion.report.facts import SOURCES_OWN_RULES, Cohort, Section
from histolake.ingestion.report.legend import map_picture
from histolake.ingestion.report.pictures import Drawing
from histolake.ingestion.report.verdicts import verdicts
from histolake.platform.page import fill

__all__ = ["render"]

SCALE_FIRST = 30  # rows of the scale audit before the rest is folded
EXAMPLE_SECTIONS = 3  # pictures of a rule on spots


def render(cohort: Cohort, *, command: str) -> str:
    """The page as HTML. `command` is what writes it again."""
    side = pictures.picture_side(len(cohort.shown))
    drawings = {s.anchor: drawing for s in cohort.shown if (drawing := pictures.draw(s, side)) is not None}
    filters: dict[str, Callable[..., Any]] = {
        "number": charts.number,
        "flag": flag_words,
        "rule": rule_words,
        "code": _code,
    }
    return fill("histolake.ingestion.report", "report.html.j2", _values(cohort, drawings, command), filters)


def _code(words: str) -> Markup:
    """A sentence with what stands between backquotes set as code."""
    parts = [escape(part) for part in words.split("`")]
    return Markup("".join(f"<code>{part}</code>" if i % 2 else str(part) for i, part in enumerate(parts)))


def _values(cohort: Cohort, drawings: dict[str, Drawing], command: str) -> dict[str, Any]:
    return {
        "c": cohort,
        "frame": pictures.FRAME,
        "drawings": drawings,
        "elsewhere": _elsewhere(cohort),
        "verdicts": verdicts(cohort),
        "figures": _figures(cohort),
        "when": _when(cohort.sections),
        "cohorts": sorted({str(s.row["cohort"]) for s in cohort.sections}),
        "left_out": len(cohort.sections) - len(cohort.shown),
        "rows": [_row(section) for section in cohort.sections],
        "quality": _quality(cohort),
        "sparks": _sparks(cohort),
        "refused": [_refused(section) for section in cohort.refused],
        "rules": _rules(cohort),
        "scales": _scales(cohort),
        "origins": charts.ORIGINS,
        "alike": _alike(cohort),
        "map": None if cohort.map is None else map_picture(cohort.map),
        "made": _made(cohort),
        "software": f"histolake {package_version('histolake')}",
        "command": command,
    }


def _figures(cohort: Cohort) -> list[tuple[str, str]]:
    pairs = sum(section.row["n_pairs"] or 0 for section in cohort.published)
    read = sum(section.row["n_spots"] or 0 for section in cohort.published)
    lost = sum(section.n_lost for section in cohort.published)
    own = sum(sum(section.refused_spots.get(r, 0) for r in SOURCES_OWN_RULES) for section in cohort.published)
    flagged = sum(bool(section.flags) for section in cohort.published)
    found = [
        (f"{len(cohort.published)}", "sections published"),
        (f"{len(cohort.refused)}", "sections refused"),
        (f"{flagged}", "sections flagged"),
        (f"{read:,}", "spots read"),
        (f"{pairs:,}", "pairs published"),
        (f"{lost:,}", "spots refused by a rule"),
    ]
    return [*found, (f"{own:,}", "spots ruled out by the source")] if own else found


def _when(sections: Sequence[Section]) -> str:
    days = sorted(section.row["when"] for section in sections if section.row["when"] is not None)
    if not days:
        return "not recorded"
    first, last = (f"{day:%Y-%m-%d %H:%M} UTC" for day in (days[0], days[-1]))
    return first if first == last else f"{first} to {last}"


# -- sections ------------------------------------------------------------------------------------------------------


def _row(section: Section) -> dict[str, Any]:
    row = section.row
    read = row["n_spots"] or 0
    genes, counts = (section.measures.get(name) for name in ("n_genes", "n_counts"))
    return {
        "s": section,
        "read": read,
        "kept": row["n_pairs"] or 0,
        "lost_share": section.n_lost / max(section.n_lost + (row["n_pairs"] or 0), 1),
        "genes": genes.median if genes else None,
        "counts": counts.median if counts else None,
        "tissue": section.measures["tissue_fraction"].median if "tissue_fraction" in section.measures else None,
        "refused": sorted(section.refused_spots.items(), key=lambda item: -item[1]),
        "scale_words": _scale_words(section),
        "size": _size_words(section),
    }


def _scale_words(section: Section) -> str:
    scale, origin = section.row.get("um_per_px"), section.row.get("scale_from")
    if not scale:
        return "not known"
    return f"{scale:.4g} µm/px" + (f", {charts.ORIGINS.get(origin, (origin,))[0]}" if origin else "")


def _size_words(section: Section) -> str:
    wide, high = section.row.get("image_width_px"), section.row.get("image_height_px")
    return f"{wide:,} × {high:,} px" if wide and high else ""


# -- quality -------------------------------------------------------------------------------------------------------


def _quality(cohort: Cohort) -> list[dict[str, Any]]:
    made = []
    for name, kept in cohort.quality.items():
        lost = cohort.lost[name] if cohort.lost[name].n else None
        made.append(
            {
                "title": MEASURES[name].title,
                "n": kept.n,
                "lost": lost.n if lost else 0,
                "limits": cohort.limits[name],
                "picture": charts.histogram(kept, lost, cohort.limits[name]),
                "quantiles": [charts.number(value) for value in kept.quantiles],
            }
        )
    return made


def _sparks(cohort: Cohort) -> list[dict[str, Any]]:
    """Sections by measure, each on the cohort's axis; those that have a card."""
    made = []
    for section in cohort.published:
        if not section.shown:
            continue
        cells = []
        for name, whole in cohort.quality.items():
            part = section.measures.get(name)
            picture = charts.spark(part, whole, cohort.limits[name]) if part is not None else None
            cells.append({"picture": picture, "median": charts.number(part.median if part else None)})
        made.append({"s": section, "cells": cells})
    return made


# -- refusals ------------------------------------------------------------------------------------------------------


def _refused(section: Section) -> dict[str, Any]:
    refusal = section.refusal
    return {
        "s": section,
        "words": rule_words(refusal.rule) if refusal else "refused",
        "next": next_step(refusal.rule) if refusal else "",
    }


def _rules(cohort: Cohort) -> list[dict[str, Any]]:
    made = []
    for rule in cohort.rules:
        most = sorted(
            (s for s in cohort.shown if rule.rule in s.refused_xy and rule.rule not in SOURCES_OWN_RULES),
            key=lambda s: -s.refused_spots[rule.rule],
        )
        made.append(
            {
                "r": rule,
                "words": rule_words(rule.rule),
                "next": next_step(rule.rule),
                "where": most[:EXAMPLE_SECTIONS],
            }
        )
    return made


# -- scale ---------------------------------------------------------------------------------------------------------


def _scales(cohort: Cohort) -> dict[str, Any]:
    rows = [row for section in cohort.sections if (row := _scale_row(section, cohort.tolerance)) is not None]
    rows.sort(key=lambda row: -row[0])
    drawn = [row[1] for row in rows]
    return {
        "n": len(drawn),
        "first": charts.scale_rows(drawn[:SCALE_FIRST], cohort.tolerance) if drawn else None,
        "rest": charts.scale_rows(drawn[SCALE_FIRST:], cohort.tolerance) if len(drawn) > SCALE_FIRST else None,
        "n_rest": max(len(drawn) - SCALE_FIRST, 0),
        "origins": sorted({origin for row in drawn for origin, _ in row[2]}, key=list(charts.ORIGINS).index),
        "alone": sum(len(row[2]) == 1 for row in drawn),
        "refused": any(row[3] is not None for row in drawn),
    }


def _scale_row(
    section: Section, tolerance: float
) -> tuple[float, tuple[str, str, list[tuple[str, float]], float | None]] | None:
    """How far apart the statements are (to sort by), and the row to draw."""
    used = section.row.get("um_per_px")
    said = [s for s in section.row.get("scales") or () if s["um_per_px"] and s["origin"] in charts.ORIGINS]
    if not section.published:
        refusal = section.refusal
        if refusal is None or refusal.rule != "scale_agrees":
            return None
        apart = refusal.figure or 0.0
        least = min((s["um_per_px"] for s in said), default=1.0)
        beyond = [(str(s["origin"]), s["um_per_px"] / least - 1) for s in said]
        return 10 + apart, (section.name, f"refused: {apart:.0%} apart", beyond, apart)
    if not used:
        return None
    said = said or [{"origin": section.row.get("scale_from") or "", "um_per_px": used}]
    differences = [(str(s["origin"]), s["um_per_px"] / used - 1) for s in said]
    words = f"{used:.4g} µm/px, {'one statement' if len(said) == 1 else f'{len(said)} statements'}"
    furthest = max((d for _, d in differences), key=abs)
    if abs(furthest) > tolerance:
        words += f", one at {furthest:+.0%}".replace("-", "−")
    return abs(furthest) + len(said) / 100, (section.name, words, differences, None)


# -- look-alikes ---------------------------------------------------------------------------------------------------


def _elsewhere(cohort: Cohort) -> dict[str, str]:
    """slide_id -> picture of look-alikes that have no card here."""
    return {slide_id: pictures.thumbnail(jpeg, 320) for slide_id, jpeg in cohort.elsewhere.items()}


def _alike(cohort: Cohort) -> list[dict[str, Any]]:
    by_id: dict[str, Section] = {}
    for section in cohort.sections:
        if section.shown or section.slide_id not in by_id:
            by_id[section.slide_id] = section
    return [
        {
            "l": likeness,
            "sides": [{"slide_id": name, "s": by_id.get(name)} for name in (likeness.one, likeness.other)],
        }
        for likeness in cohort.alike
    ]


# -- how it was made -----------------------------------------------------------------------------------------------


def _made(cohort: Cohort) -> dict[str, Any]:
    return {
        "settings": Counter(str(s.row["settings_digest"] or "not recorded") for s in cohort.sections).most_common(),
        "software": Counter(str(s.row["software"] or "not recorded") for s in cohort.sections).most_common(),
        "readers": Counter(s.said("reader") or "none" for s in cohort.sections).most_common(),
    }
