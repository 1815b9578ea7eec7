"""What the report shows, as plain data: collected once, and nothing in the page asks the lake again.

Axes: S spots, B bins. Positions are pixels of the section's image at full resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from histolake.ingestion.report.distributions import Distribution

__all__ = ["SOURCES_OWN_RULES", "Cohort", "Likeness", "Refusal", "Section", "SpotRule"]

SOURCES_OWN_RULES = ("spot_selected", "spot_covered")  # what the source itself ruled out, such as spots off the tissue


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a section was refused as a whole."""

    rule: str
    figure: float | None
    limit: float | None
    file: str | None
    reason: str  # one sentence


@dataclass(kw_only=True, eq=False)
class Section:
    """One ingest of one section: what the catalogue says, what its pairs measure, and its picture."""

    row: Mapping[str, Any]  # its row of `catalog/slides`, without fragments
    refusal: Refusal | None = None  # None: published
    refused_spots: dict[str, int] = field(default_factory=dict)  # rule -> spots
    refused_xy: dict[str, np.ndarray] = field(default_factory=dict)  # rule -> x, y (S, 2), thinned where very many
    kept_xy: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # (S, 2), thinned where very many
    measures: dict[str, Distribution] = field(default_factory=dict)  # measure -> its distribution over kept spots
    overview: bytes | None = None  # JPEG of the whole image, reduced
    shown: bool = False  # it has a card of its own, with a picture

    @property
    def published(self) -> bool:
        """Whether the lake holds its pairs."""
        return bool(self.row["status"] == "published")

    @property
    def slide_id(self) -> str:
        """`<cohort>/<section>`."""
        return str(self.row["slide_id"])

    @property
    def name(self) -> str:
        """The section's name without its cohort."""
        return self.slide_id.split("/", 1)[-1]

    @property
    def anchor(self) -> str:
        """The id of its card in the page."""
        return f"s-{self.row['ingest_id']}"

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags, such as `low_resolution`."""
        return tuple(self.row["flags"] or ())

    @property
    def n_lost(self) -> int:
        """Spots that a quality rule refused, without those that the source itself ruled out."""
        return sum(n for rule, n in self.refused_spots.items() if rule not in SOURCES_OWN_RULES)

    def said(self, name: str) -> str | None:
        """A value of its provenance, None where it is blank."""
        value = self.row.get(name)
        return str(value) if value is not None and str(value).strip() else None


@dataclass(kw_only=True)
class SpotRule:
    """One rule that refused spots, over the whole cohort."""

    rule: str
    spots: int = 0
    sections: int = 0
    examples: list[str] = field(default_factory=list)  # sentences


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Two sections that look alike, and by what."""

    one: str  # slide_id, of the cohort
    other: str  # slide_id, anywhere in the lake
    why: str  # one sentence
    bits: int | None = None  # how many bits of the images' hashes differ
    shared: float | None = None  # share of the spots of the smaller that the other holds, estimated
    refused: bool = False  # the first was refused for it


@dataclass(kw_only=True, eq=False)
class Cohort:
    """All that the report is made of."""

    lake: str  # URI
    version: int
    chosen: str  # what was asked for, in words
    sections: list[Section]  # by slide_id, then those published first
    rules: list[SpotRule]
    quality: dict[str, Distribution]  # measure -> over all kept spots of the cohort
    lost: dict[str, Distribution]  # measure -> over the spots refused by its rule
    limits: dict[str, list[float]]  # measure -> the limits that were in force
    tolerance: float  # fraction by which statements of the scale may differ
    current_settings: bool  # whether every section was made under the settings of today
    elsewhere: dict[str, bytes] = field(default_factory=dict)  # slide_id -> overview of a look-alike outside the cohort
    alike: list[Likeness] = field(default_factory=list)
    map: Any = None  # `projection.Map`, or None
    why_no_map: str = ""

    @property
    def published(self) -> list[Section]:
        """The sections whose pairs are in the lake."""
        return [section for section in self.sections if section.published]

    @property
    def refused(self) -> list[Section]:
        """The sections refused as a whole."""
        return [section for section in self.sections if not section.published]

    @property
    def shown(self) -> list[Section]:
        """The sections that have a card."""
        return [section for section in self.sections if section.shown]

    @property
    def n_simulated(self) -> int:
        """How many sections are simulated."""
        return sum(bool(section.row["simulated"]) for section in self.sections)
