"""Reading what the report shows, slide by slide: small columns of the pairs, one pass over the rejections.

Memory holds a summary a section and, for the sections that get a card, the places of a few thousand spots; never a
cohort's pairs. Sections with something to look at (refused, flagged, blank where it matters) get their card first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from histolake.ingestion.report.distributions import MEASURES, Distribution, measured
from histolake.ingestion.report.facts import SOURCES_OWN_RULES, Cohort, Refusal, Section, SpotRule
from histolake.platform.lake.snapshot import Snapshot

if TYPE_CHECKING:
    from histolake.ingestion.rows import IngestSettings

__all__ = ["DRAWN_SPOTS", "IMPORTANT", "collect", "overview"]

DRAWN_SPOTS = 5000  # places of one section that are drawn at most; more are thinned evenly
EXAMPLES = 3  # sentences kept for a rule
IMPORTANT = ("patient", "study", "species", "organ", "technology", "licence")  # loud where blank

Tell = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much


def collect(
    snapshot: Snapshot, slides: pa.Table, *, chosen: str, limit: int, settings: IngestSettings, tell: Tell
) -> Cohort:
    """The facts of some slides (rows of `catalog/slides`, refused ones too).

    `limit` sections get a card with a picture; the others only their rows in the tables.
    """
    rows = slides.drop_columns([name for name in ("fragments", "profile_sketch") if name in slides.column_names])
    sections = [Section(row=row) for row in rows.to_pylist()]
    _choose_shown(sections, limit)
    cohort = Cohort(
        lake=snapshot.lake.uri,
        version=snapshot.version,
        chosen=chosen,
        sections=sections,
        rules=[],
        quality={},
        lost={name: Distribution(measure) for name, measure in MEASURES.items()},
        limits=_limits_of(settings),
        tolerance=settings.scale.tolerance,
        current_settings=_made_under(sections, settings),
    )
    _read_rejections(snapshot, cohort)
    for done, section in enumerate(sections):
        tell("reading sections", done, len(sections))
        if section.published:
            _read_pairs(snapshot, section)
        if section.shown:
            section.overview = overview(snapshot, str(section.row["ingest_id"]))
    tell("reading sections", len(sections), len(sections))
    for name, measure in MEASURES.items():
        total = Distribution.total(measure, [s.measures[name] for s in sections if name in s.measures])
        if total is not None:
            cohort.quality[name] = total
    return cohort


def overview(snapshot: Snapshot, ingest_id: str) -> bytes | None:
    """The reduced picture of a section's whole image (JPEG), None where the lake has none."""
    place = snapshot.lake.images.picture(ingest_id)
    return place.read_bytes() if place.is_file() else None


def _choose_shown(sections: Sequence[Section], limit: int) -> None:
    """Mark the sections that get a card: those that ask for a look first, then by name."""

    def rank(section: Section) -> int:
        if not section.published:
            return 0
        blank = any(section.said(name) is None for name in IMPORTANT)
        return 1 if section.flags or blank or section.row.get("look_alikes") else 2

    for section in sorted(sections, key=lambda s: (rank(s), s.slide_id))[:limit]:
        section.shown = True


def _limits_of(settings: IngestSettings) -> dict[str, list[float]]:
    """measure -> the limits that the settings of today draw through it."""
    return {
        name: [
            float(limit)
            for key in measure.settings
            if (limit := getattr(settings.quality, key, 0)) > 0  # 0 keeps every spot
        ]
        for name, measure in MEASURES.items()
    }


def _made_under(sections: Sequence[Section], settings: IngestSettings) -> bool:
    from histolake.ingestion.pipeline import settings_digest

    return {section.row["settings_digest"] for section in sections} <= {settings_digest(settings)}


# -- rejections ----------------------------------------------------------------------------------------------------


def _read_rejections(snapshot: Snapshot, cohort: Cohort) -> None:
    """One pass over the rejections, batch by batch: reasons of sections, counts and places of spots."""
    by_ingest = {str(section.row["ingest_id"]): section for section in cohort.sections}
    names = ["ingest_id", "barcode", "x_px", "y_px", "rule", "figure", "limit", "file", "reason"]
    rules: dict[str, SpotRule] = {}
    limits: dict[str, set[float]] = {}
    places: dict[tuple[str, str], _Thinned] = {}
    for batch in snapshot.lake.catalog.dataset("rejections").to_batches(columns=names):
        for row in batch.to_pylist():
            section = by_ingest.get(row["ingest_id"])
            if section is None:
                continue
            if row["barcode"] is None:
                section.refusal = Refusal(**{k: row[k] for k in ("rule", "figure", "limit", "file", "reason")})
                continue
            _count_spot(cohort, section, row, rules, limits)
            if section.shown and row["x_px"] is not None and row["y_px"] is not None:
                key = (str(row["ingest_id"]), row["rule"])
                places.setdefault(key, _Thinned()).add(row["x_px"], row["y_px"])
    for (ingest_id, rule), kept in places.items():
        by_ingest[ingest_id].refused_xy[rule] = kept.array()
    for counted in rules.values():
        counted.sections = sum(counted.rule in section.refused_spots for section in cohort.sections)
    cohort.rules = sorted(rules.values(), key=lambda rule: (rule.rule in SOURCES_OWN_RULES, -rule.spots))
    for name, found in limits.items():  # what was in force, where it differs from today's settings
        cohort.limits[name] = sorted(found)


def _count_spot(
    cohort: Cohort,
    section: Section,
    row: dict[str, Any],
    rules: dict[str, SpotRule],
    limits: dict[str, set[float]],
) -> None:
    rule = rules.setdefault(row["rule"], SpotRule(rule=row["rule"]))
    rule.spots += 1
    section.refused_spots[rule.rule] = section.refused_spots.get(rule.rule, 0) + 1
    if len(rule.examples) < EXAMPLES and row["reason"] and row["reason"] not in rule.examples:
        rule.examples.append(row["reason"])
    for name, measure in MEASURES.items():
        if rule.rule in measure.rules and row["figure"] is not None:
            cohort.lost[name].add(np.array([row["figure"]]))
            if row["limit"] is not None:
                limits.setdefault(name, set()).add(float(row["limit"]))


class _Thinned:
    """Places, every one until there are too many, then every second, every fourth, and so on."""

    def __init__(self) -> None:
        self._places: list[tuple[float, float]] = []
        self._step = 1
        self._seen = 0

    def add(self, x_px: float, y_px: float) -> None:
        """Take one more place."""
        if self._seen % self._step == 0:
            self._places.append((x_px, y_px))
            if len(self._places) > DRAWN_SPOTS:
                self._places = self._places[::2]
                self._step *= 2
        self._seen += 1

    def array(self) -> np.ndarray:
        """x, y as (S, 2)."""
        return np.array(self._places, dtype=np.float64).reshape(-1, 2)


# -- pairs ---------------------------------------------------------------------------------------------------------


def _read_pairs(snapshot: Snapshot, section: Section) -> None:
    """The measures of one section's spots, and the places of those that are drawn."""
    columns = [*MEASURES, *(("x_px", "y_px") if section.shown else ())]
    batches = list(snapshot.pairs(columns, [section.slide_id], batch_rows=8192))
    if not batches:
        return
    table = pa.Table.from_batches(batches)
    for name, measure in MEASURES.items():
        found = measured(measure, _floats(table[name]))
        if found is not None:
            section.measures[name] = found
    if section.shown:
        xy_S2 = np.stack([_floats(table["x_px"]), _floats(table["y_px"])], axis=1)
        xy_S2 = xy_S2[np.isfinite(xy_S2).all(axis=1)]
        if len(xy_S2) > DRAWN_SPOTS:
            drawn = np.random.default_rng(0).choice(len(xy_S2), DRAWN_SPOTS, replace=False)
            xy_S2 = xy_S2[np.sort(drawn)]
        section.kept_xy = xy_S2


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).fill_null(float("nan")).to_numpy()
